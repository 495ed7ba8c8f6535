"""What a server's processes have used, from /proc: CPU time and resident memory."""

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


class ProcessMeter:
    """Reads one process tree, or (`parts`) the processes that a cluster consists of, by name.

    Raises FileNotFoundError once the process is gone; a part that is gone counts as what is left of it, nothing.
    """

    def __init__(self, pid: int, parts: Mapping[str, int] | None = None) -> None:
        self.pid = pid
        self._parts = dict(parts or {})

    def cpu_seconds(self) -> float:
        """Return user plus system time so far (10 ms steps: measure over seconds)."""
        return sum(self.cpu_seconds_by_part().values()) or sum(_cpu_ticks(pid) for pid in self._tree()) / _TICKS_PER_SECOND

    def cpu_seconds_by_part(self) -> dict[str, float]:
        """Return the same for each part of a cluster; nothing where all is one process."""
        used = {}
        for name, pid in self._parts.items():
            with suppress(FileNotFoundError):
                used[name] = _cpu_ticks(pid) / _TICKS_PER_SECOND
        return used

    def rss_kb(self) -> int:
        """Return resident memory now."""
        return sum(_rss_kb(pid) for pid in self._parts.values() or self._tree())

    def _tree(self) -> list[int]:
        pids, found = [self.pid], []
        while pids:
            pid = pids.pop()
            found.append(pid)
            for task in Path(f"/proc/{pid}/task").iterdir():
                pids += [int(child) for child in (task / "children").read_text(encoding="ascii").split()]
        return found


def cpu_by_part(before: Mapping[str, float], meter: ProcessMeter, messages: int) -> dict[str, float]:
    """Return the CPU microseconds a message of each part since `before`; nothing where all is one process."""
    after = meter.cpu_seconds_by_part()
    return {name: round((seconds - before.get(name, 0.0)) / messages * 1e6, 1) for name, seconds in after.items()}


def _cpu_ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])  # utime, stime: fields 14 and 15 of the line; the name in brackets may hold blanks


def _rss_kb(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace")
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS:"))
