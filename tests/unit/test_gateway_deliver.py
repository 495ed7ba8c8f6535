"""Who gets what of a delivery, and streams in process, where nothing may stay behind either."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from random import Random

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from prometheus_client import CollectorRegistry

from chassis.backoff import Backoff
from chassis.clock import Clock, SystemClock
from chassis.embedded import open_embedded_engines
from chassis.eventlog import EventLog
from chassis.inprocess import InProcessChannel, InProcessServer
from chassis.registry import Epoch, Holder
from chassis.testing.virtual_loop import VirtualClock, run_virtual
from parley.api.v1 import messaging_service_pb2 as api
from parley.api.v1.messaging_service_pb2_grpc import MessagingServiceStub
from parley.gateway.v1.gateway_service_pb2 import DeliverRequest, NoteOwnersRequest, SlotEpochs, SlotMove
from parley.log.v1.records_pb2 import EventRecord, OfflineBatch
from parley_protocol.frames import HEARTBEAT_FIELD
from parley_protocol.slots import SLOT_COUNT, fingerprint, slot_of
from parley_protocol.topics import COMMANDS, OFFLINE
from services.gateway.app import Gateway, open_gateway
from services.gateway.config import GatewaySettings
from services.gateway.deliver import GatewayRpc
from services.gateway.directory import Directory
from services.gateway.grace import Grace
from services.gateway.keys import mint_token
from services.gateway.metrics import Metrics
from services.gateway.session import Session
from services.gateway.slots import Ended, Slots
from services.gateway.tokens import Claims, KeyRing, TokenVerifier, verifying_key

KEY = Ed25519PrivateKey.generate()
GRACE_SECONDS = 10.0
OWN, SHARED = HEARTBEAT_FIELD, HEARTBEAT_FIELD * 2


class Here:
    """A directory with sessions, and what each got."""

    def __init__(self, *devices: tuple[str, str], log: EventLog | None = None, clock: Clock | None = None) -> None:
        self.directory, self.metrics = Directory(), Metrics(CollectorRegistry())
        self.slots = Slots("g1", SLOT_COUNT, settle_seconds=0, slots_per_second=100, alone=True)
        self.ended: list[Ended] = []
        grace = Grace(self.slots, self.directory, log, GRACE_SECONDS, clock or SystemClock(), Backoff(0.1, 1.0, Random(1)))
        self.rpc = GatewayRpc(self.directory, self.slots, grace, self.ended.extend, self.metrics)
        self.grace = grace
        self.sessions: dict[tuple[str, str], Session] = {}
        for user, device in devices:
            session = Session(Claims(user, "", 0), 0.0, 10, 1000)
            session.device_id = device
            self.directory.add(session)
            self.sessions[user, device] = session

    def own(self, *users: str, since: float = -1e9) -> list[SlotEpochs]:
        """Own the users' slots, and return what a router would stamp."""
        numbers = sorted({slot_of(user) for user in users})
        for slot in numbers:
            self.slots.epochs[slot], self.slots.since[slot] = Epoch("s1", slot), since
        return [SlotEpochs(session_id="s1", slots=numbers, lock_indexes=numbers)]

    def deliver(self, *events: EventRecord, epochs: list[SlotEpochs] | None = None) -> list[tuple[str, int]]:
        answer = self.answer = self.rpc.deliver(DeliverRequest(number=7, events=events, epochs=epochs or []))
        assert answer.number == 7
        return [(unreached.user_id, unreached.seq) for unreached in answer.unreached]

    def got(self) -> dict[tuple[str, str], int]:
        """Return the bytes that wait for each device."""
        return {name: session.outbox_bytes for name, session in self.sessions.items() if session.outbox_bytes}


def sent(users: list[str], *, session_id: str = "", wakes: bool = True) -> EventRecord:
    return EventRecord(
        conversation_id="c", seq=5, shared=SHARED, recipients=users, user_id="alice", device_id="phone",
        own=OWN, session_id=session_id, wakes=wakes,
    )  # fmt: skip


async def test_own_goes_to_the_actors_device_and_shared_to_all_others():
    here = Here(("alice", "phone"), ("alice", "laptop"), ("bob", "phone"), ("carol", "phone"))
    assert here.deliver(sent(["alice", "bob"])) == []
    assert here.got() == {("alice", "phone"): len(OWN), ("alice", "laptop"): len(SHARED), ("bob", "phone"): len(SHARED)}


async def test_outcome_alone_goes_to_the_actors_device_alone():
    here = Here(("alice", "phone"), ("alice", "laptop"))
    assert here.deliver(EventRecord(user_id="alice", device_id="phone", own=OWN)) == []
    assert here.got() == {("alice", "phone"): len(OWN)}


