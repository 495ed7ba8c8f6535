"""The client's outbox: numbers, order, holds, resends, and what survives a broken stream."""

from hypothesis import given, settings
from hypothesis import strategies as st

from parley_client.outbox_state import LOOK_AFTER_MS, RESEND_SECONDS, Cancel, OutboxState, Pending, Run

FRAME = 100  # commands
SIZE = 1 << 20


def command(name: str, conversation: str = "x", created_ms: int = 0) -> Pending:
    return Pending(name.encode(), name.encode(), created_ms, conversation)


def outbox(*commands: Pending, window: int = 256) -> OutboxState:
    box = OutboxState(commands, window=window)
    box.start_stream(0)
    return box


def names(run: Run | None) -> list[tuple[int, str]]:
    if run is None:
        return []
    return [(number, command.request_id.decode()) for number, command in enumerate(run.commands, run.first_number)]


def take(box: OutboxState, now: float = 0.0) -> list[tuple[int, str]]:
    """Return all that can go out now."""
    taken: list[tuple[int, str]] = []
    while (run := box.take(now, FRAME, SIZE)) is not None:
        taken += names(run)
    return taken


def test_commands_are_numbered_from_1_in_the_order_of_the_calls():
    box = outbox(command("a"))
    box.add(command("b", "y"))
    assert take(box) == [(1, "a"), (2, "b")]
    box.add(command("c"))
    assert take(box) == [(3, "c")]


def test_a_new_stream_counts_from_1_and_resends_all_that_has_no_outcome_in_order():
    box = outbox(command("a"), command("b"), command("c"))
    take(box)
    assert box.settle(b"b") is not None
    box.start_stream(0)
    assert take(box) == [(1, "a"), (2, "c")]


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
    assert names(box.take(0.0, FRAME, SIZE)) == [(4, "d"), (5, "e")]


def test_a_window_bounds_what_is_in_flight():
    box = outbox(*(command(name) for name in "abc"), window=2)
    assert take(box) == [(1, "a"), (2, "b")]
    box.settle(b"a")
    assert take(box) == [(3, "c")]


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
    box.on_time(1.0)
    assert box.take_skips() == []
    assert take(box, 1.0) == [(2, "a2")]


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
    assert box.cancel(b"a") is Cancel.IN_FLIGHT
    box.settle(b"a")
    assert box.cancel(b"a") is Cancel.SETTLED


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
    assert box.next_due() == RESEND_SECONDS
    box.on_time(RESEND_SECONDS)
    assert take(box, RESEND_SECONDS) == [(1, "a1"), (3, "a2")]


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
    box.on_time(40.0)
    assert box.take_skips() == [(1, "x")]
    assert take(box, 40.0) == [(2, "a2")]


def test_a_retry_that_names_no_number_holds_from_the_command_itself():
    box = outbox(command("a1"))
    take(box)
    box.on_retry(b"a1", 0, "x", until=1.0)
    box.on_time(1.0)
    assert take(box, 1.0) == [(1, "a1")]


def test_commands_older_than_7_days_wait_for_catching_up_and_keep_their_order():
    box = OutboxState([command("a1", created_ms=0), command("a2", created_ms=LOOK_AFTER_MS), command("b1", "y", LOOK_AFTER_MS)])
    box.start_stream(LOOK_AFTER_MS + 1)
    assert take(box) == [(1, "b1")]
    assert box.next_due() == RESEND_SECONDS  # of b1: time alone ends no such hold
    box.on_caught_up()
    assert take(box) == [(2, "a1"), (3, "a2")]


def test_an_old_command_that_catching_up_showed_is_not_resent():
    box = OutboxState([command("a1", created_ms=0)])
    box.start_stream(LOOK_AFTER_MS + 1)
    box.settle(b"a1")
    box.on_caught_up()
    assert take(box) == []


def test_old_commands_are_looked_for_from_the_oldest_of_each_conversation_on():
    times = {"a1": LOOK_AFTER_MS, "a2": 5, "a3": 9, "b1": LOOK_AFTER_MS}
    box = OutboxState([command(name, name[0], created_ms) for name, created_ms in times.items()])
    box.start_stream(LOOK_AFTER_MS + 10)
    assert box.looked_for() == {"a": 5}
    box.settle(b"a2")
    assert box.looked_for() == {"a": 9}
    box.on_caught_up()
    assert box.looked_for() == {}


