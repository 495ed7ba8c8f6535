"""What memory asks the tables for: each thing once, and nothing that it knows."""

from collections.abc import Iterable, Sequence

import pytest

from chassis.timeline import Cell, Point, Row
from parley.api.v1.commands_pb2 import SendMessage
from parley.api.v1.events_pb2 import Event
from parley.log.v1.records_pb2 import CommandRecord
from services.store import memory, rows
from services.store.decide import DEDUPE_MS, Fate
from services.store.loaded import Decodable, Loaded, Sender
from services.store.memory import PartitionMemory
from services.store.seen_keys import SeenKeys, key_hash
from services.store.state import DIRECT, GROUP, ConversationState, Position
from tests.unit.store_scene import AB, T0, ack_record, command_record

DAY_MS = 24 * 3_600_000
WEEKS = 10 * rows.WEEK_MS


class Tables:
    """A timeline that notes what is read of it."""

    def __init__(self, written: Iterable[Row] = ()) -> None:
        self.values = {Point(row.table, row.partition, row.key): row.value for row in written}
        self.reads: list[tuple[object, ...]] = []

    async def read_partitions(self, table: str, partitions: Sequence[str], limit: int | None = None) -> dict[str, list[Cell]]:
        self.reads.append((table, partitions, limit))
        cells: dict[str, list[Cell]] = {}
        for point, value in sorted(self.values.items()):
            if point.table == table and point.partition in partitions:
                cells.setdefault(point.partition, []).append(Cell(point.key, value))
        return {partition: found[:limit] for partition, found in cells.items()}

    async def read_points(self, points: Sequence[Point]) -> dict[Point, bytes]:
        self.reads.append(tuple(points))
        return {point: self.values[point] for point in points if point in self.values}

    def new_reads(self) -> list[tuple[object, ...]]:
        """Return what was read since this was asked last."""
        reads, self.reads = self.reads, []
        return reads


def memory_of(tables: Tables, *, epoch: int = 1, max_conversations: int = 3) -> PartitionMemory:
    return PartitionMemory(tables, epoch=epoch, partition=0, bucket_bits=4, max_conversations=max_conversations)


def item_of(record: CommandRecord, offset: int, log_ms: int = T0) -> Decodable:
    key = rows.request_key(record.device_id, record.command.request_id) if record.HasField("command") else b""
    return Decodable(offset, log_ms, record, key, key_hash(key) if key else 0)


def message(number: int, log_ms: int = T0, *, to: str = "bob") -> Decodable:
    """Return alice's message of this number, at the offset of that number."""
    return item_of(command_record("alice", SendMessage(body=b"x"), number=number, to=to), number, log_ms)


def fate_at(offset: int, log_ms: int = T0) -> Fate:
    return Fate(Position(1, 0, offset), log_ms, b"h" * 16, 0, 0, b"refused")


async def test_each_thing_is_read_once():
    tables = Tables()
    kept = memory_of(tables)
    keys = rows.sender_partitions(AB, "alice", T0)
    await kept.load([message(1), message(2)])
    assert tables.new_reads() == [(rows.STATE, [AB], None), (rows.DEDUPE, keys, memory._KEYS_LOADED_MAX + 1)]
    await kept.load([message(3), item_of(ack_record("alice", AB, read=1), 4), item_of(ack_record("bob", AB, read=1), 5)])
    assert tables.new_reads() == []
    kept[AB].remember("alice", message(3), fate_at(3))
    await kept.load([message(3)])
    assert tables.new_reads() == [], "what was decided lately is known"
    assert kept[AB].known(message(3)).fate == fate_at(3)


async def test_what_was_decided_and_is_forgotten_is_asked_for(monkeypatch):
    monkeypatch.setattr("services.store.loaded._FATES_KEPT", 0)
    tables = Tables()
    kept = memory_of(tables)
    await kept.load([message(1)])
    kept[AB].remember("alice", message(1), fate_at(1))
    kept.settle([message(1)])
    tables.new_reads()
    await kept.load([message(1)])
    places = rows.dedupe_partitions(AB, "alice", T0)
    assert tables.new_reads() == [tuple(Point(rows.DEDUPE, place, message(1).key) for place in places)]