async def test_what_a_device_said_itself_goes_to_the_users_other_devices():
    here = Here(("alice", "phone"), ("alice", "laptop"), ("bob", "phone"))
    here.deliver(EventRecord(user_id="alice", device_id="phone", actor=SHARED, shared=OWN, recipients=["bob"]))
    assert here.got() == {("alice", "laptop"): len(SHARED), ("bob", "phone"): len(OWN)}


async def test_what_several_devices_said_goes_to_all_of_them():
    here = Here(("alice", "phone"), ("alice", "laptop"))
    here.deliver(EventRecord(user_id="alice", actor=SHARED))
    assert here.got() == {("alice", "phone"): len(SHARED), ("alice", "laptop"): len(SHARED)}


async def test_waiting_call_takes_the_outcome_and_its_devices_stream_the_event():
    here = Here(("alice", "phone"))
    waiting = here.directory.waiting["call"] = asyncio.get_running_loop().create_future()
    for _ in range(2):  # delivered again after a broken stream
        here.deliver(sent(["alice"], session_id="call"))
    assert await waiting == OWN
    assert here.got() == {("alice", "phone"): 2 * len(SHARED)}


async def test_users_without_a_device_are_reported_if_the_event_wakes():
    here = Here(("alice", "phone"))
    assert here.deliver(sent(["alice", "bob", "carol"])) == [("bob", 5), ("carol", 5)]
    assert here.deliver(sent(["alice", "bob"], wakes=False)) == []


async def test_actor_is_never_reported():
    assert Here().deliver(sent(["alice"])) == []


async def test_user_whose_only_device_is_being_sent_away_is_reported():
    here = Here(("bob", "phone"), ("carol", "phone"), ("carol", "laptop"))
    for name in (("bob", "phone"), ("carol", "phone")):
        here.sessions[name].say_goodbye(api.GO_AWAY_REASON_SLOW, "")
    assert here.deliver(sent(["bob", "carol"])) == [("bob", 5)]


async def test_a_call_that_waits_elsewhere_leaves_its_device_the_event():
    """Its outcome came to the gateway where it was made; here the device is one like the others."""
    here = Here(("alice", "phone"))
    here.deliver(sent(["alice"], session_id="call-1"))
    assert here.got() == {("alice", "phone"): len(SHARED)}


async def test_users_of_slots_under_another_epoch_get_nothing_and_the_router_is_told():
    here = Here(("alice", "phone"), ("bob", "phone"), ("carol", "phone"))
    (stamp,) = here.own("alice", "bob")
    bob, carol = slot_of("bob"), slot_of("carol")
    wrong = [number + (slot == bob) for slot, number in zip(stamp.slots, stamp.lock_indexes, strict=True)]
    epochs = [SlotEpochs(session_id="s1", slots=[*stamp.slots, carol], lock_indexes=[*wrong, 5])]
    assert here.deliver(sent(["bob", "carol"]), epochs=epochs) == []
    assert here.got() == {("alice", "phone"): len(OWN)}
    assert sorted(here.answer.refused_slots) == sorted((bob, carol))
    assert [(one.owner_id, one.session_id, *one.slots, *one.lock_indexes) for one in here.answer.owners] == [("g1", "s1", bob, bob)]


async def test_all_slots_at_once_are_stamped_with_one_number_and_refused_with_another():
    here = Here(("bob", "phone"))
    for slot in range(SLOT_COUNT):
        here.slots.on_acquired([slot], {slot: Epoch("s1", slot)}, -1e9)
    stamp = fingerprint(here.slots.epochs)
    assert here.rpc.deliver(DeliverRequest(events=[sent(["bob"])], all_slots=stamp)).refused_slots == []
    assert here.got() == {("bob", "phone"): len(SHARED)}
    here.slots.on_told(slot_of("alice"), Epoch("s1", slot_of("alice")), Holder("g2", Epoch("s2", 1)), "")
    answer = here.rpc.deliver(DeliverRequest(events=[sent(["bob"])], all_slots=stamp))
    assert len(answer.refused_slots) == SLOT_COUNT
    assert sum(len(owner.slots) for owner in answer.owners if owner.owner_id == "g1") == SLOT_COUNT - 1
    assert here.got() == {("bob", "phone"): len(SHARED)}


async def test_another_session_s_epoch_is_refused():
    here = Here(("bob", "phone"))
    (stamp,) = here.own("bob")
    stamp.session_id = "s2"
    here.deliver(sent(["bob"]), epochs=[stamp])
    assert here.got() == {}


async def test_what_concerns_the_actor_alone_is_refused_with_his_slot():
    here = Here(("alice", "laptop"), ("bob", "phone"))
    stamps = [*here.own("bob"), SlotEpochs(session_id="s1", slots=[slot_of("alice")], lock_indexes=[1])]
    here.deliver(EventRecord(user_id="alice", device_id="phone", actor=SHARED, shared=OWN, recipients=["bob"]), epochs=stamps)
    assert here.got() == {("bob", "phone"): len(OWN)}


