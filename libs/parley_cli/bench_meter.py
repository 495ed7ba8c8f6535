"""What a process has used, from /proc: CPU time and resident memory, its child processes included."""

import os
from pathlib import Path

_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


class ProcessMeter:
    """Reads one process tree. Raises FileNotFoundError once the process is gone."""

    def __init__(self, pid: int) -> None:
        self.pid = pid

    def cpu_seconds(self) -> float:
        """Return user plus system time so far (10 ms steps: measure over seconds)."""
        return sum(_cpu_ticks(pid) for pid in self._tree()) / _TICKS_PER_SECOND

    def rss_kb(self) -> int:
        """Return resident memory now."""
        return sum(_rss_kb(pid) for pid in self._tree())

    def _tree(self) -> list[int]:
        pids, found = [self.pid], []
        while pids:
            pid = pids.pop()
            found.append(pid)
            for task in Path(f"/proc/{pid}/task").iterdir():
                pids += [int(child) for child in (task / "children").read_text(encoding="ascii").split()]
        return found


def _cpu_ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])  # utime, stime: fields 14 and 15 of the line; the name in brackets may hold blanks


def _rss_kb(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace")
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS:"))
