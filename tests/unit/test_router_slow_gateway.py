"""What one gateway that hangs or crawls costs the devices at another one, in virtual time, and that nothing is lost by it."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from random import Random
from typing import Any, NamedTuple

from prometheus_client import CollectorRegistry

from chassis.embedded import open_embedded_engines
from chassis.eventlog import LogConsumer, LogEntry
from chassis.inprocess import InProcessChannel, InProcessServer
from chassis.registry import Instance
from chassis.tasks import open_tasks
from chassis.testing.virtual_loop import VirtualClock, run_virtual
from parley.gateway.v1.gateway_service_pb2 import DeliverRequest, DeliverResponse
from parley.gateway.v1.gateway_service_pb2_grpc import GatewayServiceServicer, add_GatewayServiceServicer_to_server
from parley.log.v1.records_pb2 import EventBatch, EventRecord, OfflineBatch
from parley_protocol.slots import slot_key, slot_of
from parley_protocol.topics import EVENTS, OFFLINE
from services.router.app import open_router
from services.router.config import RouterSettings

SETTINGS = RouterSettings(slot_count=2)
PARTITIONS = 4
EVENT_SECONDS = 0.1
NAMES = ("good", "bad")
USERS = {name: next(f"user{i}" for i in range(99) if slot_of(f"user{i}", 2) == slot) for slot, name in enumerate(NAMES)}


class Gateway(GatewayServiceServicer):
    """Notes when it got which event; a frame is answered after `answers_after` seconds."""

    def __init__(self, answers_after: Callable[[], float]) -> None:
        self._answers_after = answers_after
        self.got: dict[int, float] = {}  # by seq

    async def Deliver(self, frames: AsyncIterator[DeliverRequest], context: Any) -> AsyncIterator[DeliverResponse]:
        async for frame in frames:
            await asyncio.sleep(self._answers_after())
            for event in frame.events:
                self.got.setdefault(event.seq, asyncio.get_running_loop().time())
            yield DeliverResponse(number=frame.number)


class Outcome(NamedTuple):
    """By seq: when it was appended, when each gateway had it; and who was named to push."""

    appended: dict[int, float]
    got: dict[str, dict[int, float]]
    offline: set[tuple[str, int]]

    def delays(self, name: str, begin: float = 0.0) -> list[float]:
        """Return how late each event was that was appended from then on."""
        return [self.got[name][seq] - at for seq, at in self.appended.items() if at >= begin and _owner(seq) == name]


def _owner(seq: int) -> str:
    return NAMES[seq % 2]


async def flow(answers_after: Callable[[], float], seconds: float, rng: Random) -> Outcome:
    """Let events flow to two gateways, one of which answers like that; end when all are delivered or named to push."""
    topics, clock = {EVENTS: PARTITIONS, OFFLINE: PARTITIONS}, VirtualClock()
    gateways = {"good": Gateway(lambda: 0.0), "bad": Gateway(answers_after)}
    outcome = Outcome({}, {name: gateway.got for name, gateway in gateways.items()}, set())

    @asynccontextmanager
    async def channel_to(instance: Instance) -> Any:
        server = InProcessServer()
        add_GatewayServiceServicer_to_server(gateways[instance.instance_id], server)
        async with InProcessChannel(server, name=instance.instance_id) as channel:
            yield channel

    async def note_offline(consumer: LogConsumer) -> None:
        while True:
            batch = await consumer.poll(100)
            for record in batch.records:
                outcome.offline.update((one.user_id, one.seq) for one in OfflineBatch.FromString(record.value).users)
            consumer.done(batch)

    async with (
        open_embedded_engines(None, topics=topics, durable_topics=(), tables=(), clock=clock) as engines,
        engines.registry.open_session(Instance("gateway", "good", "nowhere")) as good,
        engines.registry.open_session(Instance("gateway", "bad", "nowhere")) as bad,
        InProcessChannel(InProcessServer(), name="store") as store,
    ):
        await good.acquire([slot_key(0)])
        await bad.acquire([slot_key(1)])
        async with (
            open_router(
                SETTINGS,
                log=engines.log,
                registry=engines.registry,
                store_channel=store,
                open_gateway_channel=channel_to,
                clock=clock,
                metrics=CollectorRegistry(),
                rng=rng,
            ),
            engines.log.open_consumer(OFFLINE, "push") as consumer,
            open_tasks("test") as tasks,
        ):
            tasks.spawn(note_offline(consumer), name="offline")
            await asyncio.sleep(1)
            for seq in range(int(seconds / EVENT_SECONDS)):
                user = USERS[_owner(seq)]
                event = EventRecord(conversation_id="c", seq=seq, user_id="alice", shared=b"x", recipients=[user], wakes=True)
                entry = LogEntry(b"", EventBatch(events=[event]).SerializeToString())
                outcome.appended[seq] = clock.monotonic()
                await engines.log.append(EVENTS, rng.randrange(PARTITIONS), [entry])
                await asyncio.sleep(EVENT_SECONDS)
            await asyncio.sleep(SETTINGS.unreachable_seconds * 3)
    return outcome


def assert_nothing_is_lost(outcome: Outcome) -> None:
    lost = [
        seq for seq in outcome.appended if seq not in outcome.got[_owner(seq)] and (USERS[_owner(seq)], seq) not in outcome.offline
    ]
    assert not lost


def test_a_gateway_that_hangs_holds_others_up_once_for_as_long_as_it_is_waited_for():
    """It takes connections and frames, and answers none, from the 5th second to the 45th."""

    async def main(rng: Random) -> Outcome:
        clock = VirtualClock()
        return await flow(lambda: 45 - clock.monotonic() if 5 <= clock.monotonic() < 45 else 0.0, 80, rng)

    outcome = run_virtual(main, 1, 3600.0)
    held = outcome.delays("good")
    assert 5 < max(held) <= SETTINGS.unreachable_seconds + EVENT_SECONDS  # the bound, and that it is one of something
    after = outcome.delays("good", begin=5 + SETTINGS.unreachable_seconds + 1)
    assert max(after) <= EVENT_SECONDS, "who was given up is not waited for again"
    assert_nothing_is_lost(outcome)
    assert outcome.offline
    back = outcome.appended.keys() - {seq for _, seq in outcome.offline}
    assert max(seq for seq in back if _owner(seq) == "bad") == max(seq for seq in outcome.appended if _owner(seq) == "bad")


def test_a_gateway_that_crawls_holds_others_up_by_the_frames_that_are_on_their_way_to_it():
    """Each of its answers takes a second: a partition's next batch waits for the last one, which waits behind other partitions'."""
    outcome = run_virtual(lambda rng: flow(lambda: 1.0, 60, rng), 1, 3600.0)
    assert 1 < max(outcome.delays("good")) <= PARTITIONS * 1.0 + EVENT_SECONDS
    assert_nothing_is_lost(outcome)
    assert not outcome.offline
