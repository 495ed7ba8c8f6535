"""What a device misses unnoticed, it is told at last: its digest and the store's differ twice in a row."""

import random

import pytest

from parley.gateway.v1.gateway_service_pb2 import DeliverRequest, DeliverResponse
from parley_simulation.processes import BrokenError
from parley_simulation.world import run_world
from services.gateway.checks import DigestChecks
from services.gateway.deliver import GatewayRpc
from tests.simulation.mutants import likely_first

LOST = 0.2  # of what is delivered
SEEDS = range(3)
SEEDS_MAX = 20  # where nobody asks: what is lost shows only if nothing came after it


@pytest.fixture(autouse=True)
def lossy_gateways(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let gateways say that they delivered what they dropped: worse than anything that moves of slots and patient routers do."""
    original, rng = GatewayRpc.deliver, random.Random(1)

    def deliver(self: GatewayRpc, request: DeliverRequest) -> DeliverResponse:
        kept = [event for event in request.events if event.own or rng.random() > LOST]
        del request.events[:]
        request.events.extend(kept)
        return original(self, request)

    monkeypatch.setattr(GatewayRpc, "deliver", deliver)


@pytest.mark.parametrize("seed", SEEDS)
def test_devices_end_with_all_that_is_theirs(seed: int) -> None:
    run_world(seed, rates={})


def test_without_being_asked_they_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DigestChecks, "ask", lambda self, session, now: None)
    with pytest.raises(BrokenError):
        run_all(likely_first(SEEDS_MAX, likely=1))


def run_all(seeds: list[int]) -> None:
    for seed in seeds:
        run_world(seed, rates={})
