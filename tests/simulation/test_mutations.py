"""The judge sees: with one rule of the design broken, the simulation finds it within a bounded number of seeds."""

from functools import partial

import pytest

from parley_simulation import store_mutations, world_mutations
from parley_simulation.processes import BrokenError
from parley_simulation.store_world import run_seed
from parley_simulation.world import run_world
from tests.simulation import one_line_mutations

SEEDS_MAX = 40  # a rule whose breach shows more rarely than that is not proven by the seeds that every test run takes


@pytest.mark.parametrize("name", store_mutations.mutations)
def test_a_store_with_a_broken_rule_is_found(name, monkeypatch):
    store_mutations.mutations[name](monkeypatch)
    find(run_seed, name)


@pytest.mark.parametrize("name", world_mutations.mutations)
def test_a_system_with_a_broken_rule_is_found(name, monkeypatch):
    world_mutations.mutations[name](monkeypatch)
    find(partial(run_world, only_router_dies=name in world_mutations.show_in_calm), name)


QUICK = (  # found by the first seed or two
    "a half-written row of its own answers a record",
    "the place in the log is not loaded with the state",
    "the stamp is not loaded with the state",
    "a joining counts as a message",
    "the offset passes a batch that failed",
    "a delivered watermark may be beyond the head",
    "sending reads up to the head",
    "what is read stays among the own unread",
    "the others' inbox rows do not learn of a message",
)


@pytest.mark.parametrize("name", QUICK)
def test_a_store_with_one_line_changed_is_found(name, monkeypatch):
    """`make mutants` runs those that take longer, too."""
    one_line_mutations.mutations[name].apply(monkeypatch)
    find(run_seed, name)


@pytest.mark.parametrize("name", one_line_mutations.mutations)
def test_every_mutation_of_one_line_fits_the_code(name, monkeypatch):
    one_line_mutations.mutations[name].apply(monkeypatch)


def find(run, name):
    for seed in range(SEEDS_MAX):
        try:
            run(seed)
        except BrokenError:
            return
    pytest.fail(f"survived {SEEDS_MAX} seeds: {name}")
