"""The client's local store: every implementation keeps the same, in one transaction a step."""

import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import fields
from pathlib import Path

import pytest

from parley.api.v1.commands_pb2 import SendMessage
from parley.api.v1.events_pb2 import Event, MemberLeft
from parley_client import store_sqlite
from parley_client.conversation_state import ConversationState
from parley_client.errors import StoreError, StoreInUseError, StoreMismatchError
from parley_client.store import Change, Store, StoredCommand, Watermarks
from parley_client.store_memory import MemoryStore
from parley_client.store_sqlite import SqliteStore
from tests.unit.test_sqlite_database import file_size_limit

# As files of version 1 were made; never to be changed.
SCHEMA_1 = """
CREATE TABLE device (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE conversations (conversation_id TEXT PRIMARY KEY, state TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE watermarks (
    conversation_id TEXT NOT NULL, user_id TEXT NOT NULL, delivered_seq INTEGER NOT NULL, read_seq INTEGER NOT NULL,
    PRIMARY KEY (conversation_id, user_id)
) WITHOUT ROWID;
CREATE TABLE commands (
    position INTEGER PRIMARY KEY, request_id BLOB NOT NULL UNIQUE, command BLOB NOT NULL, created_ms INTEGER NOT NULL
);
CREATE TABLE events (
    conversation_id TEXT NOT NULL, seq INTEGER NOT NULL, ordinal INTEGER, sender TEXT, event BLOB NOT NULL,
    PRIMARY KEY (conversation_id, seq)
) WITHOUT ROWID;
CREATE INDEX events_by_ordinal ON events (ordinal) WHERE ordinal IS NOT NULL;
PRAGMA user_version = 1;
"""
Reopen = Callable[[], Store]


@pytest.fixture(params=["memory", "sqlite"])
def reopen(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Reopen]:
    """Return what closes the store and opens it again, as a restart of the app does."""
    stores: list[Store] = []

    def again() -> Store:
        if stores:
            stores[-1].close()
        if request.param == "sqlite":
            stores.append(SqliteStore(tmp_path / "device.db"))
        elif not stores:
            stores.append(MemoryStore())
        return stores[-1]

    yield again
    stores[-1].close()


def event(seq: int, actor: str = "bob", conversation: str = "x") -> Event:
    return Event(conversation_id=conversation, seq=seq, actor_user_id=actor, message=SendMessage(body=b"%d" % seq))


def test_a_new_store_is_nobodys(reopen: Reopen):
    kept = reopen().load()
    assert (kept.user_id, kept.synced, kept.consumed, kept.commands, kept.conversations) == ("", False, 0, [], [])


def test_everything_is_there_after_a_restart(reopen: Reopen):
    store = reopen()
    store.load()
    state = ConversationState("x", kind=2, title="t", intervals=[[1, 4], [9, 0]], held_seq=2, first_held_seq=1, read_seq=1)
    change = Change(user_id="alice", device_id="d1", synced=True)
    change.conversations["x"] = state
    change.watermarks["x", "bob"] = Watermarks(2, 1)
    change.commands_added += [StoredCommand(b"2" * 16, b"second\x00", 2), StoredCommand(b"1" * 16, b"first", 1)]
    change.appended += [event(1), event(2)]
    store.commit(change)
    store = reopen()
    kept = store.load()
    assert (kept.user_id, kept.device_id, kept.synced) == ("alice", "d1", True)
    assert kept.conversations == [state]
    assert kept.watermarks == {("x", "bob"): Watermarks(2, 1)}
    assert [command.encoded for command in kept.commands] == [b"second\x00", b"first"]  # as they were added
    assert [kept_event.seq for _, kept_event in store.unconsumed(0, 10)] == [1, 2]


