"""Memory tells `decide` what the tables hold: a store that loads, forgets and starts over decides as one that knows everything."""

from dataclasses import replace
from random import Random

import pytest

from chassis.clock import SystemClock
from chassis.embedded import open_embedded_engines
from parley.api.v1.commands_pb2 import AddMembers, ChangeSettings, CreateGroup, RemoveMember, SendMessage
from parley.log.v1.records_pb2 import CommandRecord
from parley_protocol.ids import direct_conversation_id
from services.store import rows
from services.store.decide import Effect, decide
from services.store.memory import Decodable, Loaded, PartitionMemory
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


def history(rng: Random, count: int) -> list[tuple[CommandRecord, int, Effect | None]]:
    """Return records with their log times and what they cause where everything is known."""
    scenes = {place: Scene(place) for place in PLACES}
    found, now_ms = [], T0
    for offset in range(count):
        heads = {place: scene.state.head_seq for place, scene in scenes.items()}
        record = GROUP if not offset else rng.choice(found)[0] if rng.random() < 0.2 else some_record(rng, offset + 1, heads)
        now_ms += rng.choice((10, 1000, 3_600_000, -60_000, 4 * 24 * 3_600_000))
        scene = scenes[record.conversation_id]
        scene.now_ms = now_ms
        found.append((record, now_ms, scene.apply(record, offset=offset)))
    return found


def in_order(effect: Effect | None) -> Effect | None:
    """Return it with the recipients sorted: they come in the order of the state's members, which a load may change."""
    return replace(effect, recipients=sorted(effect.recipients)) if effect is not None else None


async def check(seed: int) -> None:
    rng = Random(seed)
    expected = history(rng, 120)
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
                effect = decide(
                    loaded.state, record, Position(1, 0, item.offset), item.time_ms, loaded.known(record.user_id, item.key)
                )
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
                    loaded.note_head()
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
            kept.settle(touched.values())
            offset = batch[-1].offset + 1
            kept.finish(offset)
            done = max(done, offset)
            if rng.random() < 0.1:
                offset = rng.randint(0, offset)  # a partition that is read again from its last commit


@pytest.mark.parametrize("seed", [1, 3, 6, 8, 11, 12])
async def test_what_is_loaded_is_what_the_tables_say(seed):
    await check(seed)
