"""The client's outbox: numbers, order, holds, resends, and what survives a broken stream."""

from outbox_scene import FRAME, SIZE, command, names, outbox, take

from parley_client.device_frames import COMMAND_OVERHEAD_BYTES
from parley_client.outbox_state import RESEND_SECONDS, Cancel, OutboxState


def test_commands_are_numbered_from_1_in_the_order_of_the_calls():
    box = outbox(command("a"))
    box.add(command("b", "y"))
    assert take(box) == [(1, "a"), (2, "b")]
    box.add(command("c"))
    assert take(box) == [(3, "c")]
    assert not box.has_queued


def test_what_is_called_before_the_first_stream_is_numbered_from_1_too():
    box = OutboxState()
    box.add(command("a"))
    assert take(box) == [(1, "a")]


def test_a_new_stream_counts_from_1_and_resends_all_that_has_no_outcome_in_order():
    box = outbox(command("a"), command("b"), command("c"))
    take(box)
    assert box.settle(b"b") is not None
    box.start_stream(0)
    assert take(box) == [(1, "a"), (2, "c")]


def test_a_new_stream_knows_nothing_of_what_was_held_or_given_up_on_the_old_one():
    box = outbox(command("a1"), command("b1", "y"))
    take(box)
    box.on_retry(b"a1", 1, "x", until=9.0)
    box.on_retry(b"b1", 2, "y", until=9.0)
    assert box.cancel(b"b1") is Cancel.REMOVED
    box.start_stream(0)
    assert box.take_skips() == []
    assert box.next_due() is None
    assert take(box) == [(1, "a1")]


def test_an_outcome_comes_once():
    box = outbox(command("a"))
    take(box)
    assert box.settle(b"a") is not None
    assert box.settle(b"a") is None
    assert take(box) == []


def test_a_frame_holds_at_most_what_the_server_takes():
    box = outbox(*(command(name) for name in "abcde"))
    assert names(box.take(0.0, 2, SIZE)) == [(1, "a"), (2, "b")]
    assert names(box.take(0.0, FRAME, 1)) == [(3, "c")]  # one goes out, however small the frame
    assert box.has_queued
    assert names(box.take(0.0, 2, SIZE)) == [(4, "d"), (5, "e")]
    assert not box.has_queued


def test_a_frame_holds_as_many_bytes_as_the_server_takes():
    box = outbox(*(command(name) for name in "abcde"))
    size = 2 * (1 + COMMAND_OVERHEAD_BYTES)
    taken = [names(box.take(0.0, FRAME, size)) for _ in range(3)]
    assert taken == [[(1, "a"), (2, "b")], [(3, "c"), (4, "d")], [(5, "e")]]


def test_a_window_bounds_what_is_in_flight():
    box = outbox(*(command(name) for name in "abc"), window=2)
    assert take(box) == [(1, "a"), (2, "b")]
    box.settle(b"a")
    assert take(box) == [(3, "c")]


def test_a_window_is_256_commands():
    box = OutboxState()
    for number in range(257):
        box.add(command(str(number)))
    assert len(take(box)) == 256


def test_a_refused_command_takes_no_room_in_the_window():
    box = outbox(command("a1"), command("b1", "y"), window=1)
    assert take(box) == [(1, "a1")]
    box.on_retry(b"a1", 1, "x", until=99.0)
    assert take(box) == [(2, "b1")]


def test_a_refused_command_holds_its_conversation_and_nothing_else():
    box = outbox(command("a1"), command("b1", "y"))
    take(box)
    box.on_retry(b"a1", 1, "x", until=5.0)
    box.add(command("a2"))
    box.add(command("b2", "y"))
    assert take(box, 1.0) == [(3, "b2")]
    assert box.next_due() == 5.0


def test_after_the_delay_the_conversation_is_resent_from_the_number_with_the_same_numbers():
    box = outbox(command("a1"), command("b1", "y"), command("a2"), command("a3"))
    take(box)
    box.settle(b"b1")
    for name in ("a1", "a2", "a3"):
        box.on_retry(name.encode(), 1, "x", until=5.0)
    box.add(command("a4"))
    box.on_time(4.9)
    assert take(box, 4.9) == []
    box.on_time(5.0)
    assert take(box, 5.0) == [(1, "a1"), (3, "a2"), (4, "a3"), (5, "a4")]
    assert box.take_skips() == []


