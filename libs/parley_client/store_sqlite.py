"""The Store in an SQLite file: one transaction a step, a few tens of microseconds each.

`synchronous=NORMAL` in WAL mode: a killed process loses nothing. After a power loss the file is an older consistent state: events
come again by Sync, a command that was queued in the last moment is missing from it (the server may have stored it all the same).
The file is locked for one process: the state in memory is the truth while a client runs.
"""

import json
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Final

from parley.api.v1 import events_pb2
from parley_client.conversation_state import ConversationState
from parley_client.errors import StoreError, StoreInUseError, StoreMismatchError
from parley_client.store import Change, Kept, StoredCommand, Watermarks

_SCHEMA: Final = """
CREATE TABLE device (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE conversations (conversation_id TEXT PRIMARY KEY, state TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE watermarks (
    conversation_id TEXT NOT NULL, user_id TEXT NOT NULL, delivered_seq INTEGER NOT NULL, read_seq INTEGER NOT NULL,
    PRIMARY KEY (conversation_id, user_id)
) WITHOUT ROWID;
CREATE TABLE commands (
    position INTEGER PRIMARY KEY, request_id BLOB NOT NULL UNIQUE, command BLOB NOT NULL, created_ms INTEGER NOT NULL
);
-- ordinal: the place in the order of handing out; NULL: fetched as history. sender: who sent a message; NULL: no message.
CREATE TABLE events (
    conversation_id TEXT NOT NULL, seq INTEGER NOT NULL, ordinal INTEGER, sender TEXT, event BLOB NOT NULL,
    PRIMARY KEY (conversation_id, seq)
) WITHOUT ROWID;
CREATE INDEX events_by_ordinal ON events (ordinal) WHERE ordinal IS NOT NULL;
"""
# A file of version n has had the first n of these; a new one gets them all, so that it is what an old one becomes.
_MIGRATIONS: Final = (
    _SCHEMA,
    "ALTER TABLE commands ADD COLUMN overtaken INTEGER NOT NULL DEFAULT 0",  # what was overtaken before is asked again, as it was
)
SCHEMA_VERSION: Final = len(_MIGRATIONS)
_STATE_FIELDS: Final = tuple(field.name for field in fields(ConversationState))