async def test_a_router_that_knows_the_next_owner_ends_a_slot_and_none_that_knows_less():
    here = Here()
    here.own("alice", "bob")
    alice, bob = slot_of("alice"), slot_of("bob")
    owner = {"owner_id": "g2", "owner_session_id": "s9", "owner_lock_index": 9, "owner_address": "two:1"}
    known = SlotMove(slot=alice, session_id="s1", lock_index=alice, **owner)
    old = SlotMove(slot=bob, session_id="s0", lock_index=bob, **owner)
    await here.rpc.NoteOwners(NoteOwnersRequest(moves=[known, old, known]), None)
    assert here.ended == [Ended(alice, "two:1")]
    assert set(here.slots.epochs) == {bob}


def test_who_is_absent_from_a_new_slot_is_named_offline_only_when_its_devices_had_time_to_come():
    async def main(_rng: Random) -> tuple[list[str], float]:
        clock = VirtualClock()
        async with open_embedded_engines(None, topics={OFFLINE: 2}, durable_topics=(), tables=(), clock=clock) as engines:
            here = Here(log=engines.log, clock=clock)
            stamps = here.own("bob", "carol", since=clock.monotonic() - 1) + here.own("dave")
            naming = asyncio.create_task(here.grace.run())
            assert here.deliver(sent(["bob", "carol", "dave"]), epochs=stamps) == [("dave", 5)]
            carol = Session(Claims("carol", "", 0), 0.0, 10, 1000)
            carol.device_id = "phone"
            here.directory.add(carol)
            async with engines.log.open_consumer(OFFLINE, "push") as consumer:
                batch = await consumer.poll(10)
            naming.cancel()
            await asyncio.wait([naming])
            named = [one.user_id for record in batch.records for one in OfflineBatch.FromString(record.value).users]
            return named, clock.monotonic()

    assert run_virtual(main) == (["bob"], GRACE_SECONDS)


@asynccontextmanager
async def open_in_process() -> AsyncIterator[tuple[Gateway, InProcessChannel, VirtualClock, CollectorRegistry]]:
    clock, key, registry = VirtualClock(), verifying_key(KEY.public_key()), CollectorRegistry()
    assert key is not None
    server = InProcessServer()
    channel = InProcessChannel(server)
    async with (
        open_embedded_engines(
            None, topics={COMMANDS: 1, OFFLINE: 1}, durable_topics=(COMMANDS,), tables=("t",), clock=clock
        ) as engines,
        open_gateway(
            GatewaySettings(),
            log=engines.log,
            store_channel=channel,
            router_channel=channel,
            verifier=TokenVerifier(KeyRing({"": key}), clock),
            clock=clock,
            metrics=registry,
            rng=Random(1),
            alone=True,
        ) as gateway,
        gateway.own_slots(engines.registry, address="in-process"),
    ):
        gateway.register_public(server)
        yield gateway, channel, clock, registry
        await server.stop(None)


def test_streams_in_process_end_without_a_trace():
    """On virtual time: replaced, idle, half-closed, cancelled, drained; no reader or writer is left over."""

    async def main(_rng: Random) -> None:
        async with open_in_process() as (gateway, channel, clock, registry):
            metadata = (("authorization", f"Bearer {mint_token(KEY, 'alice', '', 10_000, clock.wall_ms() / 1000)}"),)
            stub = MessagingServiceStub(channel)
            before = len(asyncio.all_tasks())

            async def open_stream(device: str):  # type: ignore[no-untyped-def]
                call = stub.Connect(metadata=metadata)
                await call.write(api.ConnectRequest(hello=api.Hello(device_id=device)))
                assert (await call.read()).HasField("welcome")
                return call

            first = await open_stream("a")
            second = await open_stream("a")
            assert (await first.read()).go_away.reason == api.GO_AWAY_REASON_REPLACED
            cancelled = await open_stream("b")
            cancelled.cancel()
            closed = await open_stream("c")
            await closed.done_writing()
            frame = await second.read()
            while frame.HasField("batch"):  # it is asked what it holds
                frame = await second.read()
            assert frame.go_away.reason == api.GO_AWAY_REASON_IDLE
            drained = await open_stream("d")
            await gateway.drain()
            assert (await drained.read()).go_away.reason == api.GO_AWAY_REASON_DRAINING
            await asyncio.sleep(1)
            assert len(asyncio.all_tasks()) == before
            assert registry.get_sample_value("parley_gateway_streams") == 0
            assert registry.get_sample_value("parley_gateway_sessions") == 0

    run_virtual(main)
