"""Where a server keeps its data unless told otherwise."""

from collections.abc import Mapping
from pathlib import Path


def data_dir_of_server(named: Path | None, environ: Mapping[str, str]) -> Path:
    """Return the folder of a server that runs on this machine: its key lies there. The one that was named, else the default."""
    return named or default_data_dir(environ)


def default_data_dir(environ: Mapping[str, str]) -> Path:
    """Return $PARLEY_DATA_DIR, else `parley` in $XDG_DATA_HOME, else in ~/.local/share (the XDG base directory convention)."""
    if chosen := environ.get("PARLEY_DATA_DIR"):
        return Path(chosen)
    share = environ.get("XDG_DATA_HOME", "")
    # The convention says that a relative path is invalid and has to be ignored.
    base = Path(share) if share.startswith("/") else Path(environ.get("HOME") or Path.home()) / ".local" / "share"
    return base / "parley"
