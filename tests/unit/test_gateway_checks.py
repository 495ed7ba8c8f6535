"""Whether devices hold what they should: two differences in a row, and a device is told to Sync."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from random import Random
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

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
READ = 3.0


class Store(StoreServiceServicer):
    """Holds one digest for everybody, when it answers."""

    def __init__(self) -> None:
        self.failures = 0
        self.hangs = False
        self.missing = 0  # answers too few
        self.asked: list[int] = []  # for how many users, each time

    async def GetDigests(self, request: store.GetDigestsRequest, context: Any) -> store.GetDigestsResponse:
        self.asked.append(len(request.user_ids))
        if self.hangs:
            self.hangs = False
            await asyncio.Event().wait()
        if self.failures:
            self.failures -= 1
            raise Unavailable("UNAVAILABLE", "away")
        return store.GetDigestsResponse(digests=[TRUE] * (len(request.user_ids) - self.missing))


class Scene:
    running: asyncio.Task[None]

    def __init__(self, channel: Any, store: Store) -> None:
        self.clock, self.store = VirtualClock(), store
        self.slots = Slots("g1", SLOT_COUNT, settle_seconds=0, slots_per_second=1)
        self.registry = CollectorRegistry()
        settings = GatewaySettings(digest_check_seconds=INTERVAL, read_seconds=READ)
        self.checks = DigestChecks(settings, self.slots, channel, self.clock, Metrics(self.registry), Random(1))

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
        scene.running = asyncio.create_task(scene.checks.run())
        try:
            yield scene
        finally:
            scene.running.cancel()
            await asyncio.wait([scene.running])


def test_only_two_differences_in_a_row_mean_anything():
    async def main(_rng: Random) -> None:
        async with open_scene() as scene:
            device = scene.device()
            now = scene.clock.monotonic()
            assert await scene.answers(device, TRUE + 1) == []
            assert now + 5 <= device.check_at < now + 5.1, "asked again once what is on its way has arrived"
            assert await scene.answers(device, TRUE) == []
            assert await scene.answers(device, TRUE + 1) == []
            assert await scene.answers(device, TRUE + 2) == [True]
            assert await scene.answers(device, TRUE + 2) == [], "it is syncing: the count begins anew"
            assert scene.registry.get_sample_value("parley_gateway_digests_differed_total") == 1

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
            for ago in (10, 11):
                scene.slots.since[slot_of("alice")] = now - ago
                assert scene.device().check_at > now + 0.7 * INTERVAL

    run_virtual(main)


def test_devices_are_not_all_asked_at_the_same_moment():
    """A gateway that took slots has a thousand devices at once, and each answer costs a store an inbox."""

    async def main(_rng: Random) -> None:
        async with open_scene() as scene:
            now = scene.clock.monotonic()
            scene.slots.since[slot_of("alice")] = now - 100
            later = sorted(scene.device().check_at - now for _ in range(300))
            assert 0.75 * INTERVAL <= later[0] < 0.76 * INTERVAL
            assert 1.24 * INTERVAL < later[-1] <= 1.25 * INTERVAL
            scene.slots.since[slot_of("alice")] = now
            soon = sorted(scene.device().check_at - now for _ in range(300))
            assert 10.0 <= soon[0] < 10.1
            assert 10.9 < soon[-1] <= 11.0

    run_virtual(main)


def test_whoever_answers_unasked_costs_the_store_nothing():
    async def main(_rng: Random) -> None:
        async with open_scene() as scene:
            device = scene.device()
            for _ in range(3):
                scene.checks.on_digest(device, TRUE + 1)
                await asyncio.sleep(0.1)
            assert scene.store.asked == []
            assert await scene.answers(device, TRUE) == []
            scene.checks.on_digest(device, TRUE)
            await asyncio.sleep(0.1)
            assert scene.store.asked == [1]

    run_virtual(main)


@pytest.mark.parametrize("trouble", ["fails", "hangs"])
def test_a_store_that_does_not_answer_is_no_difference(trouble: str):
    async def main(_rng: Random) -> None:
        async with open_scene() as scene:
            device = scene.device()
            await scene.answers(device, TRUE + 1)
            scene.store.failures, scene.store.hangs = int(trouble == "fails"), trouble == "hangs"
            with capture_logs() as logs:
                assert await scene.answers(device, TRUE + 1) == []
                await asyncio.sleep(READ)
            assert [(log["event"], log["log_level"], bool(log["error"])) for log in logs] == [
                ("gateway.digests_not_compared", "warning", True)
            ]
            assert await scene.answers(device, TRUE + 1) == [True]

    run_virtual(main)


def test_answers_are_compared_a_hundred_at_once_and_a_failure_holds_up_none_of_the_others():
    async def main(_rng: Random) -> None:
        async with open_scene() as scene:
            scene.store.failures = 1
            devices = [scene.device() for _ in range(150)]
            for device in devices:
                scene.checks.ask(device, scene.clock.monotonic())
                scene.checks.on_digest(device, TRUE + 1)
            await asyncio.sleep(0.1)
            assert scene.store.asked == [100, 50]
            assert [device.differed for device in devices] == [False] * 100 + [True] * 50

    run_virtual(main)


def test_an_answer_that_leaves_somebody_out_is_taken_for_nobody():
    async def main(_rng: Random) -> None:
        async with open_scene() as scene:
            scene.store.missing = 1
            await scene.answers(scene.device(), TRUE)
            with pytest.raises(ValueError, match="shorter"):
                await scene.running

    run_virtual(main)
