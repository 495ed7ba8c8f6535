"""Who gets what of a batch, by whose slot it is: nothing is lost, nothing is told twice, a user's events keep their order."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from random import Random
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from chassis.embedded import open_embedded_engines
from chassis.eventlog import LogEntry
from chassis.inprocess import InProcessChannel, InProcessServer
from chassis.registry import Epoch, Holder, Instance
from chassis.testing.virtual_loop import VirtualClock, run_virtual
from parley.gateway.v1.gateway_service_pb2 import DeliverRequest, DeliverResponse, NoteOwnersRequest, NoteOwnersResponse, SlotEpochs
from parley.gateway.v1.gateway_service_pb2_grpc import GatewayServiceServicer, add_GatewayServiceServicer_to_server
from parley.log.v1.records_pb2 import EventBatch, EventRecord, OfflineBatch
from parley_protocol.slots import fingerprint, slot_key, slot_of
from parley_protocol.topics import EVENTS, OFFLINE
from services.router.app import open_router
from services.router.config import RouterSettings
from services.router.slots import Move, SlotTable, refused_of

COUNT = 4
USERS = [f"u{number}" for number in range(12)]
users = st.sampled_from(USERS)
owners = st.lists(st.sampled_from(["", "g1", "g2", "g3"]), min_size=COUNT, max_size=COUNT)
records = st.builds(
    EventRecord,
    seq=st.integers(1, 100),
    user_id=users,
    device_id=st.just("phone"),
    session_id=st.just("s1"),
    gateway_id=st.sampled_from(["", "g1", "g2", "g9"]),
    own=st.sampled_from([b"", b"own"]),
    actor=st.sampled_from([b"", b"actor"]),
    shared=st.just(b"shared"),
    recipients=st.lists(users, unique=True),
    wakes=st.booleans(),
)


def view(names: list[str], session: str = "s") -> dict[str, Holder]:
    return {slot_key(slot): Holder(name, Epoch(f"{session}-{name}", slot)) for slot, name in enumerate(names) if name}


def epochs_of(stamps: Iterable[SlotEpochs]) -> dict[int, Epoch]:
    return {slot: Epoch(one.session_id, index) for one in stamps for slot, index in zip(one.slots, one.lock_indexes, strict=True)}


def table(names: list[str]) -> SlotTable:
    made = SlotTable(COUNT)
    made.on_holders(view(names))
    return made


def about(event: EventRecord) -> EventRecord:
    """Return what of an event is for nobody in particular."""
    bare = EventRecord()
    bare.CopyFrom(event)
    for name in ("recipients", "shared", "own", "actor"):
        bare.ClearField(name)
    return bare


@given(owners, st.lists(records, max_size=8))
def test_each_user_s_events_go_to_the_owner_of_his_slot_once_and_in_order(names: list[str], events: list[EventRecord]):
    for number, event in enumerate(events):
        event.conversation_id = str(number)
    parts, homeless = table(names).split(events)
    got = {name: part.events for name, part in parts.items()} | {"": homeless}
    for cuts in got.values():
        assert [int(cut.conversation_id) for cut in cuts] == sorted(int(cut.conversation_id) for cut in cuts)
    for event in events:
        cuts = [
            (name, cut) for name, events_here in got.items() for cut in events_here if cut.conversation_id == event.conversation_id
        ]
        told = [(user, name) for name, cut in cuts for user in cut.recipients]
        assert sorted(told) == sorted((user, names[slot_of(user, COUNT)]) for user in event.recipients)
        assert all(cut.shared == (b"shared" if cut.recipients else b"") for _, cut in cuts) or len(cuts) == 1
        assert all(about(cut) == about(event) for _, cut in cuts)
        home = names[slot_of(event.user_id, COUNT)]
        if event.actor:
            assert [name for name, cut in cuts if cut.actor] == [home]
        sole = len({*names}) == 1 and home
        assert all(cut.recipients or cut.own or cut.actor for _, cut in cuts) or sole
        if event.own:  # if there is one gateway alone, where he asked is gone
            expected = {home} if sole or not event.gateway_id else {home, event.gateway_id}
            assert {name for name, cut in cuts if cut.own} == expected


@given(owners, st.lists(records, max_size=8))
def test_a_frame_names_the_epochs_of_all_its_users(names: list[str], events: list[EventRecord]):
    made = table(names)
    parts, _ = made.split(events)
    for name, part in parts.items():
        mine = {slot: Epoch(f"s-{name}", slot) for slot, owner in enumerate(names) if owner == name}
        assert part.all_slots == (fingerprint(mine) if len(mine) == COUNT else 0)
        stamped = epochs_of(made.stamps(part.slots))
        assert stamped.items() <= mine.items()
        assert not part.all_slots or stamped == mine
        needed = {slot_of(user, COUNT) for event in part.events for user in event.recipients}
        assert needed <= stamped.keys()


def test_a_free_slot_keeps_its_last_owner_and_a_move_is_told():
    made = table(["g1", "g1", "g2", "g2"])
    assert made.on_holders(view(["", "g1", "g3", "g2"])) == [
        Move(2, Holder("g2", Epoch("s-g2", 2)), Holder("g3", Epoch("s-g3", 2)))
    ]
    assert made.owner_of(0) == Holder("g1", Epoch("s-g1", 0))
    assert made.on_holders({}) == []
    assert made.owner_of(2) == Holder("g3", Epoch("s-g3", 2))


def test_a_gateway_s_word_counts_for_what_it_was_believed_to_own():
    made = table(["g1", "g1", "g2", ""])
    news = [
        SlotEpochs(owner_id="g1", session_id="new", slots=[0], lock_indexes=[9]),
        SlotEpochs(owner_id="g3", session_id="x", slots=[1, 2, 3], lock_indexes=[7, 7, 7]),
    ]
    assert made.on_refused("g1", [0, 1, 2], news)
    assert [made.owner_of(slot) for slot in range(COUNT)] == [
        Holder("g1", Epoch("new", 9)), Holder("g3", Epoch("x", 7)), Holder("g2", Epoch("s-g2", 2)), None,
    ]  # fmt: skip
    assert not made.on_refused("g1", [0, 1, 2, 3], news), "of a slot that nobody is known to own it was not asked"


def test_a_gateway_s_word_that_lacks_an_epoch_counts_for_the_rest():
    made = table(["g1", "g1", "g1", "g1"])
    assert made.on_refused("g1", [0, 1], [SlotEpochs(owner_id="g2", session_id="x", slots=[0, 1], lock_indexes=[7])])
    assert [made.owner_of(slot) for slot in range(2)] == [Holder("g2", Epoch("x", 7)), Holder("g1", Epoch("s-g1", 1))]


def test_what_is_sent_follows_a_gateway_s_word():
    made = table(["g1", "g1", "g1", "g1"])
    events = [EventRecord(user_id="x", recipients=USERS)]
    assert made.split(events)[0].keys() == {"g1"}
    made.on_refused("g1", [0], [SlotEpochs(owner_id="g2", session_id="x", slots=[0], lock_indexes=[7])])
    assert {name: part.slots for name, part in made.split(events)[0].items()} == {"g1": {1, 2, 3}, "g2": {0}}


def test_an_event_for_one_gateway_of_several_is_passed_on_uncut():
    """Nothing of it is copied, as most have two users at most."""
    parts, _ = table(["g1", "g1", "g2", "g2"]).split([event := EventRecord(user_id=USERS[0], recipients=USERS[:1], own=b"own")])
    assert [[one is event for one in part.events] for part in parts.values()] == [[True]]


def test_before_the_registry_has_shown_anything_nobody_has_a_home():
    events = [EventRecord(user_id="x", recipients=USERS)]
    assert SlotTable(COUNT).split(events) == ({}, events)


def test_keys_of_no_slot_of_ours_are_passed_over():
    made = SlotTable(COUNT)
    foreign = {"elsewhere": Holder("g9", Epoch("s", 1)), slot_key(COUNT): Holder("g9", Epoch("s", 2))}
    assert made.on_holders(foreign | view(["g1", "g1", "g1", "g1"])) == []
    assert made.on_holders(dict.fromkeys(foreign, Holder("g8", Epoch("s", 3)))) == []
    assert [made.owner_of(slot) for slot in range(COUNT + 1)] == [*view(["g1", "g1", "g1", "g1"]).values(), None]


def test_a_view_that_may_be_older_than_a_gateway_s_word_takes_nothing_from_it():
    """Told that it had lost what it had just taken, a gateway would serve the slot no more while it holds the lock."""
    made = table(["g1", "g1", "g2", "g2"])
    assert made.on_refused("g1", [0], [SlotEpochs(owner_id="g3", session_id="x", slots=[0], lock_indexes=[7])])
    assert made.on_holders(view(["g1", "g1", "g2", "g2"])) == []
    assert made.on_holders(view(["g3", "g1", "g2", "g2"])) == [
        Move(0, Holder("g1", Epoch("s-g1", 0)), Holder("g3", Epoch("s-g3", 0)))
    ]


@given(st.lists(records, max_size=6), st.frozensets(st.integers(0, COUNT - 1)))
def test_what_was_refused_goes_out_again_and_nothing_else(events: list[EventRecord], refused: frozenset[int]):
    again = refused_of(events, refused, table([""] * COUNT))
    told = [(event.seq, user) for event in events for user in event.recipients if slot_of(user, COUNT) in refused]
    assert [(event.seq, user) for event in again for user in event.recipients] == told
    actors = [event for event in events if (event.own or event.actor) and slot_of(event.user_id, COUNT) in refused]
    assert [(event.seq, event.own, event.actor) for event in again if event.own or event.actor] == [
        (event.seq, event.own, event.actor) for event in actors
    ]
    assert all(event.recipients or event.own or event.actor for event in again)
    assert all(event.shared == b"shared" and event.user_id for event in again)


class FakeGateway(GatewayServiceServicer):
    """Takes what bears its epochs; notes what it was told."""

    def __init__(self, epochs: dict[int, Epoch]) -> None:
        self.epochs = epochs
        self.got: list[tuple[int, str]] = []
        self.refusals = 0
        self.notes: list[Any] = []
        self.is_deaf = False

    async def Deliver(self, requests: AsyncIterator[DeliverRequest], context: Any) -> AsyncIterator[DeliverResponse]:
        async for request in requests:
            if self.is_deaf:
                await asyncio.Event().wait()
            stamps = [
                (slot, Epoch(one.session_id, index))
                for one in request.epochs
                for slot, index in zip(one.slots, one.lock_indexes, strict=True)
            ]
            refused = {slot for slot, epoch in stamps if self.epochs.get(slot) != epoch}
            if request.all_slots and request.all_slots != fingerprint(self.epochs):
                refused = set(range(COUNT))
            self.refusals += bool(refused)
            for event in request.events:
                self.got += [(event.seq, user) for user in event.recipients if slot_of(user, COUNT) not in refused]
            yield DeliverResponse(number=request.number, refused_slots=sorted(refused))

    async def NoteOwners(self, request: NoteOwnersRequest, context: Any) -> NoteOwnersResponse:
        self.notes += [(move.slot, move.owner_id, move.owner_address) for move in request.moves]
        return NoteOwnersResponse()


@asynccontextmanager
async def open_scene(rng: Random, *gateways: FakeGateway) -> AsyncIterator[Any]:
    """Run a router with gateways; yield its engines."""
    topics, clock = {EVENTS: 1, OFFLINE: 1}, VirtualClock()
    servers = {}
    for number, gateway in enumerate(gateways, 1):
        servers[f"g{number}"] = InProcessServer()
        add_GatewayServiceServicer_to_server(gateway, servers[f"g{number}"])

    @asynccontextmanager
    async def open_channel(instance: Instance) -> AsyncIterator[InProcessChannel]:
        async with InProcessChannel(servers[instance.instance_id], name=instance.instance_id) as channel:
            yield channel

    async with (
        open_embedded_engines(None, topics=topics, durable_topics=(), tables=(), clock=clock) as engines,
        InProcessChannel(InProcessServer(), name="store") as store,
        open_router(
            RouterSettings(slot_count=COUNT),
            log=engines.log,
            registry=engines.registry,
            store_channel=store,
            open_gateway_channel=open_channel,
            clock=clock,
            metrics=CollectorRegistry(),
            rng=rng,
        ),
    ):
        yield engines


async def publish(engines: Any, *seqs: int) -> None:
    events = [EventRecord(conversation_id="c", seq=seq, user_id="x", shared=b"s", recipients=USERS, wakes=True) for seq in seqs]
    await engines.log.append(EVENTS, 0, [LogEntry(b"", EventBatch(events=events).SerializeToString())])


EXPECTED = [(1, user) for user in USERS]


def test_what_an_owner_refuses_is_sent_to_the_next_one_and_the_old_one_is_told():
    async def main(rng: Random) -> None:
        one, two = FakeGateway({}), FakeGateway({})
        async with (
            open_scene(rng, one, two) as engines,
            engines.registry.open_session(Instance("gateway", "g1", "a", "one:1")) as first,
        ):
            keys = [slot_key(slot) for slot in range(COUNT)]
            old = await first.acquire(keys)
            await asyncio.sleep(1)
            await publish(engines, 1)
            await asyncio.sleep(1)
            assert (one.got, one.refusals) == ([], 1), "it let go already; who has it now nobody knows"
            async with engines.registry.open_session(Instance("gateway", "g2", "b", "two:1")) as second:
                await asyncio.sleep(1)
                await first.release(keys)
                held = await second.acquire(keys)
                two.epochs = {slot: held[slot_key(slot)] for slot in range(COUNT)}
                await asyncio.sleep(1)
                assert (one.got, two.got) == ([], EXPECTED)
                assert one.notes == [(slot, "g2", "two:1") for slot in range(COUNT)]
                assert old.keys() == held.keys()

    run_virtual(main, limit_seconds=60)


def test_a_deaf_gateway_s_users_get_theirs_from_who_takes_its_slots_over():
    async def main(rng: Random) -> None:
        one, two = FakeGateway({}), FakeGateway({})
        async with open_scene(rng, one, two) as engines, engines.registry.open_session(Instance("gateway", "g2", "b")) as second:
            keys = [slot_key(slot) for slot in range(COUNT)]
            async with engines.registry.open_session(Instance("gateway", "g1", "a")) as first:
                await first.acquire(keys)
                await asyncio.sleep(1)
                one.is_deaf = True
                await publish(engines, 1)
                await asyncio.sleep(5)
            held = await second.acquire(keys)
            two.epochs = {slot: held[slot_key(slot)] for slot in range(COUNT)}
            await asyncio.sleep(1)
            assert two.got == EXPECTED

    run_virtual(main, limit_seconds=60)


def test_users_of_a_gateway_that_stays_deaf_are_named_offline_after_10_s_and_later_ones_at_once():
    async def main(rng: Random) -> list[tuple[float, int]]:
        one = FakeGateway({})
        async with open_scene(rng, one) as engines, engines.registry.open_session(Instance("gateway", "g1", "a")) as first:
            await first.acquire([slot_key(slot) for slot in range(COUNT)])
            await asyncio.sleep(1)
            one.is_deaf = True
            loop, named = asyncio.get_running_loop(), []
            async with engines.log.open_consumer(OFFLINE, "push") as consumer:
                for seq in (1, 2):
                    began = loop.time()
                    await publish(engines, seq)
                    batch = await consumer.poll(10)
                    consumer.done(batch)
                    found = [one for record in batch.records for one in OfflineBatch.FromString(record.value).users]
                    named.append((round(loop.time() - began), len(found)))
        return named

    assert run_virtual(main, limit_seconds=120) == [(10, len(USERS)), (0, len(USERS))]
