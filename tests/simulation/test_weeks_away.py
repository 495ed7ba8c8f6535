"""Devices that were switched off with commands pending, and come back when log and answers have expired."""

import pytest
from conftest import SEEDS_MAX

from chassis.testing.faults import AWAY, RATES
from parley_client import ClientOptions
from parley_client.outbox_state import OutboxState
from parley_simulation import devices
from parley_simulation.processes import BrokenError
from parley_simulation.world import run_world
from tests.simulation.mutants import likely_first

EVERYBODY_AWAY = {**RATES, AWAY: 1.0}
SEEDS = range(8)


@pytest.fixture(autouse=True)
def new_devices_begin_with_little(monkeypatch: pytest.MonkeyPatch) -> None:
    """What they asked for weeks ago is seldom among it."""
    options = ClientOptions(first_sync_events=1, sync_events=1, page_events=2, in_flight_commands=4)
    monkeypatch.setattr(devices, "OPTIONS", options)


@pytest.mark.parametrize("seed", SEEDS)
def test_whoever_was_away_for_weeks_keeps_the_contract(seed):
    assert run_world(seed, rates=EVERYBODY_AWAY).verdict.kept


def look_only_at_what_is_held(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(OutboxState, "looked_for", lambda self: {})


def resend_without_a_look(patch: pytest.MonkeyPatch) -> None:
    original = OutboxState.start_stream
    patch.setattr(OutboxState, "start_stream", lambda self, wall_ms: original(self, 0))


@pytest.mark.parametrize(("break_it", "likely"), [(look_only_at_what_is_held, 8), (resend_without_a_look, None)])
def test_a_broken_rule_about_old_commands_is_found(break_it, likely, monkeypatch):
    break_it(monkeypatch)
    for seed in likely_first(SEEDS_MAX, likely):
        try:
            run_world(seed, rates=EVERYBODY_AWAY)
        except BrokenError:
            return
    pytest.fail(f"survived {SEEDS_MAX} seeds")
