"""The judge sees: with one rule of the design broken, the simulation finds it within a bounded number of seeds."""

import pytest
from conftest import SEEDS_MAX

from parley_simulation import store_mutations, world_mutations
from tests.simulation import one_line_mutations


@pytest.mark.parametrize("name", store_mutations.mutations)
def test_a_store_with_a_broken_rule_is_found(name, fates):
    assert fates[name].result() is not None, f"survived {SEEDS_MAX} seeds: {name}"


@pytest.mark.parametrize("name", world_mutations.mutations)
def test_a_system_with_a_broken_rule_is_found(name, fates):
    assert fates[name].result() is not None, f"survived {SEEDS_MAX} seeds: {name}"


QUICK = (  # found by the first seed or two
    "a half-written row of its own answers a record",
    "the place in the log is not loaded with the state",
    "the stamp is not loaded with the state",
    "a joining counts as a message",
    "the offset passes a batch that failed",
    "a question for the log epoch that gets no answer ends the store",
    "a delivered watermark may be beyond the head",
    "sending reads up to the head",
    "what is read stays among the own unread",
    "the others' inbox rows do not learn of a message",
)


@pytest.mark.parametrize("name", QUICK)
def test_a_store_with_one_line_changed_is_found(name, fates):
    """`make mutants` runs those that take longer, too."""
    assert fates[name].result() is not None, f"survived {SEEDS_MAX} seeds: {name}"


@pytest.mark.parametrize("name", one_line_mutations.mutations)
def test_every_mutation_of_one_line_fits_the_code(name, monkeypatch):
    one_line_mutations.mutations[name].apply(monkeypatch)
