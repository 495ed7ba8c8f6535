"""Wall clocks that jump: of services and JVMs by a library that is preloaded (`wall_clock.c`), of devices by the SDK's own Clock.

Consul reads its clock without the C library, so it keeps the machine's. Without Linux or a C compiler only devices' clocks jump.
"""

import mmap
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Protocol

from chassis.clock import SystemClock

_SOURCE: Final = Path(__file__).with_name("wall_clock.c")
_PAGE: Final = struct.Struct("<qQ")  # seconds ahead, how often a wrong time was told
_FILE: Final = "wall-clock"
JUMPED_ENGINES: Final = ("kafka", "scylladb")


class Jumper(Protocol):
    """A clock that can be set."""

    def jump(self, seconds: int) -> None:
        """Be ahead of the true time by so many seconds from now on."""

    def told(self) -> int:
        """Return how often a wrong time was told so far."""


class DeviceClock(SystemClock):
    """The clock of devices, which live in this process."""

    def __init__(self) -> None:
        self._ahead_seconds = 0
        self._told = 0

    def wall_ms(self) -> int:
        self._told += bool(self._ahead_seconds)
        return super().wall_ms() + self._ahead_seconds * 1000

    def jump(self, seconds: int) -> None:
        self._ahead_seconds = seconds

    def told(self) -> int:
        return self._told


class ProcessClock:
    """The clock of a process, one incarnation after the other."""

    def __init__(self, file: Path) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(bytes(_PAGE.size))
        with file.open("r+b") as opened:
            self._page = mmap.mmap(opened.fileno(), _PAGE.size)

    def jump(self, seconds: int) -> None:
        self._page[:8] = struct.pack("<q", seconds)

    def told(self) -> int:
        _, told = _PAGE.unpack(self._page[:])
        return int(told)


class Preload:
    """What makes clocks of processes jump; empty where that can't be had. `engines_clocks`: those of engines, by name."""

    def __init__(self, library: Path | None, folder: Path, engines_folder: Path) -> None:
        self._library = library
        self._folder = folder
        self.engines_clocks: dict[str, Jumper] = {}
        if library is not None:  # the files are there before the engines are
            self.engines_clocks = {name: ProcessClock(engines_folder / name / _FILE) for name in JUMPED_ENGINES}

    @property
    def works(self) -> bool:
        """Tell whether it can be had here."""
        return self._library is not None

    def service(self, name: str) -> tuple[dict[str, str], dict[str, Jumper]]:
        """Return what a service needs in its environment, and its clock by name."""
        if self._library is None:
            return {}, {}
        file = self._folder / f"{_FILE}-{name}"
        return self._environ(str(file)), {name: ProcessClock(file)}

    def engines(self) -> dict[str, str]:
        """Return what all engines need, each of which runs in a folder of its own."""
        return self._environ(_FILE) if self._library is not None else {}

    def _environ(self, file: str) -> dict[str, str]:
        return {"LD_PRELOAD": str(self._library), "CHAOS_WALL_CLOCK": file}


def build_preload(folder: Path, engines_folder: Path, environ: Mapping[str, str] = os.environ) -> Preload:
    """Compile the library into a folder, where that is possible."""
    compiler = environ.get("CC", "cc").split()[0]
    if sys.platform != "linux" or shutil.which(compiler) is None:
        return Preload(None, folder, engines_folder)
    library = folder / "wall_clock.so"
    command = [compiler, "-shared", "-fPIC", "-O2", "-o", str(library), str(_SOURCE), "-ldl"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return Preload(library if done.returncode == 0 else None, folder, engines_folder)
