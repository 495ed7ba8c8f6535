"""Whether devices hold what they should: two differences in a row, and a device is told to Sync."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from random import Random
from typing import Any

from prometheus_client import CollectorRegistry

from chassis.errors import Unavailable
from chassis.inprocess import InProcessChannel, InProcessServer
from chassis.testing.virtual_loop import VirtualClock, run_virtual
from parley.api.v1.messaging_service_pb2 import ConnectResponse
from parley.store.v1 import store_service_pb2 as store
from parley.store.v1.store_service_pb2_grpc import StoreServiceServicer, add_StoreServiceServicer_to_server
from parley_protocol.slots import SLOT_COUNT, slot_of
from services.gateway.checks import DigestChecks
from services.gateway.config import GatewaySettings
from services.gateway.metrics import Metrics
from services.gateway.session import Session
from services.gateway.slots import Slots
from services.gateway.tokens import Claims

TRUE = 7
INTERVAL = 900.0


class Store(StoreServiceServicer):
    """Holds one digest for everybody, when it answers."""

    def __init__(self) -> None:
        self.failures = 0
        self.asked_for = 0

    async def GetDigests(self, request: store.GetDigestsRequest, context: Any) -> store.GetDigestsResponse:
        self.asked_for += len(request.user_ids)
        if self.failures:
            self.failures -= 1
            raise Unavailable("UNAVAILABLE", "away")
        return store.GetDigestsResponse(digests=[TRUE] * len(request.user_ids))


class Scene:
    def __init__(self, channel: Any, store: Store) -> None:
        self.clock, self.store = VirtualClock(), store
        self.slots = Slots("g1", SLOT_COUNT, settle_seconds=0, slots_per_second=1)
        self.checks = DigestChecks(
            GatewaySettings(digest_check_seconds=INTERVAL), self.slots, channel, self.clock, Metrics(CollectorRegistry()), Random(1)
        )

    def device(self) -> Session:
        session = Session(Claims("alice", "", 0), self.clock.monotonic(), 10, 1000)
        session.device_id = "phone"
        self.checks.begin(session, self.clock.monotonic())
        return session

    async def answers(self, session: Session, digest: int) -> list[bool]:
        """Ask a device, let it answer; return what it is told then: asked (False), or to Sync (True)."""
        self.checks.ask(session, self.clock.monotonic())
        session.take_frame()
        self.checks.on_digest(session, digest)
        await asyncio.sleep(0.1)
        frame = session.take_frame()
        return [ConnectResponse.FromString(frame).batch.digest_check.differs] if frame is not None else []


@asynccontextmanager
async def open_scene() -> AsyncIterator[Scene]:
    server, servicer = InProcessServer(), Store()
    add_StoreServiceServicer_to_server(servicer, server)
    async with InProcessChannel(server) as channel:
        scene = Scene(channel, servicer)
        running = asyncio.create_task(scene.checks.run())
        try:
            yield scene
        finally:
            running.cancel()
            await asyncio.wait([running])


def test_only_two_differences_in_a_row_mean_anything():
    async def main(_rng: Random) -> None:
        async with open_scene() as scene:
            device = scene.device()
            assert await scene.answers(device, TRUE + 1) == []
            assert device.check_at < scene.clock.monotonic() + 6, "asked again once what is on its way has arrived"
            assert await scene.answers(device, TRUE) == []
            assert await scene.answers(device, TRUE + 1) == []
            assert await scene.answers(device, TRUE + 2) == [True]
            assert await scene.answers(device, TRUE + 2) == [], "it is syncing: the count begins anew"

    run_virtual(main)


def test_a_device_is_asked_soon_after_its_slot_came_and_then_now_and_then():
    async def main(_rng: Random) -> None:
        async with open_scene() as scene:
            now = scene.clock.monotonic()
            scene.slots.since[slot_of("alice")] = now - 4
            device = scene.device()
            assert now + 6 <= device.check_at <= now + 7
            scene.checks.ask(device, now)
            assert now + 0.7 * INTERVAL < device.check_at < now + 1.3 * INTERVAL
            frame = device.take_frame()
            assert frame is not None
            check = ConnectResponse.FromString(frame).batch
            assert check.HasField("digest_check")
            assert not check.digest_check.differs
            scene.slots.since[slot_of("alice")] = now - 11
            assert scene.device().check_at > now + 0.7 * INTERVAL

    run_virtual(main)


def test_whoever_answers_unasked_costs_the_store_nothing():
    async def main(_rng: Random) -> None:
        async with open_scene() as scene:
            device = scene.device()
            for _ in range(3):
                scene.checks.on_digest(device, TRUE + 1)
                await asyncio.sleep(0.1)
            assert scene.store.asked_for == 0
            assert await scene.answers(device, TRUE) == []
            scene.checks.on_digest(device, TRUE)
            await asyncio.sleep(0.1)
            assert scene.store.asked_for == 1

    run_virtual(main)


def test_a_store_that_does_not_answer_is_no_difference():
    async def main(_rng: Random) -> None:
        async with open_scene() as scene:
            device = scene.device()
            await scene.answers(device, TRUE + 1)
            scene.store.failures = 1
            assert await scene.answers(device, TRUE + 1) == []
            assert await scene.answers(device, TRUE + 1) == [True]

    run_virtual(main)
