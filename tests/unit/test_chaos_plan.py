"""Which faults a seed draws."""

from random import Random

from parley_chaos.plan import Kind, draw, possible

SERVICES = ["gateway-1", "gateway-2", "router-1", "store-1"]
LINKS = ["to-consul", "to-store-1"]
TARGETS = possible(SERVICES, LINKS)


def test_a_seed_draws_the_same_faults_and_another_one_others() -> None:
    assert draw(Random(1), TARGETS, 30) == draw(Random(1), TARGETS, 30)
    assert draw(Random(1), TARGETS, 30) != draw(Random(2), TARGETS, 30)


def test_every_kind_comes_before_one_comes_again() -> None:
    faults = draw(Random(3), TARGETS, 2 * len(Kind))
    assert {fault.kind for fault in faults[: len(Kind)]} == set(Kind)
    assert {fault.kind for fault in faults[len(Kind) :]} == set(Kind)


def test_a_kinds_targets_take_turns() -> None:
    faults = draw(Random(4), {Kind.KILL: SERVICES}, 2 * len(SERVICES))
    assert sorted(fault.target for fault in faults[: len(SERVICES)]) == SERVICES


def test_without_links_none_is_spoilt() -> None:
    assert Kind.CUT not in possible(SERVICES, [])
