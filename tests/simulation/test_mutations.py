"""The judge sees: with one rule of the design broken, the simulation finds it within a bounded number of seeds."""

from functools import partial

import pytest

from parley_simulation import store_mutations, world_mutations
from parley_simulation.processes import BrokenError
from parley_simulation.store_world import run_seed
from parley_simulation.world import run_world

SEEDS_MAX = 40  # a rule whose breach shows more rarely than that is not proven by the seeds that every test run takes


@pytest.mark.parametrize("name", store_mutations.mutations)
def test_a_store_with_a_broken_rule_is_found(name, monkeypatch):
    store_mutations.mutations[name](monkeypatch)
    find(run_seed, name)


@pytest.mark.parametrize("name", world_mutations.mutations)
def test_a_system_with_a_broken_rule_is_found(name, monkeypatch):
    world_mutations.mutations[name](monkeypatch)
    find(partial(run_world, only_router_dies=name in world_mutations.show_in_calm), name)


def find(run, name):
    for seed in range(SEEDS_MAX):
        try:
            run(seed)
        except BrokenError:
            return
    pytest.fail(f"survived {SEEDS_MAX} seeds: {name}")
