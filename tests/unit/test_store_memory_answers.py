"""Memory tells `decide` what the tables hold: a store that loads, forgets and starts over decides as one that knows everything."""

from collections.abc import Sequence
from dataclasses import replace
from random import Random

import pytest

from chassis.clock import SystemClock
from chassis.embedded import open_embedded_engines
from parley.api.v1.commands_pb2 import AddMembers, ChangeSettings, CreateGroup, RemoveMember, SendMessage
from parley.log.v1.records_pb2 import CommandRecord
from parley_protocol.ids import direct_conversation_id
from services.store import rows
from services.store.decide import Effect, Fate, Known, counts, decide
from services.store.loaded import Decodable, Loaded
from services.store.memory import PartitionMemory
from services.store.seen_keys import key_hash
from services.store.state import Position
from tests.unit.store_scene import AB, T0, Scene, ack_record, command_record

BUCKET_BITS = 2
GROUP = command_record("alice", CreateGroup(title="t", member_user_ids=["bob", "carol"]), number=1)
PLACES = (AB, GROUP.conversation_id, direct_conversation_id("bob", "carol"), direct_conversation_id("alice", "alice"))
PEERS = {AB: ("alice", "bob"), PLACES[2]: ("bob", "carol"), PLACES[3]: ("alice", "alice")}


def some_record(rng: Random, number: int, heads: dict[str, int]) -> CommandRecord:
    place = rng.choice(PLACES)
    mark = rng.randint(0, heads[place] + 1)
    user = rng.choice(PEERS.get(place, ("alice", "bob", "carol")))
    if rng.random() < 0.3:
        return ack_record(user, place, delivered=mark, read=max(0, mark - rng.randint(0, 2)))
    if place in PEERS:
        peer = next((name for name in PEERS[place] if name != user), user)
        return command_record(user, SendMessage(body=b"x"), number=number, to=peer, seen_seq=mark)
    roll = rng.random()
    if roll < 0.1:
        return GROUP
    if roll < 0.2:
        action = rng.choice(
            (AddMembers(user_ids=["bob", "carol"]), RemoveMember(user_id="carol"), ChangeSettings(title=str(number)))
        )
        return command_record("alice", action, number=number, conversation=place)
    return command_record(user, SendMessage(body=b"x"), number=number, conversation=place, seen_seq=mark)


DAY_MS = 24 * 3_600_000


class AllKnowing(Scene):
    """A scene that knows every use of a request id, and answers with the last of those that count."""

    def __init__(self, conversation: str) -> None:
        super().__init__(conversation)
        self.uses: dict[tuple[str, bytes], list[Fate]] = {}

    def known(self, record: CommandRecord) -> Known:
        key = (record.user_id, rows.request_key(record.device_id, record.command.request_id))
        uses = [fate for fate in self.uses.get(key, ()) if counts(fate.log_ms, self.now_ms)]
        return super().known(record)._replace(fate=uses[-1] if uses else None)

    def apply(self, record: CommandRecord, *, offset: int | None = None) -> Effect | None:
        effect = super().apply(record, offset=offset)
        if effect is not None and effect.fate is not None:
            self.uses.setdefault((record.user_id, rows.request_key(record.device_id, record.command.request_id)), []).append(
                effect.fate
            )
        return effect


def history(rng: Random, count: int, weeks: Sequence[int]) -> list[tuple[CommandRecord, int, Effect | None]]:
    """Return records with their log times and what they cause where everything is known."""
    scenes = {place: AllKnowing(place) for place in PLACES}
    found, now_ms = [], T0
    for offset in range(count):
        heads = {place: scene.state.head_seq for place, scene in scenes.items()}
        record = GROUP if not offset else rng.choice(found)[0] if rng.random() < 0.2 else some_record(rng, offset + 1, heads)
        now_ms += rng.choice((10, 1000, 3_600_000, -60_000, 4 * DAY_MS, *weeks))
        scene = scenes[record.conversation_id]
        scene.now_ms = now_ms
        found.append((record, now_ms, scene.apply(record, offset=offset)))
    return found


def in_order(effect: Effect | None) -> Effect | None:
    """Return it with the recipients sorted: they come in the order of the state's members, which a load may change."""
    return replace(effect, recipients=sorted(effect.recipients)) if effect is not None else None


