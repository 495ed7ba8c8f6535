"""The client's outbox against a gateway that goes by the book: whatever happens, all is stored once and in order."""

from hypothesis import given, settings
from hypothesis import strategies as st
from outbox_scene import SIZE, command

from parley_client.outbox_state import Cancel, OutboxState, Pending


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
        match data.draw(st.sampled_from(("call", "call", "exchange", "cut", "cancel")), label="step"):
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
            case "cancel" if box.pending:
                given_up = data.draw(st.sampled_from(list(box.pending.values())), label="cancel")
                if box.cancel(given_up.request_id) is Cancel.REMOVED:
                    calls[given_up.conversation_id].remove(given_up.request_id)
    for _ in range(len(box.pending) + 3):
        now += 31.0
        box.on_time(now)
        send_out(may_fail=False)
        answer(len(answers), may_fail=False)
    assert not box.pending
    assert gateway.stored == {conversation: requests for conversation, requests in calls.items() if requests}
