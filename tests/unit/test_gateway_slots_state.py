"""What sessions, views, answers and a router's word leave behind in a gateway's slots, and what they do not."""

import math

import pytest

from chassis.registry import Epoch, Holder, Instance
from parley_protocol.slots import fingerprint, slot_of
from services.gateway.slots import KEYS_A_TRANSACTION, Ended, Slots
from tests.unit.slots_scene import COUNT, FIRST, ONE, SETTLE, TWO, gateway, held, owner


def test_without_a_session_nothing_is_asked_for():
    slots = Slots("g1", COUNT, settle_seconds=SETTLE, slots_per_second=1000.0)
    slots.on_instances([ONE], 0.0)
    assert slots.plan(100.0) == ((), (), math.inf)
    slots.on_holders({}, 0.0)
    assert slots.plan(100.0) == ((), (), math.inf)


def test_a_slow_rate_leaves_room_for_one_transaction():
    slots = gateway(2 * KEYS_A_TRANSACTION, rate=1.0)
    slots.on_instances([ONE], 0.0)
    slots.on_holders({}, 0.0)
    assert len(slots.plan(SETTLE).acquire) == KEYS_A_TRANSACTION


def test_those_who_are_shown_first_count_at_once_and_not_anew_each_time():
    slots = gateway()
    slots.on_instances([ONE, TWO], 5.0)
    assert slots.has_heir
    slots.on_holders({}, 5.0)
    slots.on_instances([ONE, TWO], 6.0)
    assert set(slots.plan(SETTLE).acquire) == FIRST
    slots = owner(instances=(ONE,))
    slots.on_instances([ONE, TWO], 50.0)
    slots.on_instances([ONE, TWO], 55.0)
    assert set(slots.plan(50.0 + SETTLE).release) == set(range(COUNT)) - FIRST


def test_the_fingerprint_is_that_of_what_is_served_now():
    slots = gateway()
    slots.on_instances([ONE, TWO], 0.0)
    assert slots.fingerprint == fingerprint({})
    slots.on_acquired([3, 4], {3: Epoch("s1", 1), 4: Epoch("s1", 2)}, 0.0)
    assert slots.fingerprint == fingerprint({3: Epoch("s1", 1), 4: Epoch("s1", 2)})
    slots.on_told(4, Epoch("s1", 2), Holder("g2", Epoch("s9", 3)), "")
    assert slots.fingerprint == fingerprint({3: Epoch("s1", 1)})


def test_devices_of_slots_served_here_belong_at_ones_public_address_once_it_is_known():
    slots = owner()
    assert slots.address_of(3) == ""
    slots.public_address = "outside:1"
    assert slots.address_of(3) == "outside:1"


def test_the_address_of_one_who_is_gone_or_has_none_is_not_known():
    slots = owner(of=())
    slots.on_holders(held([3], "g2", "s9") | held([4], "g3", "s8"), 1.0)
    assert (slots.address_of(3), slots.address_of(4)) == ("g2:1", None)
    slots.on_instances([ONE, Instance("gateway", "g3", "g3-inside:1")], 2.0)
    assert (slots.address_of(3), slots.address_of(4)) == (None, None)


def test_a_slot_that_ends_by_one_who_is_not_shown_ends_without_an_address():
    assert owner().on_holders(held([3], "g3", "s9"), 1.0) == [Ended(3, "")]


def test_slots_are_counted_as_this_gateway_counts_them():
    slots = owner(of=())
    slots.on_holders(held([COUNT, COUNT + 1]), 1.0)
    assert slots.epochs == {}, "a lock beyond the last slot is none of ours"
    users = [f"user {number}" for number in range(20)]
    assert [slots.slot_of(user) for user in users] == [slot_of(user, COUNT) for user in users]


def test_a_lock_of_an_earlier_session_is_not_served_nor_given_away():
    slots = owner(of=())
    slots.on_session("s2", 1.0)
    slots.on_holders(held([3]), 1.0)
    assert slots.epochs == {}
    assert slots.owner_of(3) is None, "the lock is about to end"
    slots = owner()
    slots.on_session("s2", 1.0)
    assert slots.plan(1.0).release == []


def test_what_an_answer_said_counts_before_a_view_shows_it():
    slots = gateway()
    slots.on_instances([ONE, TWO], -100.0)
    slots.on_holders({}, 0.0)
    slots.on_acquired(range(COUNT), {slot: Epoch("s1", 1) for slot in range(COUNT)}, 1.0)
    plan = slots.plan(1.0)
    assert (plan.acquire, set(plan.release)) == ([], set(range(COUNT)) - FIRST)
    slots.on_released(plan.release, 1.0)
    assert slots.plan(1.0) == ([], [], 6.0)
    slots.on_released(plan.release, 2.0)
    assert slots.plan(2.0) == ([], [], 7.0), "once more, though it is free"


