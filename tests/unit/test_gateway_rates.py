"""Whose rate a command counts against."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from chassis.rate import TokenBucket
from services.gateway import rates
from services.gateway.rates import DeviceRates


def test_each_device_has_one_bucket_however_often_it_comes():
    devices = DeviceRates(1.0, 5)
    assert devices.bucket_of("alice", "phone", 0.0).take(0.0, 5) == 0.0
    assert devices.bucket_of("alice", "phone", 0.0).take(0.0) > 0.0
    assert devices.bucket_of("alice", "laptop", 0.0).take(0.0, 5) == 0.0
    assert devices.bucket_of("bob", "phone", 0.0).take(0.0, 5) == 0.0


def test_devices_without_number_give_a_user_no_rate_without_bound():
    devices = DeviceRates(1.0, 5)
    granted = sum(devices.bucket_of("mallory", f"d{number}", 0.0).take(0.0, 5) == 0.0 for number in range(1000))
    assert granted == 33
    assert devices.bucket_of("mallory", "d0", 0.0) is not devices.bucket_of("mallory", "d1", 0.0)
    assert devices.bucket_of("alice", "phone", 0.0).take(0.0, 5) == 0.0


def test_memory_is_bounded_and_who_came_last_is_remembered(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(rates, "_MAX_BUCKETS", 100)
    devices = DeviceRates(1.0, 5)
    kept = devices.bucket_of("alice", "phone", 0.0)
    for number in range(1000):
        devices.bucket_of(f"u{number % 70}", f"d{number}", 0.0)
        assert devices.bucket_of("alice", "phone", 0.0) is kept
        held = [*devices._users.values(), *devices._earlier.values()]
        assert sum(map(len, held)) <= 100
        assert devices.user_count == len(held)
        assert devices._count == sum(map(len, devices._users.values()))


def test_a_generation_holds_half_of_all_and_who_comes_back_is_counted_with_all_he_has(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(rates, "_MAX_BUCKETS", 11)
    devices = DeviceRates(1.0, 5)
    for number in range(3):
        devices.bucket_of("alice", f"d{number}", 0.0)
    for user in ("bob", "carol"):
        devices.bucket_of(user, "phone", 0.0)
    assert (len(devices._users), len(devices._earlier)) == (3, 0)
    devices.bucket_of("dave", "phone", 10.0)
    assert (len(devices._users), len(devices._earlier)) == (1, 3)
    devices.bucket_of("erin", "phone", 10.0)
    devices.bucket_of("alice", "d0", 10.0)  # two and her three are half of all
    assert (devices._users.keys(), devices._earlier.keys()) == ({"alice", "dave", "erin"}, {"bob", "carol"})
    devices.bucket_of("alice", "d3", 10.0)  # one more: the turn before she is one of the new
    assert (devices._users.keys(), devices._earlier.keys()) == ({"alice"}, {"dave", "erin"})
    devices.forget_full(14.0)  # 4 s after the turn there may be some that are not full
    assert devices.user_count == 3


def test_few_users_of_many_devices_are_bounded_as_well(monkeypatch: pytest.MonkeyPatch):
    """Those who are there bring new devices, and nobody comes who was not there."""
    monkeypatch.setattr(rates, "_MAX_BUCKETS", 100)
    devices = DeviceRates(1.0, 5)
    for number in range(32):
        for user in ("alice", "bob", "carol", "dave"):
            kept = devices.bucket_of(user, f"d{number}", 0.0)
            assert devices.bucket_of(user, f"d{number}", 0.0) is kept
            assert devices._count == sum(map(len, devices._users.values())) <= 50
            assert sum(map(len, devices._earlier.values())) <= 50
    assert devices.user_count < 4  # who came longest ago is forgotten with all his


def test_what_is_forgotten_is_full_and_what_is_full_is_forgotten():
    devices = DeviceRates(2.0, 10)
    devices.forget_full(100.0)
    devices.bucket_of("alice", "phone", 100.0).take(100.0, 10)
    devices.forget_full(104.9)
    devices.forget_full(105.0)  # bob comes after this turn
    bob = devices.bucket_of("bob", "phone", 105.0)
    devices.forget_full(109.9)
    assert devices.user_count == 2
    devices.forget_full(110.0)
    assert devices.user_count == 1
    assert devices.bucket_of("bob", "phone", 110.0) is bob
    devices.forget_full(120.0)
    devices.forget_full(130.0)
    assert devices.user_count == 0


@given(st.lists(st.tuples(st.floats(0, 4), st.integers(0, 3), st.integers(1, 5)), max_size=80), st.integers(4, 100))
@example([(0.0, 0, 4), (0.2, 0, 2), (0.8, 0, 4)], 4)
def test_forgetting_grants_nobody_more_than_one_bucket_would(steps, most):
    """However often full ones are forgotten; only beyond the bound (not reached here) somebody gains."""
    rounding = 1e-6  # a token's: refilled in other steps, a bucket may hold 1e-16 less
    devices, buckets, now = DeviceRates(3.0, 5), [TokenBucket(3.0, 5 + rounding) for _ in range(4)], 0.0
    for count, (pause, user, n) in enumerate(steps):
        now += pause
        if count % most == 0:
            devices.forget_full(now)
        granted = devices.bucket_of(f"u{user}", "phone", now).take(now, n) == 0.0
        assert not granted or buckets[user].take(now, n) == 0.0
        devices.forget_full(now)
