"""One partition of the log is away for ten minutes: its conversations wait, nobody else's do. Judged in virtual time."""

import asyncio
from typing import Any

import pytest

from chassis.eventlog import partition_for
from parley_client import RejectedError, Ticket
from parley_protocol.topics import COMMANDS, EVENTS
from parley_simulation import devices, world
from parley_simulation.devices import CALM, SimulatedDevice
from parley_simulation.plan import Plan, Scene
from parley_simulation.world import World, run_world
from services.gateway.log_writer import Lane
from services.store.config import StoreSettings

AWAY_SECONDS = 600.0
WAIT_MAX_SECONDS = 2.0  # for an outcome on the other partition; some 50 ms are usual, a second where a rate says: later
START_SECONDS = 30.0  # gateways share the slots, devices connect, and some have talked
SEEDS = [seed for seed in range(12) if world.partitions_of(seed) == 2][:2]


class TimedDevice(SimulatedDevice):
    """Notes how long its commands take, by partition."""

    waits: dict[int, list[float]]

    async def _note_answer(self, ticket: Ticket) -> None:
        began = self._simulation.clock.monotonic()
        await super()._note_answer(ticket)
        try:
            conversation_id = (await ticket.accepted()).conversation_id
        except RejectedError:
            return
        if began < START_SECONDS:
            return
        self.waits[partition_for(conversation_id.encode(), 2)].append(self._simulation.clock.monotonic() - began)


class LameWorld(World):
    """Partition 0 of commands and events goes away while devices talk."""

    async def _drive(self) -> Any:
        self.crowd.restlessness = CALM
        await asyncio.sleep(START_SECONDS)
        for topic in (COMMANDS, EVENTS):
            self.simulation.topics.take_away(topic, 0, AWAY_SECONDS)
        return await super()._drive()


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> dict[int, list[float]]:
    monkeypatch.setattr(TimedDevice, "waits", {0: [], 1: []}, raising=False)
    monkeypatch.setattr(world, "SimulatedDevice", TimedDevice)
    monkeypatch.setattr(world, "World", LameWorld)
    # Limits that are tiny elsewhere would make a device's own commands wait for each other.
    monkeypatch.setattr(world, "GATEWAY_SETTINGS", world.GATEWAY_SETTINGS.model_copy(update={"commands_per_second": 50}))
    monkeypatch.setattr(devices, "OPTIONS", devices.ClientOptions())
    monkeypatch.setattr(devices, "READ_BACK", 0.0)
    monkeypatch.setattr(world, "tiny_settings", lambda rng: StoreSettings(poll_records=20))
    return TimedDevice.waits


def run(seed: int) -> None:
    run_world(seed, plan=Plan.of(Scene.SYSTEM, seed).with_less({"seconds": int(AWAY_SECONDS) + 60, "actions": 50}), rates={})


@pytest.mark.parametrize("seed", SEEDS)
def test_a_partition_that_is_away_for_ten_minutes_costs_the_others_nothing(seed, waits):
    run(seed)
    assert max(waits[0]) > AWAY_SECONDS / 2, "its conversations waited, and were served in the end"
    assert len(waits[1]) > 20
    assert max(waits[1]) < WAIT_MAX_SECONDS


def test_a_gateway_with_one_lane_for_all_is_found(waits, monkeypatch):
    original = Lane._append
    lock = asyncio.Lock()

    async def append(self: Lane, batch: Any) -> None:
        async with lock:
            await original(self, batch)

    monkeypatch.setattr(Lane, "_append", append)
    run(SEEDS[0])
    assert max(waits[1]) > 30 * WAIT_MAX_SECONDS