def test_answers_may_come_before_the_first_view():
    slots = gateway()
    slots.on_acquired([3, 4], {3: Epoch("s1", 1)}, 0.0)
    slots.on_released([3], 0.0)
    assert slots.on_told(3, Epoch("s1", 1), Holder("g2", Epoch("s9", 3)), "g2:1") == Ended(3, "g2:1")
    assert slots.epochs == {}


def test_a_doubt_ends_with_a_view_that_shows_our_lock():
    slots = owner(of=())
    slots.on_acquired([3], {3: Epoch("s1", 9)}, 1.0)
    slots.on_holders(held([3], "g2", "s9", 7), 1.1)
    slots.on_holders(held([3], index=9), 1.2)
    assert slots.plan(1.2).acquire == []


@pytest.mark.parametrize("view", [{}, held([3], session="s0", index=8)], ids=["free", "ours, earlier"])
def test_a_refused_lock_ends_nothing_where_the_last_view_names_nobody_else(view):
    slots = owner(of=())
    slots.on_session("s0", 0.0)
    slots.on_session("s1", 0.0)
    slots.on_acquired([3], {3: Epoch("s1", 9)}, 1.0)
    slots.on_holders(held([3], "g2", "s9", 7), 1.1)
    slots.on_holders(view, 1.2)
    assert slots.on_acquired([3], {}, 1.3) == []
    assert slots.epochs == {3: Epoch("s1", 9)}


def test_a_refused_lock_that_another_one_took_first_ends_nothing():
    slots = owner(of=())
    slots.on_holders(held([3], "g2", "s9"), 1.0)
    assert slots.on_acquired([3], {}, 1.1) == []


def test_a_lock_that_was_shown_and_is_granted_again_needs_no_other_view():
    slots = owner()
    slots.on_acquired([3], {3: Epoch("s1", 1)}, 1.0)
    assert slots.on_holders(held([3], "g2", "s9"), 1.1) == [Ended(3, "g2:1")]


def test_what_was_refused_or_let_go_and_is_ours_again_is_taken_back_at_once():
    slots = owner(of=())
    slots.on_acquired([3], {}, 1.0)
    slots.on_holders(held([3]), 1.1)
    slots.on_holders({}, 1.2)
    assert slots.plan(1.2).acquire == [3]
    slots.on_released([3], 1.3)
    slots.on_acquired([3], {3: Epoch("s1", 2)}, 1.4)
    slots.on_holders({}, 1.5)
    assert slots.plan(1.5).acquire == [3]


def test_a_slot_that_ended_leaves_no_doubt_behind():
    slots = owner(of=(), instances=(ONE,))
    theirs = held([3], "g2", "s9", 11)
    slots.on_acquired([3], {3: Epoch("s1", 9)}, 1.0)
    slots.on_holders(theirs, 1.1)
    assert slots.on_acquired([3], {}, 1.2) == [Ended(3, "")]
    others = [slot for slot in range(COUNT) if slot != 3]
    assert slots.plan(20.0).acquire == others
    slots.on_holders(theirs, 20.0)
    assert slots.plan(20.0).acquire == others


def test_a_slot_that_was_let_go_and_ended_is_taken_at_once_when_it_is_free_again():
    slots = owner()
    plan = slots.plan(20.0)
    slots.on_released(plan.release, 20.0)
    slots.on_holders(held(FIRST) | held(plan.release, "g2", "s9"), 21.0)
    slots.on_instances([ONE], 22.0)
    slots.on_holders(held(FIRST), 22.0)
    assert set(slots.plan(22.0).acquire) == set(plan.release)


def test_a_router_s_word_must_be_of_the_epoch_that_is_served_and_of_another_gateway():
    slots = owner()
    assert slots.on_told(3, Epoch("s1", 2), Holder("g9", Epoch("s9", 5)), "g9:1") is None
    assert slots.on_told(3, Epoch("s1", 1), Holder("g1", Epoch("s1", 2)), "g1:1") is None
    assert slots.is_whole


def test_a_router_that_knows_no_address_does_not_hide_one_that_comes_later():
    slots = owner()
    theirs = Holder("g9", Epoch("s9", 5))
    assert slots.on_told(3, Epoch("s1", 1), theirs, "") == Ended(3, "")
    assert slots.on_told(4, Epoch("s1", 1), theirs, "g9:1") == Ended(4, "g9:1")


def test_what_an_old_view_calls_ours_after_a_router_s_word_is_not_let_go_for_another():
    slots = owner()
    ended = min(set(range(COUNT)) - FIRST)
    slots.on_told(ended, Epoch("s1", 1), Holder("g2", Epoch("s9", 5)), "g2:1")
    slots.on_holders(held(range(COUNT)), 1.0)
    assert set(slots.plan(1.0).release) == set(range(COUNT)) - FIRST - {ended}
