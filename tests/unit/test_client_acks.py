"""When a client acknowledges: merged, rarely, and never backwards."""

from random import Random

import pytest

from parley_client.ack_state import LARGE_INTERVAL_SECONDS, MAX_ACKS_PER_FRAME, SMALL_INTERVAL_SECONDS, Ack, AckState


def acks() -> AckState:
    return AckState(Random(1))


def test_the_first_ack_goes_at_once_and_the_next_ones_are_merged_for_a_tenth_of_a_second():
    state = acks()
    state.mark(Ack("x", 1, 0), 2, 10.0)
    assert state.take(10.0) == [Ack("x", 1, 0)]
    for seq in range(2, 50):
        state.mark(Ack("x", seq, seq - 1), 2, 10.0)
    assert state.take(10.05) == []
    assert state.next_due() == 10.0 + SMALL_INTERVAL_SECONDS
    assert state.take(10.0 + SMALL_INTERVAL_SECONDS) == [Ack("x", 49, 48)]
    assert state.next_due() is None


def test_merged_watermarks_are_the_highest_of_each():
    state = acks()
    state.mark(Ack("x", 5, 0), 2, 1.0)
    state.mark(Ack("x", 3, 3), 2, 1.0)
    assert state.take(1.0) == [Ack("x", 5, 3)]


def test_a_large_group_is_acknowledged_every_few_seconds_and_holds_nobody_else_up():
    state = acks()
    state.mark(Ack("large", 1, 0), 33, 0.0)
    state.mark(Ack("small", 1, 0), 32, 0.0)
    assert state.take(0.0) == [Ack("small", 1, 0)]
    due = state.next_due()
    assert due is not None
    assert LARGE_INTERVAL_SECONDS[0] <= due <= LARGE_INTERVAL_SECONDS[1]
    state.mark(Ack("large", 9, 0), 33, 1.0)
    assert state.next_due() == due
    assert state.take(due) == [Ack("large", 9, 0)]


def test_devices_of_a_large_group_do_not_ack_at_the_same_moment():
    moments = set[float]()
    for seed in range(200):
        state = AckState(Random(seed))
        state.mark(Ack("large", 1, 0), 500, 0.0)
        moments.add(state.next_due() or 0.0)
    assert len(moments) == 200
    assert 2.0 <= min(moments) < 2.1
    assert 4.9 < max(moments) <= 5.0


def test_the_next_moment_is_that_of_whoever_is_due_first():
    state = acks()
    for conversation in "abc":
        state.mark(Ack(conversation, 1, 0), 500, 0.0)
    moments = list[float]()
    while (due := state.next_due()) is not None:
        moments.append(due)
        assert len(state.take(due)) == 1
    assert len(moments) == 3
    assert moments == sorted(moments)
    state.mark(Ack("a", 2, 0), 500, 9.0)
    state.mark(Ack("x", 1, 0), 2, 9.0)
    assert (state.next_due() or 0.0) <= 9.0


def test_whoever_waits_is_told_when_there_is_a_new_moment_and_not_at_each_ack_of_a_burst():
    state = acks()
    assert [state.mark(Ack(conversation, 1, 0), 2, 0.0) for conversation in "xyxz"] == [True, False, False, False]
    assert [state.mark(Ack(conversation, 1, 0), 500, 0.0) for conversation in "aabb"] == [True, False, True, False]
    state.take(0.0)
    assert state.mark(Ack("x", 2, 0), 2, 0.0)


def test_an_ack_of_a_large_group_holds_no_small_one_up():
    state = acks()
    state.mark(Ack("large", 1, 0), 500, 0.0)
    assert state.take(5.0) == [Ack("large", 1, 0)]
    state.mark(Ack("x", 1, 0), 2, 5.0)
    assert state.take(5.0) == [Ack("x", 1, 0)]


def test_at_the_end_everything_goes_out():
    state = acks()
    state.mark(Ack("x", 1, 0), 2, 0.0)
    state.take(0.0)
    state.mark(Ack("x", 2, 0), 2, 0.0)
    state.mark(Ack("large", 1, 0), 500, 0.0)
    assert state.take(0.0, everything=True) == [Ack("x", 2, 0), Ack("large", 1, 0)]
    assert state.next_due() is None


@pytest.mark.parametrize(("small", "large"), [(501, 0), (0, 501), (300, 201)])
def test_a_frame_of_acks_is_bounded(small: int, large: int):
    state = acks()
    for number in range(501):
        state.mark(Ack(str(number), 1, 0), 2 if number < small else 500, 0.0)
    assert len(state.take(9.0)) == MAX_ACKS_PER_FRAME == 500
    assert len(state.take(9.1)) == 1
