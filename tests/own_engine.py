"""An engine of a test's own: with more of a configuration, and with its data on a small disk that a test can fill.

The disk is a tmpfs in a mount namespace that a process of ours holds open: nobody else sees it, and it is gone when that process
ends, which it does with this one, however that ends. Engines enter the namespace, so an engine that ends loses nothing. It takes
root, or a Linux that gives everybody user namespaces: where neither is so, the test fails and says why.
"""

import errno
import os
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

from engine_fixtures import ENVIRON, KILL_SECONDS, runs

from parley_engines.engine import Place
from parley_engines.native import ENGINES, NativeEngines, engines_of
from parley_engines.processes import ProcessIdentity, wait_ended
from parley_engines.state import Started

Edit = Callable[[Place], None]  # changes the configuration that lies in the place's folder

_MOUNT = """
set -e
mount -t tmpfs -o size="$1" parley "$2.small"
cp -a "$2/." "$2.small/"
mount --move "$2.small" "$2"
echo mounted
exec cat
"""
_CHUNK = b"\0" * (1 << 20)


class SmallDisk:
    """A file system of `size` (as mount writes it) over a folder, for those that enter its namespace; made by `open_small_disk`."""

    def __init__(self, folder: Path, holder: "subprocess.Popen[bytes]") -> None:
        self._holder = holder
        self._beside = folder.parent
        self._ballast = Path(f"/proc/{holder.pid}/root{folder}/ballast")

    def within(self, command: Sequence[str]) -> list[str]:
        """Return the command that runs this one where the disk is seen."""
        user = [] if os.geteuid() == 0 else ["--user", "--preserve-credentials"]
        return ["nsenter", f"--target={self._holder.pid}", "--mount", *user, f"--wd={self._beside}", "--", *command]

    def fill(self, *, but: int = 0) -> None:
        """Take all the room that is left, but so many bytes."""
        with self._ballast.open("ab", buffering=0) as file:
            try:
                while file.write(_CHUNK):
                    pass
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
            file.truncate(file.tell() - but)

    def empty(self) -> None:
        """Give back what `fill` took."""
        self._ballast.unlink()


@contextmanager
def open_small_disk(folder: Path, size: str) -> Iterator[SmallDisk]:
    """Lay a file system over a folder, with what lies there, until the block is left."""
    folder.with_name(folder.name + ".small").mkdir()
    user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    command = ["unshare", "--mount", "--propagation=private", *user, "sh", "-c", _MOUNT, "sh", size, str(folder)]
    holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        assert holder.stdout
        assert holder.stderr
        if holder.stdout.readline() != b"mounted\n":
            raise AssertionError(
                f"no small disk can be had here, and without one nothing is proven: {holder.stderr.read().decode()}"
            )
        yield SmallDisk(folder, holder)
    finally:
        holder.communicate()  # its input ends, and so does it


@dataclass(frozen=True)
class OwnEngine:
    """See `open_own_engine`."""

    name: str
    engines: NativeEngines
    disk: SmallDisk | None

    @property
    def started(self) -> Started:
        """Return it running, started again, with its data on the same ports, if it is not."""
        return self.engines.up([self.name])[self.name]

    def wait_ended(self, seconds: float) -> bool:
        """Wait until it has ended by itself."""
        return wait_ended(self._process, seconds)

    def kill(self) -> None:
        """End it as a power cut would, also where it is not well."""
        process = self._process
        os.kill(process.pid, signal.SIGKILL)
        assert wait_ended(process, KILL_SECONDS)

    @property
    def _process(self) -> ProcessIdentity:
        ((started, _),) = self.engines.status([self.name]).values()
        assert started is not None
        return started.process

    def pids(self) -> set[str]:
        """Return its process, which is no leak of the test that started it again."""
        return {str(started.pid) for started, _ in self.engines.status([self.name]).values() if started is not None}


@contextmanager
def open_own_engine(
    name: str,
    folder: Path,
    *,
    edit: Edit = lambda _: None,
    ports: Sequence[str] = (),
    environ: Mapping[str, str] = MappingProxyType({}),
    options: Sequence[str] = (),
    probe: Callable[[int], None] | None = None,
    disk_size: str = "",
) -> Iterator[OwnEngine]:
    """Run it until the block is left, with more ports and options (of its JVM), its data on a disk of that size if one is given.

    `probe` asks instead of the usual one, where that would not be let in.
    """
    usual = ENGINES[name]
    data = folder / name / "data"
    data.mkdir(parents=True)
    disks: list[SmallDisk] = []

    def prepare(place: Place) -> list[str]:
        program, *arguments = usual.prepare(place)
        command = [program, *options, *arguments]
        edit(place)
        if not disk_size:
            return command
        if not disks:
            disks.append(holding.__enter__())
        return disks[0].within(command)

    holding = open_small_disk(data, disk_size)
    engines = engines_of(folder, lambda _: None, ENVIRON | dict(environ), leashed=True)
    ENGINES[name] = replace(usual, prepare=prepare, ports=(*usual.ports, *ports), probe=probe or usual.probe)
    try:
        engines.up([name])
        own = OwnEngine(name, engines, disks[0] if disks else None)
        runs.append(own)
        try:
            yield own
        finally:
            runs.remove(own)
    finally:
        engines.down([name])
        ENGINES[name] = usual
        if disks:
            holding.__exit__(None, None, None)