def test_events_are_handed_out_from_the_consumed_ordinal_on(reopen: Reopen):
    store = reopen()
    store.load()
    store.commit(Change(appended=[event(1), event(1, conversation="y"), event(2)]))
    (first, _), *_ = unconsumed = list(store.unconsumed(0, 10))
    assert [(e.conversation_id, e.seq) for _, e in unconsumed] == [("x", 1), ("y", 1), ("x", 2)]
    assert [e.seq for _, e in store.unconsumed(first, 1)] == [1]
    store.commit(Change(consumed=first))
    store = reopen()
    kept = store.load()
    assert [(e.conversation_id, e.seq) for _, e in store.unconsumed(kept.consumed, 10)] == [("y", 1), ("x", 2)]
    store.commit(Change(appended=[event(3)]))
    ordinals = [ordinal for ordinal, _ in store.unconsumed(0, 10)]
    assert ordinals == sorted(set(ordinals))


def test_ordinals_are_not_used_again_after_everything_was_consumed_and_trimmed(reopen: Reopen):
    store = reopen()
    store.load()
    store.commit(Change(appended=[event(1), event(2)]))
    last = list(store.unconsumed(0, 10))[-1][0]
    store.commit(Change(consumed=last, trimmed=[("x", 3)]))
    store = reopen()
    assert store.load().consumed == last
    store.commit(Change(appended=[event(3)]))
    assert [e.seq for _, e in store.unconsumed(last, 10)] == [3]


def test_ranges_are_the_last_ones_below_a_seq(reopen: Reopen):
    store = reopen()
    store.load()
    store.commit(Change(appended=[event(seq) for seq in range(5, 9)]))
    store.commit(Change(prepended=[event(3), event(4)]))
    assert [e.seq for e in store.events("x", 1, 8, 3)] == [5, 6, 7]
    assert [e.seq for e in store.events("x", 4, 99, 99)] == [4, 5, 6, 7, 8]
    assert [e.seq for e in store.events("y", 1, 99, 9)] == []
    assert [e.seq for _, e in store.unconsumed(0, 99)] == [5, 6, 7, 8]  # history is never handed out


def test_messages_of_others_are_counted(reopen: Reopen):
    store = reopen()
    store.load()
    left = Event(conversation_id="x", seq=4, actor_user_id="bob", member_left=MemberLeft())
    store.commit(Change(appended=[event(1), event(2, "alice"), event(3), left]))
    assert store.count_of_others("x", "alice", 0) == 2
    assert store.count_of_others("x", "alice", 1) == 1
    assert store.count_of_others("y", "alice", 0) == 0


def test_a_settled_command_is_gone(reopen: Reopen):
    store = reopen()
    store.load()
    store.commit(Change(commands_added=[StoredCommand(b"1" * 16, b"a", 1)]))
    store.commit(Change(commands_removed=[b"1" * 16]))
    assert reopen().load().commands == []


def test_what_was_overtaken_is_known_after_a_restart(reopen: Reopen):
    store = reopen()
    store.load()
    first, second = commands = [StoredCommand(name * 16, b"a", 1) for name in (b"1", b"2")]
    store.commit(Change(commands_added=commands))
    store.commit(Change(commands_overtaken=[first.request_id]))
    assert reopen().load().commands == [first._replace(overtaken=True), second]


def test_what_one_step_adds_overtakes_and_settles_is_gone(reopen: Reopen):
    store = reopen()
    store.load()
    name = b"1" * 16
    store.commit(Change(commands_added=[StoredCommand(name, b"a", 1)], commands_overtaken=[name], commands_removed=[name]))
    assert reopen().load().commands == []


def test_trimming_spares_what_the_app_has_not_read(reopen: Reopen):
    store = reopen()
    store.load()
    store.commit(Change(appended=[event(seq) for seq in range(1, 6)]))
    (_, _), (second, _), *_ = store.unconsumed(0, 10)
    store.commit(Change(consumed=second, trimmed=[("x", 5)]))
    assert [e.seq for _, e in store.unconsumed(second, 10)] == [3, 4, 5]


@pytest.mark.parametrize("name", [field.name for field in fields(Change) if field.name != "device_id"])  # comes with a user
def test_whatever_a_step_changed_is_a_change(name: str):
    change = Change()
    assert not change
    kept = getattr(change, name)
    setattr(change, name, {"x": 1} if isinstance(kept, dict) else [1] if isinstance(kept, list) else 1)
    assert change