def test_a_hold_is_as_long_as_the_longest_delay_that_was_told():
    box = outbox(command("a1"), command("a2"), command("a3"))
    take(box)
    box.on_retry(b"a1", 1, "x", until=3.0)
    box.on_retry(b"a2", 1, "x", until=5.0)
    box.on_retry(b"a3", 2, "x", until=4.0)
    assert box.next_due() == 5.0
    box.on_time(4.9)
    assert take(box, 4.9) == []
    box.on_time(5.0)
    assert take(box, 5.0) == [(1, "a1"), (2, "a2"), (3, "a3")]


def test_what_is_called_during_a_hold_goes_out_behind_it_and_once():
    box = outbox(command("a1"))
    take(box)
    box.on_retry(b"a1", 1, "x", until=5.0)
    box.add(command("a2"))
    box.on_time(5.0)
    assert names(box.take(5.0, 2, SIZE)) == [(1, "a1"), (2, "a2")]
    assert not box.has_queued


def test_a_refusal_behind_one_that_has_no_answer_yet_waits_for_that_one():
    """The refusal of the first, or its outcome, is on its way: the server waits for its number, not for the later one."""
    box = outbox(command("a1"), command("a2"))
    take(box)
    box.on_retry(b"a2", 1, "x", until=5.0)
    box.settle(b"a1")
    box.on_time(5.0)
    assert box.take_skips() == [(1, "x")]
    assert take(box, 5.0) == [(2, "a2")]


def test_a_refused_command_alone_is_resent_where_an_earlier_one_may_still_get_its_outcome():
    box = outbox(command("a1"), command("a2"))
    take(box)
    box.on_retry(b"a2", 2, "x", until=5.0)
    box.on_time(5.0)
    assert take(box, 5.0) == [(2, "a2")]


def test_resent_numbers_with_holes_go_out_in_frames_of_consecutive_ones():
    box = outbox(command("a1"), command("b1", "y"), command("a2"))
    take(box)
    for name in ("a1", "a2"):
        box.on_retry(name.encode(), 1, "x", until=1.0)
    box.on_time(1.0)
    assert names(box.take(1.0, FRAME, SIZE)) == [(1, "a1")]
    assert names(box.take(1.0, FRAME, SIZE)) == [(3, "a2")]


def test_cancelling_the_refused_command_skips_it_and_the_later_ones_go_on():
    box = outbox(command("a1"), command("a2"))
    take(box)
    box.on_retry(b"a1", 1, "x", until=1.0)
    box.on_retry(b"a2", 1, "x", until=1.0)
    assert box.cancel(b"a1") is Cancel.REMOVED
    assert box.take_skips() == [(1, "x")]
    box.on_retry(b"a2", 1, "x", until=1.0)  # of before the server knew
    box.on_time(1.0)
    assert box.take_skips() == [], "a number is given up once"
    assert take(box, 1.0) == [(2, "a2")]


def test_cancelling_what_was_about_to_be_sent_again_skips_it_once_the_server_asks_for_it():
    box = outbox(command("a1"), command("a2"))
    take(box)
    for name in ("a1", "a2"):
        box.on_retry(name.encode(), 1, "x", until=1.0)
    box.on_time(1.0)
    assert box.cancel(b"a1") is Cancel.REMOVED
    assert box.take_skips() == []
    assert take(box, 1.0) == [(2, "a2")]
    box.on_retry(b"a2", 1, "x", until=2.0)
    box.on_time(2.0)
    assert box.take_skips() == [(1, "x")]
    assert take(box, 2.0) == [(2, "a2")]


def test_cancelling_a_later_refused_command_needs_no_skip():
    box = outbox(command("a1"), command("a2"))
    take(box)
    box.on_retry(b"a1", 1, "x", until=1.0)
    box.on_retry(b"a2", 1, "x", until=1.0)
    assert box.cancel(b"a2") is Cancel.REMOVED
    assert box.take_skips() == []
    box.on_time(1.0)
    assert take(box, 1.0) == [(1, "a1")]


def test_a_command_never_sent_is_cancelled_without_a_word_to_the_server():
    box = outbox(command("a"), command("b"))
    assert box.cancel(b"a") is Cancel.REMOVED
    assert take(box) == [(1, "b")]
    assert box.take_skips() == []


def test_a_command_in_flight_cannot_be_cancelled():
    box = outbox(command("a"))
    take(box)
    assert box.cancel(b"a") is Cancel.MAYBE_STORED
    box.settle(b"a")
    assert box.cancel(b"a") is Cancel.SETTLED


