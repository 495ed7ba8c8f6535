import pytest
from hypothesis import given
from hypothesis import strategies as st

from chassis.rate import TokenBucket


def test_a_burst_passes_then_the_rate_holds():
    bucket = TokenBucket(rate_per_second=2, burst=3)
    assert [bucket.take(100.0) for _ in range(3)] == [0.0, 0.0, 0.0]
    assert bucket.take(100.0) == 0.5
    assert bucket.take(100.25) == 0.25
    assert bucket.take(100.5) == 0.0
    assert bucket.take(100.5) == 0.5


def test_a_refused_take_costs_nothing():
    bucket = TokenBucket(rate_per_second=1, burst=1)
    bucket.take(0.0)
    for _ in range(10):
        assert bucket.take(0.5) == 0.5
    assert bucket.take(1.0) == 0.0


def test_several_tokens_are_taken_together_or_not_at_all():
    bucket = TokenBucket(rate_per_second=10, burst=10)
    assert bucket.take(0.0, 8) == 0.0
    assert bucket.take(0.0, 4) == pytest.approx(0.2)
    assert bucket.take(0.0, 2) == 0.0


def test_more_than_the_burst_is_a_mistake_of_the_caller():
    with pytest.raises(ValueError, match="never fit"):
        TokenBucket(1, 5).take(0.0, 6)


@pytest.mark.parametrize(("rate", "burst"), [(0, 1), (-1, 1), (1, 0)])
def test_a_bucket_that_would_never_give_is_refused(rate, burst):
    with pytest.raises(ValueError, match="rate above 0"):
        TokenBucket(rate, burst)


def test_a_clock_that_steps_back_gives_nothing_and_takes_nothing():
    bucket = TokenBucket(rate_per_second=1, burst=2)
    assert bucket.take(100.0, 2) == 0.0
    assert bucket.take(50.0) == 1.0
    assert bucket.take(101.0) == 0.0


@given(st.lists(st.tuples(st.floats(0, 10), st.integers(1, 5)), max_size=50))
def test_never_more_than_burst_plus_rate_times_time(steps):
    bucket, now, taken = TokenBucket(rate_per_second=3, burst=5), 0.0, 0
    for pause, n in steps:
        now += pause
        if bucket.take(now, n) == 0.0:
            taken += n
    assert taken <= 5 + 3 * now + 1e-6


@given(st.floats(0.1, 100), st.integers(1, 20), st.integers(1, 20))
def test_waiting_as_long_as_told_is_enough(rate, burst, n):
    bucket, n = TokenBucket(rate, burst), min(n, burst)
    bucket.take(0.0, burst)
    wait = bucket.take(0.0, n)
    assert bucket.take(wait * (1 + 1e-9), n) == 0.0
