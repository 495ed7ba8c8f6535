"""Where users hash to, and who would own what."""

from collections import Counter

import pytest

from parley_protocol.slots import DRAINING_PREFIX, SLOT_COUNT, rank, slot_key, slot_of, slot_of_key

GATEWAYS = [f"gateway-{number}" for number in range(5)]


def winner(slot: int, gateways: list[str]) -> str:
    return max(gateways, key=lambda gateway: rank(gateway, slot))


def test_a_users_slot_is_the_same_for_good():
    """Computed by the xxHash reference implementation; another value would tear a running cluster apart."""
    assert [slot_of(user) for user in ("alice", "bob", "carol")] == [73, 59, 56]
    assert slot_of("alice", 16) == slot_of("alice") % 16


def test_users_spread_over_the_slots():
    counts = Counter(slot_of(f"user-{number}") for number in range(20 * SLOT_COUNT))
    assert len(counts) == SLOT_COUNT
    assert max(counts.values()) < 50


def test_slots_spread_over_the_gateways_and_only_those_of_one_that_goes_move():
    before = {slot: winner(slot, GATEWAYS) for slot in range(SLOT_COUNT)}
    assert all(150 < count < 260 for count in Counter(before.values()).values())
    after = {slot: winner(slot, GATEWAYS[1:]) for slot in range(SLOT_COUNT)}
    assert {before[slot] for slot in before if before[slot] != after[slot]} == {GATEWAYS[0]}


@pytest.mark.parametrize("key", ["slots/", "slots/draining/g", "slots/-1", "other/7", "7", "slots/\u0663"])
def test_other_keys_are_no_slots(key):
    assert slot_of_key(key) is None


def test_a_slots_key_names_it():
    assert slot_of_key(slot_key(7)) == 7


def test_what_stands_in_a_registry_stays_the_same():
    """Gateways and routers of two versions run side by side during a rollout."""
    assert slot_key(7) == "slots/7"
    assert DRAINING_PREFIX == "slots/draining/"
