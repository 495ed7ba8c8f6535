"""What SQLite's error codes mean for who runs the server: the file, its disk or its rights, or a mistake in a statement."""

import sqlite3
from typing import Final

# The file, its disk or its rights failed, not one job's rows: every job of the transaction is told. Other errors are a job's own.
_FILE_TROUBLE: Final = {
    sqlite3.SQLITE_FULL: "disk full",
    sqlite3.SQLITE_READONLY: "read-only",
    sqlite3.SQLITE_IOERR: "input/output error",
    sqlite3.SQLITE_CANTOPEN: "cannot open",
    sqlite3.SQLITE_PERM: "no permission",
    sqlite3.SQLITE_AUTH: "no permission",
    sqlite3.SQLITE_BUSY: "locked by another process",
    sqlite3.SQLITE_LOCKED: "locked",
    sqlite3.SQLITE_CORRUPT: "corrupt",
    sqlite3.SQLITE_NOTADB: "not a database",
    sqlite3.SQLITE_NOMEM: "out of memory",
    sqlite3.SQLITE_INTERRUPT: "interrupted",
    sqlite3.SQLITE_PROTOCOL: "locking failed",
}

# What an extended code knows better: where a disk is full when a file is opened, there is no room for its shared memory.
_EXTENDED_TROUBLE: Final = {sqlite3.SQLITE_IOERR_SHMSIZE: "disk full"}


class StorageError(Exception):
    """The file did not take or give data. After a write: a restart may bring it up nonetheless, if the commit failed midway."""


def storage_error(name: str, error: sqlite3.Error) -> StorageError:
    """Say what failed with a file of that name."""
    trouble = trouble_of(error)
    return StorageError(f"{name}: {trouble} ({error})" if trouble else f"{name}: {error}")


def trouble_of(error: sqlite3.Error) -> str:
    """Name what failed with the file; empty: it is a job's own error."""
    code = getattr(error, "sqlite_errorcode", None)
    if code is None:  # raised by the module, not by SQLite: a closed connection, or a mistake in a job's parameters
        return "closed" if "closed" in str(error) else ""
    return _EXTENDED_TROUBLE.get(code) or _FILE_TROUBLE.get(code & 0xFF, "")  # the low byte is the primary code