async def check(seed: int, weeks: Sequence[int]) -> None:
    rng = Random(seed)
    expected = history(rng, 120, weeks)
    async with open_embedded_engines(None, topics={}, durable_topics=(), tables=rows.TABLES, clock=SystemClock()) as engines:
        kept = PartitionMemory(engines.timeline, epoch=1, partition=0, bucket_bits=BUCKET_BITS, max_conversations=rng.randint(1, 4))
        offset = done = 0
        while offset < len(expected):
            batch = []
            for at in range(offset, min(len(expected), offset + rng.choice((1, 1, 2, 5)))):
                record, log_ms, _ = expected[at]
                key = rows.request_key(record.device_id, record.command.request_id) if record.HasField("command") else b""
                batch.append(Decodable(at, log_ms, record, key, key_hash(key) if key else 0))
            kept.begin(offset)
            await kept.load(batch)
            written, touched = [], dict[str, Loaded]()
            for item in batch:
                record, place = item.record, item.record.conversation_id
                loaded = kept[place]
                effect = decide(loaded.state, record, Position(1, 0, item.offset), item.time_ms, loaded.known(item))
                first = expected[item.offset][2]
                if item.offset >= done:
                    assert in_order(effect) == in_order(first), f"seed {seed}: record {item.offset}"
                elif effect is not None:
                    assert (effect.event, effect.own) == (b"", first.own if first else b""), (
                        f"seed {seed}: record {item.offset} again"
                    )
                if effect is None:
                    continue
                touched[place] = loaded
                if effect.event:
                    loaded.note_event(effect.seq, effect.event)
                    written.append(rows.event_row(place, effect.seq, effect.event, effect.stamp, BUCKET_BITS))
                if effect.fate is not None:
                    written.append(rows.fate_row(place, record.user_id, item.key, effect.fate, effect.stamp))
                    loaded.remember(record.user_id, item, effect.fate)
            for loaded in touched.values():
                if loaded.state.dirty:
                    written += [*rows.inbox_rows(loaded.state), *rows.state_rows(loaded.state)]
                    rows.clear_dirty(loaded.state)
            if written:
                await engines.timeline.write(written)
            kept.settle(batch)
            offset = batch[-1].offset + 1
            kept.finish(offset)
            done = max(done, offset)
            if rng.random() < 0.1:
                offset = rng.randint(0, offset)  # a partition that is read again from its last commit


@pytest.mark.parametrize("seed", [1, 3, 6, 8, 11, 12])
async def test_what_is_loaded_is_what_the_tables_say(seed):
    await check(seed, ())


@pytest.mark.parametrize("seed", range(6))
async def test_what_is_loaded_is_what_the_tables_say_where_weeks_pass_within_a_batch(seed):
    """A request id that is used again weeks later is another request; both may be in a batch that is read again."""
    await check(seed, (16 * DAY_MS, -17 * DAY_MS))


async def test_a_group_that_is_created_again_weeks_later_in_the_same_batch_answers_from_its_first_event():
    await check(3, (16 * DAY_MS,))


def fates_of(*uses: tuple[int, int]) -> list[Fate]:
    """Return what became of a request that was used at each of these offsets and log times."""
    return [Fate(Position(1, 0, offset), log_ms, b"h" * 16, offset + 1, offset + 1, b"") for offset, log_ms in uses]


async def answers(stored: Sequence[Fate], loaded_first: int, batch: Sequence[tuple[int, int]]) -> list[Fate | None]:
    """Return what is known of each of a message's records in a batch, once a record of loaded_first was loaded."""
    record = MESSAGE
    async with open_embedded_engines(None, topics={}, durable_topics=(), tables=rows.TABLES, clock=SystemClock()) as engines:
        key, place = rows.request_key(record.device_id, record.command.request_id), record.conversation_id
        await engines.timeline.write([rows.fate_row(place, record.user_id, key, fate, fate.log_ms) for fate in stored])
        kept = PartitionMemory(engines.timeline, epoch=1, partition=0, bucket_bits=BUCKET_BITS, max_conversations=1)
        other = command_record(record.user_id, SendMessage(body=b"o"), number=9, to="bob")
        other_key = rows.request_key(other.device_id, other.command.request_id)
        await kept.load([Decodable(batch[0][0] - 1, loaded_first, other, other_key, key_hash(other_key))])
        items = [Decodable(offset, log_ms, record, key, key_hash(key)) for offset, log_ms in batch]
        await kept.load([*items, Decodable(99, batch[-1][1] + 30 * DAY_MS, other, other_key, key_hash(other_key))])
        return [kept[place].known(item).fate for item in items]


MESSAGE = command_record("alice", SendMessage(body=b"x"), number=1, to="bob")


async def test_each_record_of_a_batch_that_is_read_again_finds_what_became_of_itself():
    uses = (5, T0), (6, T0 + 16 * DAY_MS), (7, T0)  # the last one after a jump back, where the second is too far ahead
    stored = fates_of(*uses[:2])
    assert await answers(stored, T0, uses) == [stored[0], stored[1], stored[0]]


async def test_a_resend_is_known_in_a_batch_at_whose_end_weeks_have_passed():
    stored = fates_of((5, T0))
    assert await answers(stored, T0, [(8, T0 + DAY_MS)]) == stored


async def test_a_resend_is_known_where_log_time_has_jumped_back_for_weeks():
    stored = fates_of((5, T0))
    assert await answers(stored, T0 + 40 * DAY_MS, [(8, T0 + DAY_MS)]) == stored


async def test_a_request_used_anew_within_a_batch_is_not_forgotten_where_log_time_returns_to_its_first_use():
    async with open_embedded_engines(None, topics={}, durable_topics=(), tables=rows.TABLES, clock=SystemClock()) as engines:
        key, place = rows.request_key(MESSAGE.device_id, MESSAGE.command.request_id), MESSAGE.conversation_id
        kept = PartitionMemory(engines.timeline, epoch=1, partition=0, bucket_bits=BUCKET_BITS, max_conversations=1)
        times = (T0, T0 - 16 * DAY_MS, T0 + DAY_MS)
        first, anew, again = (Decodable(offset, log_ms, MESSAGE, key, key_hash(key)) for offset, log_ms in enumerate(times, 5))
        await kept.load([first, anew, again])
        fates = fates_of((5, times[0]), (6, times[1]))
        kept[place].remember("alice", first, fates[0])
        assert kept[place].known(anew).fate is None
        kept[place].remember("alice", anew, fates[1])
        assert kept[place].known(again).fate == fates[0]