def test_a_command_that_an_earlier_try_may_have_brought_cannot_be_cancelled():
    """Else its app is told that it gave up what all others read."""
    box = outbox(command("a"), command("b", "y"), window=1)
    take(box, 0.0)
    box.on_time(RESEND_SECONDS)  # it waits to be sent again
    assert box.cancel(b"a") is Cancel.MAYBE_STORED
    take(box, RESEND_SECONDS)
    box.on_retry(b"a", 1, "x", until=99.0)  # that is the answer to one of the two
    assert box.cancel(b"a") is Cancel.MAYBE_STORED
    box.start_stream(0)
    assert box.cancel(b"a") is Cancel.MAYBE_STORED
    kept = OutboxState([command("c")])
    kept.start_stream(0)
    assert kept.cancel(b"c") is Cancel.MAYBE_STORED, "the run before may have sent it"


def test_a_command_that_was_refused_each_time_can_be_cancelled_also_on_the_next_stream():
    box = outbox(command("a"))
    for _ in range(2):
        take(box)
        box.on_retry(b"a", 1, "x", until=1.0)
        box.on_retry(b"a", 1, "x", until=1.0)  # whatever a server says twice
        box.on_time(1.0)
    take(box)
    assert box.cancel(b"a") is Cancel.MAYBE_STORED
    box.on_retry(b"a", 1, "x", until=1.0)
    box.start_stream(0)
    assert box.cancel(b"a") is Cancel.REMOVED
    assert not box.pending


def test_a_number_that_settled_during_its_hold_is_skipped_so_that_the_server_waits_no_more():
    box = outbox(command("a1"), command("a2"))
    take(box)
    box.on_retry(b"a1", 1, "x", until=1.0)
    box.on_retry(b"a2", 1, "x", until=1.0)
    box.settle(b"a1")  # it had been stored by an earlier stream, and the timeline showed it
    box.on_time(1.0)
    assert box.take_skips() == [(1, "x")]
    assert take(box, 1.0) == [(2, "a2")]


def test_what_has_no_outcome_for_30_seconds_is_resent_with_all_that_follows_it_in_its_conversation():
    box = outbox(command("a1"), command("b1", "y"))
    take(box, 0.0)
    box.add(command("a2"))
    take(box, 20.0)
    box.settle(b"b1")
    assert box.next_due() == RESEND_SECONDS == 30.0
    box.on_time(RESEND_SECONDS)
    assert take(box, RESEND_SECONDS) == [(1, "a1"), (3, "a2")]


def test_what_is_resent_takes_no_more_room_in_the_window_than_before():
    box = outbox(command("a1"), command("b1", "y"), command("a2"), window=2)
    take(box, 0.0)
    box.on_time(RESEND_SECONDS)
    assert sorted(take(box, RESEND_SECONDS)) == [(1, "a1"), (2, "b1")]
    assert box.next_due() == 2 * RESEND_SECONDS


def test_what_has_no_outcome_while_its_conversation_is_held_for_a_later_one_is_resent_after_the_hold():
    box = outbox(command("a1"))
    take(box)
    box.add(command("a2"))
    take(box, 20.0)
    box.on_retry(b"a2", 2, "x", until=40.0)
    box.on_time(RESEND_SECONDS)
    assert take(box, RESEND_SECONDS) == []
    box.on_time(40.0)
    assert take(box, 40.0) == [(1, "a1"), (2, "a2")]


def test_a_command_sent_again_and_refused_after_a_later_one_is_what_the_server_waits_for_from_then_on():
    box = outbox(command("a1"))
    take(box, 0.0)
    box.add(command("a2"))
    take(box, 29.0)
    box.on_time(RESEND_SECONDS)
    assert take(box, RESEND_SECONDS) == [(1, "a1"), (2, "a2")]
    box.on_retry(b"a2", 2, "x", until=40.0)
    box.on_retry(b"a1", 1, "x", until=31.0)
    box.settle(b"a1")  # it was stored when it was sent first
    box.on_time(39.0)
    assert take(box, 39.0) == []
    box.on_time(40.0)
    assert box.take_skips() == [(1, "x")]
    assert take(box, 40.0) == [(2, "a2")]


def test_a_retry_that_names_no_number_holds_from_the_command_itself():
    box = outbox(command("a1"))
    take(box)
    box.on_retry(b"a1", 0, "x", until=1.0)
    box.on_time(1.0)
    assert take(box, 1.0) == [(1, "a1")]


def test_a_retry_of_what_is_settled_holds_nothing():
    box = outbox(command("a1"))
    take(box)
    box.settle(b"a1")
    box.on_retry(b"a1", 0, "x", until=1.0)
    box.add(command("a2"))
    assert take(box) == [(2, "a2")]
