"""A gateway that stops in order is nothing that an app notices: what it asks meanwhile is answered. Chaos found questions cut."""

import asyncio
from typing import Any

import grpc
import pytest

from chassis.testing.faults import DRAIN, SLOW
from parley_client import CallError, Client, ClientOptions
from parley_client.notices import ConnectionChanged
from parley_simulation import world
from parley_simulation.devices import CALM, SimulatedDevice
from parley_simulation.world import run_world
from tests.mutation import replace

SEEDS = range(2)
RATES = {DRAIN: 1.0, SLOW: 0.5}  # slow answers are under way when a link moves
CUT = ("the connection was closed", "failed to connect")  # by the network, as it were: what a service says is an answer
answered: list[str] = []
cut: list[str] = []


class CuriousDevice(SimulatedDevice):
    """Never loses its network, and asks on and on."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._crowd.restlessness = CALM

    async def _act(self, process: Any, client: Client, radio: Any, group: asyncio.TaskGroup, answers: Any) -> None:
        asking = group.create_task(self._ask_on(client))
        await super()._act(process, client, radio, group, answers)
        asking.cancel()

    async def _ask_on(self, client: Client) -> None:
        """Ask whenever the connection ends: the link is about to leave the channel that the question goes by."""
        with client.changes() as notices:
            async for notice in notices:
                if isinstance(notice, ConnectionChanged) and (conversations := client.conversations()):
                    asked = asyncio.get_running_loop().time()
                    try:
                        await client.get_conversation(self._rng.choice(conversations).conversation_id)
                    except CallError as error:
                        in_time = asyncio.get_running_loop().time() - asked < ClientOptions().rpc_timeout_seconds
                        if error.code is grpc.StatusCode.UNAVAILABLE and error.detail.startswith(CUT) and in_time:
                            cut.append(f"{self.device}: {error}")
                    else:
                        answered.append(str(self.device))


@pytest.fixture(autouse=True)
def curious(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(world, "SimulatedDevice", CuriousDevice)
    answered.clear()
    cut.clear()


def test_questions_are_answered_while_gateways_stop_in_order() -> None:
    drains = sum(run_world(seed, rates=RATES).faults[DRAIN] for seed in SEEDS)
    assert drains >= len(SEEDS)
    assert len(answered) > 20
    assert cut == []


def test_a_client_that_asks_once_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    replace(monkeypatch, Client, "_ask", "if error.code is not grpc.StatusCode.UNAVAILABLE or left <= 0:", "if True:")
    for seed in SEEDS:
        run_world(seed, rates=RATES)
    assert cut
