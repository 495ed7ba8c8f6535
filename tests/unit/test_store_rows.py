"""Where rows lie and what they hold: names and keys that stored data depends on, both ways, and in pieces that engines take."""

from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from chassis.timeline import PARTITION_WRITE_BYTES, Point, Row
from parley.api.v1.commands_pb2 import AddMembers, ChangeSettings, Leave
from parley.store.v1.rows_pb2 import HeadRow
from services.store import rows
from services.store.decide import DEDUPE_MS, Fate
from services.store.rows import pieces
from services.store.state import NO_KIND, ConversationState, Position
from tests.unit.store_scene import AB, T0, Scene, ack_record, act, command_record, group_scene, say, text

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
TURN_MS = 2900 * 7 * DAY_MS  # a week begins
MOMENTS = (TURN_MS, TURN_MS + 3 * DAY_MS + 1, TURN_MS + 7 * DAY_MS - 1)


def row(size: int) -> Row:
    return Row("timeline", "c/0", b"12345678", bytes(size), 1)


@given(st.lists(st.integers(0, 300)))
@example([92, 92])
@example([300])
def test_pieces_are_all_rows_in_order_and_none_is_too_large(sizes: list[int]) -> None:
    rows = [row(size) for size in sizes]
    found = list(pieces(rows, 200))
    assert all(found), "none is empty"
    assert [row for piece in found for row in piece] == rows
    assert all(len(piece) == 1 or sum(len(row.key) + len(row.value) for row in piece) <= 200 for piece in found)
    for piece, following in pairwise(found):  # no more of them than are needed
        assert sum(len(row.key) + len(row.value) for row in [*piece, following[0]]) > 200


def test_a_poll_of_the_largest_messages_is_cut_and_an_ordinary_one_is_not() -> None:
    assert [len(piece) for piece in pieces([row(100)] * 500)] == [500]
    cut = list(pieces([row(16 * 1024)] * 500))
    assert len(cut) == 4
    assert all(sum(len(row.key) + len(row.value) for row in piece) <= PARTITION_WRITE_BYTES for piece in cut)
    assert list(pieces([])) == []


def test_rows_lie_where_they_lay_when_they_were_written():
    """Another name or key would lose what is stored."""
    assert rows.TABLES == ("conversation_state", "timeline", "dedupe", "inbox", "partition_stop")
    fate = Fate(Position(1, 0, 0), TURN_MS - 1, b"h" * 16, 1, 1, b"")
    assert rows.fate_row("c", "alice", rows.request_key("d1", b"r"), fate, 5)[:3] == ("dedupe", "c/alice/2899", b"d1\0r")
    fate = fate._replace(log_ms=TURN_MS)
    assert rows.fate_row("c", "alice", b"k", fate, 5)[:3] == ("dedupe", "c/alice/2900", b"k")
    assert rows.timeline_point("c", 1023, rows.BUCKET_BITS) == Point("timeline", "c/0", b"\0\0\0\0\0\0\x03\xff")
    assert rows.event_row("c", 1024, b"e", 5, rows.BUCKET_BITS) == Row("timeline", "c/1", b"\0\0\0\0\0\0\x04\0", b"e", 5)
    scene = Scene(AB)
    scene.apply(command_record("alice", text(), number=1, to="bob"))
    assert set(scene.tables) == {
        *(("conversation_state", AB, key) for key in (b"", b"alice", b"bob")),
        *(("inbox", user, AB.encode()) for user in ("alice", "bob")),
    }


@pytest.mark.parametrize(("seq", "rejection"), [(7, b""), (0, b"no")])
def test_a_fate_is_read_as_it_was_written_and_lies_for_21_days(seq, rejection):
    fate = Fate(Position(2, 3, 40), T0, b"h" * 16, seq, 5, rejection)
    stored = rows.fate_row("c", "alice", b"k", fate, 99)
    assert rows.fate_of(stored.value) == fate
    assert (stored.stamp, stored.ttl_seconds) == (99, 21 * 24 * 3600)


