"""Whose rate a command counts against."""

import pytest

from services.gateway import rates
from services.gateway.rates import DeviceRates


def test_each_device_has_one_bucket_however_often_it_comes():
    devices = DeviceRates(1.0, 5)
    assert devices.bucket_of("alice", "phone").take(0.0, 5) == 0.0
    assert devices.bucket_of("alice", "phone").take(0.0) > 0.0
    assert devices.bucket_of("alice", "laptop").take(0.0, 5) == 0.0
    assert devices.bucket_of("bob", "phone").take(0.0, 5) == 0.0


def test_devices_without_number_give_a_user_no_rate_without_bound():
    devices = DeviceRates(1.0, 5)
    granted = sum(devices.bucket_of("mallory", f"d{number}").take(0.0, 5) == 0.0 for number in range(1000))
    assert granted == 33
    assert devices.bucket_of("mallory", "d0") is not devices.bucket_of("mallory", "d1")
    assert devices.bucket_of("alice", "phone").take(0.0, 5) == 0.0


def test_memory_is_bounded_and_who_came_last_is_remembered(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(rates, "_MAX_BUCKETS", 100)
    devices = DeviceRates(1.0, 5)
    kept = devices.bucket_of("alice", "phone")
    for number in range(1000):
        devices.bucket_of(f"u{number % 70}", f"d{number}")
        assert devices.bucket_of("alice", "phone") is kept
        assert sum(map(len, devices._users.values())) == devices._count <= 100
