"""What a store keeps in memory: it never says no to what was there, and it stays small."""

from random import Random

import pytest
from prometheus_client import CollectorRegistry

from chassis.clock import SystemClock
from chassis.embedded import open_embedded_engines
from chassis.eventlog import LogBatch, LogRecord
from chassis.timeline import Row
from parley.api.v1.commands_pb2 import SendMessage
from parley.api.v1.events_pb2 import Event
from parley_protocol.topics import topics
from services.store import rows, seen_keys
from services.store.apply import Applier
from services.store.config import StoreSettings
from services.store.decide import DEDUPE_MS, Fate
from services.store.loaded import Decodable, Loaded
from services.store.memory import PartitionMemory
from services.store.metrics import StoreMetrics
from services.store.recent import RecentEvents
from services.store.seen_keys import SeenKeys, key_hash
from services.store.state import ConversationState, Position
from tests.mutation import replace
from tests.unit.store_scene import T0, ack_record, command_record, group_scene, say

BUCKET_BITS = 4
KEYS_BYTES_MAX = 100_000  # of one sender, whatever he sends
ALL_LAYERS_KEYS = 43_520


def new_key(rng: Random) -> bytes:
    return rows.request_key("d1", rng.randbytes(16))


def check_that_nothing_is_forgotten(count: int) -> SeenKeys:
    """Add keys and ask for all of them in between: a wrong no would store a resend twice."""
    seen, rng = SeenKeys(), Random(count)
    hashes = [key_hash(new_key(rng)) for _ in range(count)]
    for number, hashed in enumerate(hashes):
        seen.add(hashed)
        assert seen.maybe(hashed)
        assert seen.maybe(hashes[number // 2])
    assert all(map(seen.maybe, hashes))
    return seen


def test_a_filter_never_denies_a_key_that_was_added():
    check_that_nothing_is_forgotten(ALL_LAYERS_KEYS)


def test_a_filter_that_probes_otherwise_than_it_adds_is_found(monkeypatch):
    original = SeenKeys.add
    monkeypatch.setattr(SeenKeys, "add", lambda self, hashed: original(self, hashed ^ 1 << 40))
    with pytest.raises(AssertionError):
        check_that_nothing_is_forgotten(100)


def test_a_filter_denies_nearly_every_other_key():
    """A needless maybe costs a read, no error. Also where a client counts instead of drawing its request ids."""
    seen, rng = check_that_nothing_is_forgotten(10_000), Random(0)
    assert sum(seen.maybe(key_hash(new_key(rng))) for _ in range(10_000)) < 1_000
    assert sum(seen.maybe(key_hash(rows.request_key("d1", number.to_bytes(16, "big")))) for number in range(10_000)) < 1_000


def test_all_of_a_request_id_counts():
    """Also where clients differ in a part of it only."""
    for shift in (0, 32, 64, 96):
        keys = [rows.request_key("d1", (number << shift).to_bytes(16, "big")) for number in range(1_000)]
        assert len(set(map(key_hash, keys))) == 1_000


def test_a_filter_stays_small_and_says_maybe_to_all_once_it_is_full():
    seen = check_that_nothing_is_forgotten(ALL_LAYERS_KEYS)
    assert sum(map(len, seen._layers)) < KEYS_BYTES_MAX
    assert [len(layer) for layer in seen._layers] == [1024, 4096, 16384, 65536]
    for number in (1, 2):  # the second one as well
        seen.add(key_hash(new_key(Random(number))))
        assert seen.full
        assert not seen._layers
    assert seen.maybe(key_hash(new_key(Random(2))))


def test_recent_events_stay_within_their_bytes_and_keep_the_newest():
    recent, rng = RecentEvents(10_000), Random(3)
    heads: dict[str, int] = {}
    for _ in range(2_000):
        name = f"c{rng.randint(0, 20)}"
        heads[name] = seq = heads.get(name, 0) + 1
        recent.add(name, seq, bytes(rng.randint(1, 300)))
        kept = [event for events in recent._conversations.values() for event in events.values()]
        assert recent._bytes == sum(map(len, kept)) <= 10_000
        assert all(len(events) <= 64 for events in recent._conversations.values())
        assert recent.get(name, seq) is not None
    recent.add("c0", 9_999, bytes(20_000))
    assert recent._bytes == 0, "an event larger than the cache is not kept"


def test_recent_events_are_64_a_conversation_and_each_counts_once():
    recent = RecentEvents(10_000)
    for seq in range(1, 101):
        recent.add("c", seq, bytes(10))
        recent.add("c", seq, bytes(20))  # stored twice by two workers: the same in truth, but nothing here relies on it
    assert [seq for seq in range(1, 101) if recent.get("c", seq) is not None] == list(range(37, 101))
    assert recent._bytes == 64 * 20


async def test_a_partitions_memory_is_bounded_in_conversations_and_in_what_each_keeps(monkeypatch):
    monkeypatch.setattr("services.store.loaded._FATES_KEPT", 5)
    monkeypatch.setattr("services.store.loaded._COUNTS_KEPT", 5)
    async with open_embedded_engines(None, topics={}, durable_topics=(), tables=rows.TABLES, clock=SystemClock()) as engines:
        kept = PartitionMemory(engines.timeline, epoch=1, partition=0, bucket_bits=4, max_conversations=3)
        for offset in range(50):
            kept.begin(offset)
            record = command_record("alice", SendMessage(body=b"x"), number=offset, to=f"u{offset % 7 if offset < 25 else 0}")
            key = rows.request_key(record.device_id, record.command.request_id)
            item = Decodable(offset, T0, record, key, key_hash(key))
            await kept.load([item])
            loaded = kept[record.conversation_id]
            loaded.remember("alice", item, Fate(Position(1, 0, offset), T0, b"", offset, offset, b""))
            loaded.counts[offset] = offset
            kept.settle([item])
            kept.finish(offset + 1)
            assert len(kept._conversations) <= 3
            assert all(len(one.counts) <= 5 and not one.events for one in kept._conversations.values())
            assert all(len(sender.fates) <= 5 for one in kept._conversations.values() for sender in one.senders.values())
        kept.begin(99)
        assert not kept._conversations, "after a jump nothing is known"


@pytest.mark.parametrize(
    ("owner", "function", "old", "new"),
    [
        (PartitionMemory, "finish", "while len(self._conversations) > self._max_conversations:", "while False:"),
        (Loaded, "settle", "_trim(self.counts, _COUNTS_KEPT)", "pass"),
        (Loaded, "settle", "_trim(sender.fates, _FATES_KEPT)", "pass"),
        (Loaded, "settle", "self.events.clear()", "self.events[0] = b''"),
        (PartitionMemory, "begin", "offset != self._next_offset", "False"),
    ],
)
async def test_a_planted_memory_that_keeps_everything_is_found(owner, function, old, new, monkeypatch):
    replace(monkeypatch, owner, function, old, new)
    with pytest.raises(AssertionError):
        await test_a_partitions_memory_is_bounded_in_conversations_and_in_what_each_keeps(monkeypatch)


@pytest.mark.parametrize("first_layer_keys", [1, 16, 512])
def test_layers_grow_by_four_and_end(first_layer_keys, monkeypatch):
    monkeypatch.setattr(seen_keys, "_FIRST_LAYER_KEYS", first_layer_keys)
    assert not check_that_nothing_is_forgotten(85 * first_layer_keys).full
    assert check_that_nothing_is_forgotten(85 * first_layer_keys + 1).full


WEEK_TURN_MS = 2900 * rows.WEEK_MS
HOUR_MS = 3_600_000


@pytest.mark.parametrize("forgets_between", [False, True])
async def test_a_resend_is_known_whatever_memory_was_loaded_when(forgets_between):
    """Loaded just after the turn of a week; then log time jumps back before it, where an older week counts as well."""
    async with open_embedded_engines(None, topics={}, durable_topics=(), tables=rows.TABLES, clock=SystemClock()) as engines:
        kept = PartitionMemory(engines.timeline, epoch=1, partition=0, bucket_bits=4, max_conversations=3)
        first, other = (command_record("alice", SendMessage(body=b"x"), number=number, to="bob") for number in (1, 2))
        keys = [rows.request_key(record.device_id, record.command.request_id) for record in (first, other)]
        conversation_id, written_ms = first.conversation_id, WEEK_TURN_MS - DEDUPE_MS - HOUR_MS // 2
        fate = Fate(Position(1, 0, 0), written_ms, b"h" * 16, 1, 1, b"")
        await engines.timeline.write([rows.fate_row(conversation_id, "alice", keys[0], fate, 1)])
        await kept.load([Decodable(1, WEEK_TURN_MS + 1, other, keys[1], key_hash(keys[1]))])
        kept.finish(2)
        if forgets_between:
            kept.drop()
        now_ms = written_ms + DEDUPE_MS - 1
        again = Decodable(2, now_ms, first, keys[0], key_hash(keys[0]))
        await kept.load([again])
        assert kept[conversation_id].known(again).fate == fate


async def fate_known_in_a_new_log(*, head_seq: int, at_seq: bytes, seq: int = 3) -> bool:
    """Tell whether an answer of the log before counts, where the state is at head_seq and this request said seq."""
    async with open_embedded_engines(None, topics={}, durable_topics=(), tables=rows.TABLES, clock=SystemClock()) as engines:
        record = command_record("alice", SendMessage(body=b"x"), number=1, to="bob")
        key, conversation_id = rows.request_key(record.device_id, record.command.request_id), record.conversation_id
        state = ConversationState(conversation_id, head_seq=head_seq, applied=Position(1, 3, 50), stamp=T0)
        event = Event(seq=seq, actor_user_id="alice", actor_device_id=record.device_id, request_id=at_seq)
        written = [
            *rows.state_rows(state),
            rows.fate_row(conversation_id, "alice", key, Fate(Position(1, 3, 60), T0, b"h" * 16, seq, seq, b""), T0),
            rows.event_row(conversation_id, seq, event.SerializeToString(), T0, 4),
        ]
        await engines.timeline.write(written)
        kept = PartitionMemory(engines.timeline, epoch=2, partition=0, bucket_bits=4, max_conversations=3)
        item = Decodable(0, T0 + 1000, record, key, key_hash(key))
        await kept.load([item])
        return kept[conversation_id].known(item).fate is not None


@pytest.mark.parametrize(
    ("head_seq", "at_seq", "counts"),
    [
        pytest.param(3, (1).to_bytes(16, "big"), True, id="it was applied"),
        pytest.param(2, (1).to_bytes(16, "big"), False, id="its state was never written"),
        pytest.param(3, (9).to_bytes(16, "big"), False, id="nor ever will be: another one has its seq"),
    ],
)
async def test_an_answer_of_an_older_log_counts_if_it_came_true(head_seq, at_seq, counts):
    assert await fate_known_in_a_new_log(head_seq=head_seq, at_seq=at_seq) is counts


@pytest.mark.parametrize("broken", ["fate.seq > loaded.state.head_seq", "event.request_id) != item.key"])
async def test_a_memory_that_believes_answers_of_a_log_that_is_over_is_found(broken, monkeypatch):
    source = "event.request_id) != item.key"
    patched = "event.request_id) == b''" if broken == source else "fate.seq > 10**9"
    replace(monkeypatch, PartitionMemory, "_forget_unfinished", broken, patched)
    taken = (9).to_bytes(16, "big") if broken == source else (1).to_bytes(16, "big")
    assert await fate_known_in_a_new_log(head_seq=3 if broken == source else 2, at_seq=taken)


async def test_what_was_read_for_records_that_change_nothing_is_not_kept(monkeypatch):
    """A device may tell again and again what it read long ago: each time an event says how many messages that was."""
    monkeypatch.setattr("services.store.loaded._COUNTS_KEPT", 5)
    scene = group_scene("bob")
    for number in range(2, 22):
        say(scene, "alice", number)
    conversation = scene.state.conversation_id
    scene.apply(ack_record("bob", conversation, read=21))
    acks = [ack_record("bob", conversation, read=seq) for seq in range(2, 21)]
    async with open_embedded_engines(None, topics=topics(1), durable_topics=(), tables=rows.TABLES, clock=SystemClock()) as engines:
        events = [rows.event_row(conversation, seq, event, 1, BUCKET_BITS) for seq, event in scene.events.items()]
        states = [
            Row(table, place, key, value, stamp)
            for (table, place, key), (stamp, value) in scene.tables.items()
            if table == rows.STATE
        ]
        await engines.timeline.write(events)
        await engines.timeline.write(states)
        store = Applier(
            StoreSettings(bucket_bits=BUCKET_BITS),
            log=engines.log,
            timeline=engines.timeline,
            recent=RecentEvents(0),
            clock=SystemClock(),
            metrics=StoreMetrics(CollectorRegistry()),
            rng=Random(0),
        )
        for offset, ack in enumerate(acks, 100):
            await store.apply(LogBatch(0, [LogRecord(offset, T0, conversation.encode(), ack.SerializeToString())]))
        loaded = store._memories[0][conversation]
        assert not loaded.events
        assert len(loaded.counts) <= 5