def test_a_failed_step_leaves_nothing_behind(tmp_path: Path):
    with closing(SqliteStore(tmp_path / "device.db")) as store:
        store.load()
        command = StoredCommand(b"1" * 16, b"a", 1)
        store.commit(Change(commands_added=[command]))
        with pytest.raises(sqlite3.IntegrityError):
            store.commit(Change(appended=[event(1)], commands_added=[command]))
        assert list(store.unconsumed(0, 10)) == []


def test_a_second_process_is_refused(tmp_path: Path):
    path = tmp_path / "device.db"
    script = "import sys; from parley_client import SqliteStore; SqliteStore(sys.argv[1]).load()"
    with closing(SqliteStore(path)) as store:
        store.load()
        other = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=False)
    assert StoreInUseError.__name__ in other.stderr
    again = SqliteStore(path)
    again.load()
    again.close()


def test_a_killed_process_loses_nothing_that_was_committed(tmp_path: Path):
    path = tmp_path / "device.db"
    script = (
        "import os, signal, sys\n"
        "from parley_client import SqliteStore\n"
        "from parley_client.store import Change, StoredCommand\n"
        "store = SqliteStore(sys.argv[1]); store.load()\n"
        "store.commit(Change(commands_added=[StoredCommand(b'1' * 16, b'a', 1)]))\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", script, str(path)], check=False)
    with closing(SqliteStore(path)) as store:
        assert [command.encoded for command in store.load().commands] == [b"a"]


def test_a_file_of_schema_1_gets_what_is_new_and_keeps_what_it_has(tmp_path: Path):
    path = tmp_path / "device.db"
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.executescript(SCHEMA_1)
        connection.execute("INSERT INTO commands (request_id, command, created_ms) VALUES (?, ?, ?)", (b"1" * 16, b"a", 7))
        connection.execute("INSERT INTO device VALUES ('user_id', 'alice')")
    for _ in range(2):  # once as it was, once as it is now
        with closing(SqliteStore(path)) as store:
            kept = store.load()
            assert (kept.user_id, kept.commands) == ("alice", [StoredCommand(b"1" * 16, b"a", 7)])
    with closing(SqliteStore(path)) as store:
        store.load()
        store.commit(Change(commands_overtaken=[b"1" * 16]))
    with closing(SqliteStore(path)) as store:
        assert store.load().commands == [StoredCommand(b"1" * 16, b"a", 7, True)]


def test_a_migration_that_fails_leaves_the_file_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "device.db"
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.executescript(SCHEMA_1)
    monkeypatch.setattr(store_sqlite, "_MIGRATIONS", (*store_sqlite._MIGRATIONS, "CREATE TABLE late (x);\nno SQL"))
    with pytest.raises(StoreError, match='near "no"'):
        SqliteStore(path).load()
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (1,)
        columns = connection.execute("SELECT name FROM pragma_table_info('commands')")
        assert [name for (name,) in columns] == ["position", "request_id", "command", "created_ms"]
        assert connection.execute("SELECT * FROM sqlite_master WHERE name = 'late'").fetchall() == []


def test_a_file_of_a_newer_client_is_left_alone(tmp_path: Path):
    path = tmp_path / "device.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version = 99")
    with pytest.raises(StoreMismatchError):
        SqliteStore(path).load()


def test_a_file_that_is_no_store_and_one_without_room_are_named(tmp_path: Path):
    (tmp_path / "garbage.db").write_bytes(b"garbage" * 1000)
    with pytest.raises(StoreError, match=r"garbage\.db: file is not a database"):
        SqliteStore(tmp_path / "garbage.db").load()
    with closing(SqliteStore(tmp_path / "device.db")) as store:
        store.load()
        store.commit(Change(appended=[event(1)]))
        with file_size_limit(1), pytest.raises(StoreError, match=r"device\.db: "):
            store.commit(Change(appended=[event(2)]))
        store.commit(Change(appended=[event(3)]))
        assert [kept.seq for _, kept in store.unconsumed(0, 10)] == [1, 3]