async def test_a_sender_is_read_anew_where_other_weeks_count():
    tables = Tables()
    kept = memory_of(tables)
    first_ms, end_ms = rows.sender_span(T0)
    await kept.load([message(1)])
    kept[AB].remember("alice", message(1), fate_at(1))
    kept.settle([message(1)])
    tables.new_reads()
    await kept.load([message(2, first_ms), message(3, end_ms - 1)])
    assert tables.new_reads() == []
    await kept.load([message(4, end_ms)])
    limit = memory._KEYS_LOADED_MAX + 1
    assert tables.new_reads() == [(rows.DEDUPE, rows.sender_partitions(AB, "alice", end_ms), limit)]
    assert kept[AB].fate_of(message(1)) == fate_at(1), "what was decided is known still"
    await kept.load([message(5, first_ms - 1)])
    assert tables.new_reads() == [(rows.DEDUPE, rows.sender_partitions(AB, "alice", first_ms - 1), limit)]


async def test_acks_have_no_part_in_what_is_read_of_a_sender():
    tables = Tables()
    await memory_of(tables).load([message(1), item_of(ack_record("alice", AB, read=1), 2, T0 + WEEKS)])
    assert tables.new_reads()[1][1] == rows.sender_partitions(AB, "alice", T0)


@pytest.mark.parametrize("stored", [3, 4])
async def test_a_sender_with_more_keys_than_are_loaded_is_asked_about_each(stored, monkeypatch):
    monkeypatch.setattr(memory, "_KEYS_LOADED_MAX", 3)
    tables = Tables(rows.fate_row(AB, "alice", message(number).key, fate_at(number), 1) for number in range(1, stored + 1))
    kept = memory_of(tables)
    await kept.load([message(9)])
    seen = kept[AB].senders["alice"].seen
    assert seen.full is (stored == 4)
    assert len(tables.new_reads()) == (3 if seen.full else 2)
    await kept.load([message(stored)])
    assert kept[AB].fate_of(message(stored)) == fate_at(stored)


async def test_of_what_is_stored_that_answers_which_counts_and_is_not_of_a_later_record():
    now_ms = 2900 * rows.WEEK_MS + 3 * DAY_MS
    fates = fate_at(5, now_ms), fate_at(6, now_ms - DEDUPE_MS - 1), fate_at(30, now_ms + 6 * DAY_MS)
    tables = Tables(rows.fate_row(AB, "alice", message(20).key, fate, 1) for fate in fates)
    assert {partition for _, partition, _ in tables.values} <= set(rows.dedupe_partitions(AB, "alice", now_ms)), "all are read"
    kept = memory_of(tables)
    await kept.load([message(20, now_ms)])
    assert kept[AB].fate_of(message(20, now_ms)) == fates[0]


def of_the_log_before(seq: int, event: Event | None) -> Tables:
    """Return tables in which alice's message 9 was answered before the log began anew, in a conversation whose head is seq 2."""
    state = ConversationState(AB, kind=DIRECT, head_seq=2, message_count=2, applied=Position(1, 0, 8), stamp=1)
    fate = Fate(Position(1, 0, 9), T0, b"h" * 16, seq, seq, b"")
    written = [*rows.state_rows(state), rows.fate_row(AB, "alice", message(9).key, fate, 1)]
    if event is not None:
        written.append(rows.event_row(AB, seq, event.SerializeToString(), 1, 4))
    return Tables(written)


async def test_a_refusal_of_the_log_before_counts_and_needs_no_event():
    tables = of_the_log_before(0, None)
    kept = memory_of(tables, epoch=2)
    await kept.load([message(9)])
    assert kept[AB].fate_of(message(9)) is not None
    assert len(tables.new_reads()) == 3, "state, sender, answer"


async def test_what_was_accepted_in_the_log_before_counts_where_its_own_event_is_stored():
    event = Event(actor_user_id="alice", actor_device_id="d1", request_id=message(9).record.command.request_id)
    of_another = Event(actor_user_id="bob", actor_device_id="d1", request_id=event.request_id)
    for stored, counts in ((event, True), (of_another, False), (None, False)):
        kept = memory_of(of_the_log_before(2, stored), epoch=2)
        await kept.load([message(9)])
        assert (kept[AB].fate_of(message(9)) is not None) is counts


async def test_the_count_at_the_head_is_known_when_the_head_moves_on():
    state = ConversationState(AB, kind=GROUP, head_seq=5, message_count=4, applied=Position(1, 0, 8), stamp=1)
    tables = Tables(rows.state_rows(state))
    kept = memory_of(tables)
    await kept.load([item_of(ack_record("alice", AB, read=5), 9)])
    assert len(tables.new_reads()) == 1
    assert (kept[AB].plain_seq, kept[AB].counts) == (0, {5: 4})


