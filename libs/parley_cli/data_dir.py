"""Where a server keeps its data: the default place, and the lock that keeps two servers out of one folder."""

import fcntl
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from parley_cli.failures import SetupError

_LOCK_FILE = "parley.lock"


def default_data_dir(environ: Mapping[str, str]) -> Path:
    """Return $PARLEY_DATA_DIR, else `parley` in $XDG_DATA_HOME, else in ~/.local/share (the XDG base directory convention)."""
    if chosen := environ.get("PARLEY_DATA_DIR"):
        return Path(chosen)
    share = environ.get("XDG_DATA_HOME", "")
    # The convention says that a relative path is invalid and has to be ignored.
    base = Path(share) if share.startswith("/") else Path(environ.get("HOME") or Path.home()) / ".local" / "share"
    return base / "parley"


@contextmanager
def open_data_dir(path: Path) -> Iterator[Path]:
    """Create the folder if need be (mode 0700: it holds the key and all messages) and hold its lock.

    The kernel drops the lock when the process ends, however it ends, so a SIGKILL leaves nothing to clean up. Raises SetupError.
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(path / _LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise SetupError(f"can't use data folder {path}: {error.strerror}. Choose another with --data.") from error
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(lock, 20, 0).decode("ascii", "replace").strip() or "unknown"
            raise SetupError(
                f"data folder {path} is in use by another parley server (process {holder}). Stop it, or name another with --data."
            ) from None
        except OSError as error:
            raise SetupError(f"can't lock data folder {path}: {error.strerror}. Choose another with --data.") from error
        try:
            os.truncate(lock, 0)
            os.pwrite(lock, str(os.getpid()).encode(), 0)
        except OSError as error:
            raise SetupError(f"can't write to data folder {path}: {error.strerror}. Choose another with --data.") from error
        yield path
    finally:
        os.close(lock)
