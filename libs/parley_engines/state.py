"""What runs, and where: one file in the data folder, which the next command reads."""

import contextlib
import fcntl
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from parley_engines.errors import EngineError
from parley_engines.processes import ProcessIdentity, is_running

_FILE: Final = "engines.json"
_LOCK: Final = "engines.lock"


@dataclass(frozen=True)
class Started:
    """An engine that was started."""

    name: str
    title: str
    pid: int
    started: str  # the process's start time, see ProcessIdentity
    ports: Mapping[str, int]
    address: str  # host:port for clients
    log: str  # the file with what it says

    @property
    def process(self) -> ProcessIdentity:
        """Return which process it is."""
        return ProcessIdentity(self.pid, self.started)

    def is_running(self) -> bool:
        """Tell whether its process is there."""
        return is_running(self.process)


def read_state(data: Path) -> dict[str, Started]:
    """Return what was started in this folder, running or not. Raises EngineError."""
    file = data / _FILE
    try:
        return {name: Started(**entry) for name, entry in json.loads(file.read_text()).items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError) as error:
        raise EngineError(f"{file} can't be read ({error}); end its engines by hand and delete it") from error


def write_state(data: Path, state: Mapping[str, Started]) -> None:
    """Replace the file at once: who reads it sees the old or the new one."""
    file = data / _FILE
    new = file.with_suffix(".new")
    new.write_text(json.dumps({name: asdict(started) for name, started in state.items()}, indent=2) + "\n")
    new.replace(file)


@contextlib.contextmanager
def locked(data: Path) -> Iterator[None]:
    """Be the only one who starts and stops engines of this folder. Raises EngineError if somebody else is at it."""
    try:
        data.mkdir(parents=True, exist_ok=True)
        with (data / _LOCK).open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise EngineError(f"another command starts or stops the engines in {data} right now") from None
            yield
    except OSError as error:
        raise EngineError(f"can't use {error.filename or data}: {error.strerror}") from error