def test_an_old_command_that_a_later_one_overtook_was_refused_and_is_not_resent():
    box = OutboxState([command(name, name[0], created_ms=0) for name in ("a1", "a2", "b1", "a3")])
    box.start_stream(LOOK_AFTER_MS + 1)
    box.settle(b"a2", stored=True)
    assert [refused.request_id for refused in box.on_caught_up()] == [b"a1"]
    assert take(box) == [(1, "b1"), (2, "a3")]


def test_a_young_command_that_was_overtaken_is_asked_again():
    """The server knows what it decided, and says it."""
    box = outbox(command("a1"), command("a2"))
    take(box)
    box.settle(b"a2", stored=True)
    box.start_stream(1)
    assert box.on_caught_up() == []
    assert take(box) == [(1, "a1")]


class Gateway:
    """The other side's rules, by the book: takes a command, refuses it, or refuses it because an earlier one waits."""

    def __init__(self) -> None:
        self.holds: dict[str, int] = {}
        self.stored: dict[str, list[bytes]] = {}

    def take(self, number: int, pending: Pending, refuse: bool) -> int | None:
        """Return the number to resend from, None if it was taken."""
        held = self.holds.get(pending.conversation_id)
        if held is not None and number > held:
            return held
        if refuse:
            self.holds[pending.conversation_id] = number  # also of one sent again, which comes before what is held
            return number
        if held == number:
            del self.holds[pending.conversation_id]
        timeline = self.stored.setdefault(pending.conversation_id, [])
        if pending.request_id not in timeline:
            timeline.append(pending.request_id)
        return None


@settings(deadline=None)  # how long an example takes says who else uses the machine
@given(st.data())
def test_whatever_is_refused_lost_or_cut_each_conversation_is_stored_in_the_order_of_the_calls(data: st.DataObject):
    """Outcomes may be late, lost, alone or with their stream, or refusals: at the end all is stored once, in order."""
    box, gateway = OutboxState(window=data.draw(st.integers(1, 8))), Gateway()
    box.start_stream(0)
    calls: dict[str, list[bytes]] = {}
    answers: list[tuple[bytes, int | None, str]] = []  # on their way to the client
    now = 0.0

    def send_out(may_fail: bool) -> None:
        for number, conversation in box.take_skips():
            if gateway.holds.get(conversation) == number:
                del gateway.holds[conversation]
        while (run := box.take(now, 3, SIZE)) is not None:
            for number, pending in enumerate(run.commands, run.first_number):
                refuse = may_fail and data.draw(st.booleans(), label="refuse")
                answers.append((pending.request_id, gateway.take(number, pending, refuse), pending.conversation_id))

    def answer(count: int, may_fail: bool) -> None:
        for request_id, number, conversation in answers[:count]:
            if number is not None:
                box.on_retry(request_id, number, conversation, until=now + 0.5)
            elif not data.draw(st.booleans() if may_fail else st.just(False), label="lost"):  # as with a store that is killed
                box.settle(request_id)
        del answers[:count]

    for step in range(data.draw(st.integers(1, 25))):
        now += data.draw(st.sampled_from((0.1, 1.0, 31.0)), label="time")
        match data.draw(st.sampled_from(("call", "call", "exchange", "cut")), label="step"):
            case "call":
                conversation = data.draw(st.sampled_from("xy"))
                box.add(command(f"{conversation}{step}", conversation))
                calls.setdefault(conversation, []).append(f"{conversation}{step}".encode())
            case "exchange":
                box.on_time(now)
                send_out(may_fail=True)
                answer(data.draw(st.integers(0, len(answers)), label="answers"), may_fail=True)
            case "cut":
                answers.clear()
                gateway.holds.clear()
                box.start_stream(0)
    for _ in range(len(box.pending) + 3):
        now += 31.0
        box.on_time(now)
        send_out(may_fail=False)
        answer(len(answers), may_fail=False)
    assert not box.pending
    assert gateway.stored == calls
