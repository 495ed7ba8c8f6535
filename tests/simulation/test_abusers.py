"""G18: devices that send without measure cost the others little, in virtual time: their commands wait, nobody else's do."""

import asyncio
from typing import Any

import grpc.aio
import pytest

from parley.api.v1.commands_pb2 import Command, SendMessage
from parley.api.v1.messaging_service_pb2 import ConnectRequest, DeviceBatch, Hello, LocateRequest
from parley.api.v1.messaging_service_pb2_grpc import MessagingServiceStub
from parley_client import Ticket
from parley_simulation import world
from parley_simulation.devices import CALM, SimulatedDevice
from parley_simulation.processes import Incarnation
from parley_simulation.world import KEY, World, run_world
from services.gateway.keys import mint_token
from services.gateway.rates import DeviceRates
from services.store.config import StoreSettings

ABUSERS = 3
FRAMES = 60  # each full: many times what the rate lets through in the time that the others need
FRAME = 20
SETTLED_SECONDS = 5.0  # until everything is up, and all slots have their owners
SETTINGS = {"slot_settle_seconds": 0, "slots_per_second": 100}
SETTINGS |= {"commands_per_second": 5, "commands_burst": FRAME, "commands_per_frame": FRAME, "group_members": 500}
LATENCY_MAX_SECONDS = 1.0  # from the app's call to its outcome; without abusers it is some 50 ms
SEEDS = range(3)


class TimedDevice(SimulatedDevice):
    """Notes how long its commands take."""

    latencies: list[float]

    async def run(self, process: Incarnation) -> None:
        await asyncio.sleep(SETTLED_SECONDS)
        await super().run(process)

    async def _note_answer(self, ticket: Ticket) -> None:
        began = self._simulation.clock.monotonic()
        await super()._note_answer(ticket)
        self.latencies.append(self._simulation.clock.monotonic() - began)


class HostileWorld(World):
    """All devices at once, and abusers beside them."""

    async def _drive(self) -> Any:
        self.crowd.restlessness = CALM
        abusers = [asyncio.create_task(self._flood(number)) for number in range(ABUSERS)]
        verdict = await super()._drive()
        await asyncio.gather(*abusers)
        return verdict

    async def _flood(self, number: int) -> None:
        """Send frame after frame as fast as the gateway reads, deaf to what it answers, until it sends us away."""
        await asyncio.sleep(SETTLED_SECONDS)
        simulation, device = self.simulation, f"m{number}"
        stream = simulation.faults.stream(f"link of {device}")
        token = mint_token(KEY, "mallory", device, 400 * 24 * 3600.0, simulation.clock.wall_ms() / 1000)
        metadata = (("authorization", f"Bearer {token}"),)
        async with self._public["gateway-0"].connect(device, stream, keepalive=True) as channel:
            where = (await MessagingServiceStub(channel).Locate(LocateRequest(), metadata=metadata)).address
        async with self._public[where].connect(device, stream, keepalive=True) as channel:
            call = MessagingServiceStub(channel).Connect(metadata=metadata)
            listening = asyncio.create_task(self._listen(call))
            try:
                await call.write(ConnectRequest(hello=Hello(device_id=device)))
                for frame in range(FRAMES):
                    first = frame * FRAME
                    commands = [self._command(b"%02d%014d" % (number, first + at), f"u{frame % 7}") for at in range(FRAME)]
                    batch = DeviceBatch(first_command_number=1 + first, commands=commands)
                    await asyncio.wait_for(call.write(ConnectRequest(batch=batch)), 20.0)
                await asyncio.sleep(20.0)  # much of it is still on its way
            except (TimeoutError, grpc.aio.AioRpcError, asyncio.InvalidStateError):
                pass  # slowed to a halt, or sent away: both are what this is about
            call.cancel()
            await listening

    def _command(self, request_id: bytes, to_user: str) -> Command:
        return Command(request_id=request_id, to_user_id=to_user, send_message=SendMessage(body=b"x"))

    async def _listen(self, call: Any) -> None:
        try:
            while await call.read() is not grpc.aio.EOF:
                pass
        except (grpc.aio.AioRpcError, asyncio.CancelledError):
            return


@pytest.fixture
def latencies(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    monkeypatch.setattr(TimedDevice, "latencies", [], raising=False)
    monkeypatch.setattr(world, "SimulatedDevice", TimedDevice)
    monkeypatch.setattr(world, "World", HostileWorld)
    monkeypatch.setattr(world, "GATEWAY_SETTINGS", world.GATEWAY_SETTINGS.model_copy(update=SETTINGS))
    monkeypatch.setattr(world, "tiny_settings", lambda rng: StoreSettings(poll_records=20))
    return TimedDevice.latencies


def slowest(latencies: list[float], seed: int) -> float:
    run_world(seed, rates={})
    assert len(latencies) > 20
    return max(latencies)


@pytest.mark.parametrize("seed", SEEDS)
def test_floods_do_not_make_others_wait(seed, latencies):
    assert slowest(latencies, seed) < LATENCY_MAX_SECONDS


def test_a_gateway_that_takes_everything_is_found(latencies, monkeypatch):
    original = DeviceRates.__init__
    monkeypatch.setattr(DeviceRates, "__init__", lambda self, rate, burst: original(self, 1e9, 1_000_000_000))
    assert slowest(latencies, SEEDS[1]) > LATENCY_MAX_SECONDS