async def test_the_counts_of_events_are_read_that_are_not_known():
    state = ConversationState(AB, kind=GROUP, head_seq=6, message_count=4, applied=Position(1, 0, 8), stamp=1)
    events = [rows.event_row(AB, seq, Event(message_count=seq - 1).SerializeToString(), 1, 4) for seq in range(1, 7)]
    tables = Tables([*rows.state_rows(state), *events])
    kept = memory_of(tables)
    acks = [item_of(ack_record("alice", AB, read=max(0, mark)), 10 + mark) for mark in range(-1, 8)]
    await kept.load(acks[:1])
    kept[AB].plain_seq, kept[AB].counts[4] = 2, 3
    tables.new_reads()
    await kept.load([*acks, *acks])
    assert tables.new_reads() == [tuple(rows.timeline_point(AB, seq, 4) for seq in (3, 5))]
    assert kept[AB].counts == {3: 2, 4: 3, 5: 4, 6: 4}
    kept.settle(acks)
    await kept.load(acks)
    assert tables.new_reads() == []


async def test_an_event_is_read_for_the_record_that_caused_it_and_for_no_resend():
    state = ConversationState(AB, kind=DIRECT, head_seq=2, message_count=2, applied=Position(1, 0, 9), stamp=1)
    tables = Tables([*rows.state_rows(state), rows.event_row(AB, 2, b"", 1, 4)])
    kept = memory_of(tables)
    await kept.load([message(9)])
    kept[AB].remember("alice", message(9), Fate(Position(1, 0, 9), T0, b"h" * 16, 2, 2, b""))
    tables.new_reads()
    await kept.load([message(9)._replace(offset=12)])
    assert tables.new_reads() == []
    await kept.load([message(9)])
    assert tables.new_reads() == [(rows.timeline_point(AB, 2, 4),)]
    assert kept[AB].events == {2: b""}


async def test_nothing_of_a_batch_is_kept_but_the_newest_fates_and_counts(monkeypatch):
    monkeypatch.setattr("services.store.loaded._FATES_KEPT", 3)
    monkeypatch.setattr("services.store.loaded._COUNTS_KEPT", 2)
    kept = memory_of(Tables())
    batch = [message(number) for number in range(1, 6)]
    await kept.load(batch)
    loaded = kept[AB]
    for count in range(1, 6):
        item = batch[count - 1]
        loaded.remember("alice", item, fate_at(count, T0 - WEEKS))
        loaded.remember("alice", item, fate_at(count))
        loaded.answers[count], loaded.events[count], loaded.counts[count] = fate_at(count), b"event", count
        kept.settle(batch)
        assert (loaded.answers, loaded.events, loaded.replaced) == ({}, {}, {})
        assert list(loaded.counts) == list(range(1, count + 1))[-2:]
        assert list(loaded.senders["alice"].fates) == [item.key for item in batch[:count]][-3:]


async def test_the_conversations_that_were_active_last_are_kept():
    kept = memory_of(Tables(), max_conversations=2)
    names = "bob", "carol", "dave"
    places = [message(1, to=name).record.conversation_id for name in names]
    for number, name in enumerate(("bob", "carol", "bob", "dave")):
        await kept.load([message(number, to=name)])
        kept.finish(number + 1)
        assert len(kept._conversations) == min(2, number + 1)
    assert list(kept._conversations) == [places[0], places[2]]


def test_a_batch_follows_where_the_last_one_ended():
    kept = memory_of(Tables())
    assert not kept.follows(0)
    assert kept.stops == {}
    kept.finish(7)
    assert [offset for offset in range(5, 10) if kept.follows(offset)] == [7]
    kept.drop()
    assert not kept.follows(7)


def test_counts_are_kept_from_the_first_event_on_that_is_no_message():
    loaded = Loaded(ConversationState(AB, head_seq=3, message_count=3))
    loaded.note_head()
    assert (loaded.plain_seq, loaded.counts) == (3, {})
    loaded.state.head_seq = 4
    loaded.note_event(4, b"renamed")
    assert (loaded.plain_seq, loaded.counts, loaded.events) == (3, {4: 3}, {})
    assert [loaded.count_at(seq) for seq in range(1, 5)] == [1, 2, 3, 3]


def test_the_newest_use_of_a_request_that_counts_is_what_became_of_it():
    item = message(20, T0)
    loaded = Loaded(ConversationState(AB), senders={"alice": Sender(SeenKeys(), T0, T0 + WEEKS)})
    for fate in fate_at(5), fate_at(6), fate_at(7, T0 - WEEKS):
        loaded.remember("alice", item, fate)
    assert loaded.fate_of(item) == fate_at(6), "the last one is too old"
    assert loaded.senders["alice"].seen.maybe(item.key_hash)
    loaded.answers[item.offset] = fate_at(8)
    assert loaded.fate_of(item) == fate_at(8)
    loaded.remember("alice", item, fate_at(9))
    assert loaded.fate_of(item) == fate_at(9)
