"""Which processes run: a file in the data folder, for whoever measures, restarts or breaks them."""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

STATE_FILE: Final = "processes.json"


@dataclass(frozen=True)
class RunningProcess:
    """One process that runs now."""

    name: str
    role: str
    pid: int
    ready: bool = True
    addresses: dict[str, str] = field(default_factory=dict)


def write_state(folder: Path, processes: Sequence[RunningProcess]) -> None:
    """Replace the file as a whole."""
    scratch = folder / f".{STATE_FILE}.{os.getpid()}"
    scratch.write_text(json.dumps({"processes": [asdict(process) for process in processes]}, indent=1), encoding="utf-8")
    scratch.replace(folder / STATE_FILE)


def read_state(folder: Path) -> list[RunningProcess]:
    """Return what the file says; nothing where there is none."""
    try:
        content = json.loads((folder / STATE_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return []
    return [RunningProcess(**process) for process in content["processes"]]


def remove_state(folder: Path) -> None:
    """Remove the file: nothing runs any more."""
    (folder / STATE_FILE).unlink(missing_ok=True)