@pytest.mark.parametrize("now_ms", MOMENTS)
def test_a_request_that_counts_is_looked_for_where_it_lies(now_ms):
    """It counts for two weeks; and log time may have been ahead by a week when it was written."""
    places = rows.dedupe_partitions("c", "alice", now_ms)
    for written_ms in range(now_ms - DEDUPE_MS, now_ms + 7 * DAY_MS + 1, HOUR_MS):
        assert rows.dedupe_partition("c", "alice", written_ms // rows.WEEK_MS) in places
    assert len(places) == 4


@pytest.mark.parametrize(
    ("now_ms", "weeks"), [(TURN_MS, 5), (TURN_MS + DAY_MS - 1, 5), (TURN_MS + DAY_MS, 4), (TURN_MS + 7 * DAY_MS - 1, 4)]
)
def test_a_senders_requests_are_looked_for_once_for_as_long_as_they_lie_nowhere_else(now_ms, weeks):
    """Also for what counts where log time jumps back, by a day at most."""
    places = rows.sender_partitions("c", "alice", now_ms)
    assert places == [f"c/alice/{2901 - back}" for back in range(weeks)]
    first_ms, end_ms = rows.sender_span(now_ms)
    assert first_ms <= now_ms - DAY_MS < now_ms < end_ms
    for at_ms, are_all in ((first_ms - 1, False), (first_ms, True), (end_ms - 1, True), (end_ms, False)):
        assert (set(rows.dedupe_partitions("c", "alice", at_ms)) <= set(places)) is are_all


def test_what_has_no_rows_is_what_an_empty_row_says():
    """A field that is nothing by itself must be what the row leaves out."""
    nothing = ConversationState("c")
    assert rows.state_of("c", []) == nothing == rows.state_of("c", [(rows.HEAD_KEY, HeadRow().SerializeToString())])
    assert (nothing.kind, nothing.exists, nothing.head_seq, nothing.present) == (NO_KIND, False, 0, [])
    assert not nothing.has_applied(Position(1, 0, 0))


def test_what_was_written_is_what_is_read_and_nothing_is_left_to_write():
    """Each scene's tables must say all of the state after every record; what is read back must be all of it, too."""
    direct, group = Scene(AB), group_scene("bob", "carol", title="team")
    for number in range(1, 4):
        say(direct, "alice", number)
    say(direct, "bob", 4, seen_seq=2)
    act(group, "alice", 2, ChangeSettings(title="crew"))
    act(group, "bob", 3, Leave())
    say(group, "carol", 4)
    act(group, "alice", 5, AddMembers(user_ids=["dave"]))
    for scene in (direct, group):
        scene.load()
        state = scene.state
        assert not state.dirty
        assert [row.key for row in rows.state_rows(state)] == [rows.HEAD_KEY]
        assert rows.inbox_rows(state) == []


def test_an_inbox_row_is_written_with_the_newest_stamp_of_a_batch(monkeypatch):
    """Several records are decided before anything is written: a lower stamp would let an older row win."""
    scene = group_scene("bob", "carol")
    state = scene.state
    monkeypatch.setattr(scene, "write", lambda: None)
    say(scene, "alice", 2)
    scene.apply(ack_record("bob", state.conversation_id, delivered=2, read=2))
    of_all, own = state.dirty_inboxes_of_all, state.stamp
    assert {row.partition: row.stamp for row in rows.inbox_rows(state)} == {"alice": of_all, "bob": own, "carol": of_all}
    say(scene, "alice", 3)
    assert {row.partition: row.stamp for row in rows.inbox_rows(state)} == dict.fromkeys(state.members, state.stamp)


def test_an_ack_writes_no_inbox_row_but_the_readers():
    scene = group_scene("bob", "carol")
    before = dict(scene.tables)
    scene.apply(ack_record("bob", scene.state.conversation_id, delivered=1, read=1))
    assert {place for place, stored in scene.tables.items() if before[place] != stored} == {
        (rows.STATE, scene.state.conversation_id, rows.HEAD_KEY),
        (rows.STATE, scene.state.conversation_id, b"bob"),
        (rows.INBOX, "bob", scene.state.conversation_id.encode()),
    }
