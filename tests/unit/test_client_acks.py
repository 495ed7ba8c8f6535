"""When a client acknowledges: merged, rarely, and never backwards."""

from random import Random

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
    moments = set()
    for seed in range(20):
        state = AckState(Random(seed))
        state.mark(Ack("large", 1, 0), 500, 0.0)
        moments.add(state.next_due())
    assert len(moments) == 20


def test_at_the_end_everything_goes_out():
    state = acks()
    state.mark(Ack("x", 1, 0), 2, 0.0)
    state.take(0.0)
    state.mark(Ack("x", 2, 0), 2, 0.0)
    state.mark(Ack("large", 1, 0), 500, 0.0)
    assert state.take(0.0, everything=True) == [Ack("x", 2, 0), Ack("large", 1, 0)]
    assert state.next_due() is None


def test_a_frame_of_acks_is_bounded():
    state = acks()
    for number in range(MAX_ACKS_PER_FRAME + 1):
        state.mark(Ack(str(number), 1, 0), 2, 0.0)
    assert len(state.take(0.0)) == MAX_ACKS_PER_FRAME
    assert len(state.take(1.0)) == 1