class SqliteStore:
    """One device's state in the file at `path`, created where it does not exist."""

    def __init__(self, path: str | Path) -> None:
        self._path = path
        self._connection: sqlite3.Connection | None = None
        self._ordinal = 0

    def load(self) -> Kept:
        with self._failures():
            return self._load()

    def _load(self) -> Kept:
        connection = self._open()
        device = dict(connection.execute("SELECT key, value FROM device"))
        consumed = int(device.get("consumed", 0))
        (last,) = connection.execute("SELECT max(ordinal) FROM events WHERE ordinal IS NOT NULL").fetchone()
        self._ordinal = max(last or 0, consumed)
        return Kept(
            user_id=device.get("user_id", ""),
            device_id=device.get("device_id", ""),
            synced="synced" in device,
            consumed=consumed,
            conversations=[
                ConversationState(**json.loads(state)) for (state,) in connection.execute("SELECT state FROM conversations")
            ],
            watermarks={
                (conversation, user): Watermarks(delivered, read)
                for conversation, user, delivered, read in connection.execute("SELECT * FROM watermarks")
            },
            commands=[
                StoredCommand(request_id, encoded, created_ms, bool(overtaken))
                for request_id, encoded, created_ms, overtaken in connection.execute(
                    "SELECT request_id, command, created_ms, overtaken FROM commands ORDER BY position"
                )
            ],
        )

    def commit(self, change: Change) -> None:
        connection = self._opened()
        ordinal = self._ordinal
        with self._failures(), connection:
            connection.execute("BEGIN")
            if change.appended:
                rows = []
                for event in change.appended:
                    ordinal += 1
                    rows.append(_event_row(event, ordinal))
                connection.executemany("INSERT OR REPLACE INTO events VALUES (?, ?, ?, ?, ?)", rows)
            if change.prepended:
                rows = [_event_row(event, None) for event in change.prepended]
                connection.executemany("INSERT OR IGNORE INTO events VALUES (?, ?, ?, ?, ?)", rows)
            for state in change.conversations.values():
                connection.execute("INSERT OR REPLACE INTO conversations VALUES (?, ?)", (state.conversation_id, _encode(state)))
            for (conversation, user), watermarks in change.watermarks.items():
                connection.execute("INSERT OR REPLACE INTO watermarks VALUES (?, ?, ?, ?)", (conversation, user, *watermarks))
            for command in change.commands_added:
                connection.execute("INSERT INTO commands (request_id, command, created_ms, overtaken) VALUES (?, ?, ?, ?)", command)
            for request_id in change.commands_overtaken:
                connection.execute("UPDATE commands SET overtaken = 1 WHERE request_id = ?", (request_id,))
            for request_id in change.commands_removed:
                connection.execute("DELETE FROM commands WHERE request_id = ?", (request_id,))
            self._commit_device(connection, change)
            for conversation, first_seq in change.trimmed:
                connection.execute(
                    "DELETE FROM events WHERE conversation_id = ? AND seq < ? AND (ordinal IS NULL OR ordinal <="
                    " (SELECT CAST(value AS INTEGER) FROM device WHERE key = 'consumed'))",
                    (conversation, first_seq),
                )
        self._ordinal = ordinal

    def _commit_device(self, connection: sqlite3.Connection, change: Change) -> None:
        values: dict[str, str] = {}
        if change.user_id:
            values |= {"user_id": change.user_id, "device_id": change.device_id}
        if change.synced:
            values["synced"] = "1"
        if change.consumed:
            values["consumed"] = str(change.consumed)
        if values:
            connection.executemany("INSERT OR REPLACE INTO device VALUES (?, ?)", values.items())

    def unconsumed(self, after_ordinal: int, limit: int) -> Sequence[tuple[int, events_pb2.Event]]:
        with self._failures():
            rows = self._opened().execute(
                "SELECT ordinal, event FROM events WHERE ordinal > ? ORDER BY ordinal LIMIT ?", (after_ordinal, limit)
            )
            return [(ordinal, events_pb2.Event.FromString(event)) for ordinal, event in rows]

    def events(self, conversation_id: str, first_seq: int, before_seq: int, limit: int) -> Sequence[events_pb2.Event]:
        with self._failures():
            rows = self._opened().execute(
                "SELECT event FROM events WHERE conversation_id = ? AND seq >= ? AND seq < ? ORDER BY seq DESC LIMIT ?",
                (conversation_id, first_seq, before_seq, limit),
            )
            return [events_pb2.Event.FromString(event) for (event,) in rows][::-1]

    def count_of_others(self, conversation_id: str, user_id: str, after_seq: int) -> int:
        with self._failures():
            row = self._opened().execute(
                "SELECT count(*) FROM events WHERE conversation_id = ? AND seq > ? AND sender != ?",
                (conversation_id, after_seq, user_id),
            )
            count: int = row.fetchone()[0]
            return count

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _opened(self) -> sqlite3.Connection:
        if self._connection is None:
            raise sqlite3.ProgrammingError("the store is not open")
        return self._connection

    @contextmanager
    def _failures(self) -> Iterator[None]:
        """Raise the disk's trouble as StoreError; our own mistakes stay what they are."""
        try:
            yield
        except (sqlite3.IntegrityError, sqlite3.ProgrammingError):
            raise
        except sqlite3.Error as error:
            raise StoreError(f"{self._path}: {error}") from error

    def _open(self) -> sqlite3.Connection:
        if self._connection is not None:
            return self._connection
        connection = sqlite3.connect(self._path, isolation_level=None, timeout=0.0)
        try:
            connection.execute("PRAGMA locking_mode = EXCLUSIVE")
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.execute("BEGIN IMMEDIATE")  # takes the lock, which EXCLUSIVE then keeps
            self._migrate(connection)
            connection.execute("COMMIT")
        except sqlite3.OperationalError as error:
            connection.close()
            if error.sqlite_errorcode in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                raise StoreInUseError(f"{self._path} is open in another process") from error
            raise
        except BaseException:
            connection.close()
            raise
        self._connection = connection
        return connection

    def _migrate(self, connection: sqlite3.Connection) -> None:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if not 0 <= version <= SCHEMA_VERSION:
            raise StoreMismatchError(f"{self._path} has schema {version}, this client knows {SCHEMA_VERSION}")
        if version == SCHEMA_VERSION:
            return
        for migration in _MIGRATIONS[version:]:
            for statement in migration.split(";\n"):
                connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")


def _encode(state: ConversationState) -> str:
    return json.dumps({name: getattr(state, name) for name in _STATE_FIELDS}, separators=(",", ":"))


def _event_row(event: events_pb2.Event, ordinal: int | None) -> tuple[str, int, int | None, str | None, bytes]:
    sender = event.actor_user_id if event.HasField("message") else None
    return event.conversation_id, event.seq, ordinal, sender, event.SerializeToString()
