"""Which faults a seed draws, and which of them together."""

from random import Random

from parley_chaos.plan import DEVICES, ENGINES, Fault, Kind, draw, overlap, possible

SERVICES = ["gateway-1", "gateway-2", "router-1", "store-1"]
LINKS = ["store-1-to-consul", "to-store-1"]
CLOCKS = ["store-1", "kafka", DEVICES]
TARGETS = possible(SERVICES, LINKS, CLOCKS)


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


def test_what_is_not_there_is_not_broken() -> None:
    targets = possible(SERVICES, [], [])
    assert not targets.keys() & {Kind.CUT, Kind.CLOCK_AHEAD}
    assert targets[Kind.KILL_ENGINE] == list(ENGINES)


def test_gateways_drain_and_others_restart() -> None:
    assert TARGETS[Kind.DRAIN] == ["gateway-1", "gateway-2"]
    assert TARGETS[Kind.RESTART] == ["router-1", "store-1"]


def test_two_faults_at_once_are_of_two_kinds_and_on_two_things() -> None:
    faults = draw(Random(5), TARGETS, 2000)
    rounds = overlap(Random(5), faults)
    assert [fault for together in rounds for fault in together] == faults
    pairs = [together for together in rounds if len(together) > 1]
    assert len(pairs) > 200
    for one, other in pairs:
        assert one.kind is not other.kind
        assert one.target not in other.target
        assert other.target not in one.target


def test_a_link_is_not_spoilt_while_its_end_is_away() -> None:
    faults = [Fault(Kind.KILL, "store-1", 1.0, 0.0), Fault(Kind.CUT, "to-store-1", 1.0, 1.0)] * 100
    assert all(len(together) == 1 for together in overlap(Random(6), faults))
