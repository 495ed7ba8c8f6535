"""The judge: a clean history is kept, and every kind of tampering is seen, named and counted."""

from collections.abc import Callable
from copy import deepcopy

import pytest
from clean_history import ALICE, ALICE_2, BOB, CAROL, DIRECT, GROUP, clean_history
from hypothesis import given
from hypothesis import strategies as st

from parley.api.v1.commands_pb2 import Command, Leave, SendMessage
from parley.api.v1.events_pb2 import Event, GroupCreated, MemberLeft
from parley_checker.files import lines_of, read_lines
from parley_checker.guarantees import TITLES
from parley_checker.history import Answered, Asked, Entry, History, Mark, ReadBack, Scrolled, Shown, View, asked_of, entry_of
from parley_checker.judge import judge
from parley_checker.verdict import MAX_STORIES, Fault, Verdict


def test_a_clean_history_is_kept():
    verdict = judge(clean_history())
    assert verdict.stories == []
    assert verdict.kept
    assert verdict.line() == "acked 12, stored 12, lost 0, duplicated 0, misordered 0"


def drop_from_tables(history: History) -> None:
    for timelines in history.readings.values():
        timelines[DIRECT].pop()  # type: ignore[attr-defined]


def drop_inside_tables(history: History) -> None:
    for timelines in history.readings.values():
        del timelines[DIRECT][2]  # type: ignore[attr-defined]


def store_twice(history: History) -> None:
    for timelines in history.readings.values():
        timelines[DIRECT].append(timelines[DIRECT][0]._replace(seq=7))  # type: ignore[attr-defined]


def read_a_place_twice(history: History) -> None:
    history.readings["api"][DIRECT].append(history.readings["api"][DIRECT][0])  # type: ignore[attr-defined]


def swap_two_stored_commands(history: History) -> None:
    for timelines in history.readings.values():
        timeline = timelines[DIRECT]
        timeline[0], timeline[2] = timeline[2]._replace(seq=1), timeline[0]._replace(seq=3)  # type: ignore[index]


def flip_a_stored_bit(history: History) -> None:
    for timelines in history.readings.values():
        timelines[DIRECT][1] = timelines[DIRECT][1]._replace(body=b"pong 1")  # type: ignore[index]


def flip_a_bit_in_one_reading(history: History) -> None:
    history.readings["files"][DIRECT][1] = history.readings["files"][DIRECT][1]._replace(body=b"pong 1")  # type: ignore[index]


def lose_in_one_reading(history: History) -> None:
    history.readings["files"][DIRECT].pop()  # type: ignore[attr-defined]


def store_what_nobody_asked(history: History) -> None:
    for timelines in history.readings.values():
        timelines[DIRECT].append(Entry(DIRECT, 7, ALICE, b"x" * 16, "message", b"ghost"))  # type: ignore[attr-defined]


def forget_one_on_a_device(history: History) -> None:
    del history.devices[ALICE_2].shown[3]


def show_twice(history: History) -> None:
    history.devices[BOB].shown.insert(1, history.devices[BOB].shown[0])


def show_out_of_order(history: History) -> None:
    shown = history.devices[BOB].shown
    shown[0], shown[1] = shown[1], shown[0]


def show_another_body(history: History) -> None:
    shown = history.devices[BOB].shown
    shown[0] = Shown(1, shown[0].entry._replace(body=b"tampered"))


def show_to_a_stranger(history: History) -> None:
    history.devices[CAROL].shown.append(Shown(1, history.readings["api"][DIRECT][0]))


def show_after_the_leave(history: History) -> None:
    shown = history.devices[CAROL].shown
    at = next(i for i, (_, entry) in enumerate(shown) if entry.kind == "members_added")
    shown.insert(at, Shown(1, history.readings["api"][GROUP][3]))


def answer_another_seq(history: History) -> None:
    answered = history.devices[ALICE].answered
    answered[0] = answered[0]._replace(seq=3)


def answer_twice_differently(history: History) -> None:
    answered = history.devices[ALICE].answered
    answered.append(answered[0]._replace(seq=5))


def reject_what_is_stored(history: History) -> None:
    answered = history.devices[ALICE].answered
    answered[0] = answered[0]._replace(seq=0)


def read_too_little(history: History) -> None:
    history.devices[BOB].reads.append(ReadBack(DIRECT, 6, 5))


def read_what_is_not_there(history: History) -> None:
    history.devices[BOB].reads.append(ReadBack(DIRECT, 6, 7))


def take_a_watermark_back(history: History) -> None:
    history.devices[ALICE].marks.append(Mark(2, DIRECT, "bob", 6, 5))


def tell_more_read_than_delivered(history: History) -> None:
    history.devices[ALICE].marks.insert(0, Mark(1, DIRECT, "bob", 1, 2))


def count_own_messages(history: History) -> None:
    history.devices[ALICE].views[0] = View(DIRECT, 6, 6, 3, 3)


def count_what_is_read(history: History) -> None:
    history.devices[BOB].views[0] = View(DIRECT, 6, 6, 6, 1)


def show_a_head_that_is_not_held(history: History) -> None:
    history.devices[BOB].views[0] = View(DIRECT, 5, 6, 6, 0)


TAMPERING: list[tuple[Callable[[History], None], Fault]] = [
    (drop_from_tables, Fault.LOST),
    (drop_inside_tables, Fault.LOST),
    (drop_inside_tables, Fault.GAPS),
    (store_twice, Fault.DUPLICATED),
    (read_a_place_twice, Fault.DUPLICATED),
    (swap_two_stored_commands, Fault.MISORDERED),
    (flip_a_stored_bit, Fault.CORRUPTED),
    (flip_a_bit_in_one_reading, Fault.DISAGREEING),
    (lose_in_one_reading, Fault.DISAGREEING),
    (store_what_nobody_asked, Fault.INVENTED),
    (forget_one_on_a_device, Fault.LOST),
    (show_twice, Fault.DUPLICATED),
    (show_out_of_order, Fault.MISORDERED),
    (show_another_body, Fault.DISAGREEING),
    (show_to_a_stranger, Fault.LEAKED),
    (show_after_the_leave, Fault.LEAKED),
    (answer_another_seq, Fault.CONTRADICTED),
    (answer_twice_differently, Fault.CONTRADICTED),
    (reject_what_is_stored, Fault.CONTRADICTED),
    (read_too_little, Fault.STALE),
    (read_what_is_not_there, Fault.STALE),
    (take_a_watermark_back, Fault.BACKWARD),
    (tell_more_read_than_delivered, Fault.BACKWARD),
    (count_own_messages, Fault.MISCOUNTED),
    (count_what_is_read, Fault.MISCOUNTED),
    (show_a_head_that_is_not_held, Fault.MISCOUNTED),
]


@pytest.mark.parametrize(("tamper", "fault"), TAMPERING, ids=lambda value: getattr(value, "__name__", str(value)))
def test_tampering_is_seen(tamper: Callable[[History], None], fault: Fault):
    history = clean_history()
    tamper(history)
    verdict = judge(history)
    assert verdict.faults[fault] > 0
    assert not verdict.kept
    assert verdict.stories
    assert sum(verdict.broken.values()) == verdict.faults.total()
    recorded = History()
    read_lines(lines_of(history), recorded)
    assert judge(recorded).faults == verdict.faults, "a record must lose nothing that the judge needs"


@given(st.data())
def test_no_single_loss_repetition_or_swap_goes_unseen(data: st.DataObject):
    """Any one entry dropped, repeated, or swapped with its neighbour of the same conversation, on a device or in the tables."""
    history = clean_history()
    places = [device.shown for device in history.devices.values()] + list(history.readings["api"].values())
    entries = data.draw(st.sampled_from([place for place in places if len(place) > 1]))
    at = data.draw(st.integers(0, len(entries) - 2))
    how = data.draw(st.sampled_from(["drop", "repeat", "swap"]))
    if how == "drop":
        del entries[at]  # type: ignore[attr-defined]
    elif how == "repeat":
        entries.insert(at, entries[at])  # type: ignore[attr-defined]
    else:
        first, second = (entry.entry if isinstance(entry, Shown) else entry for entry in entries[at : at + 2])
        if first.conversation_id != second.conversation_id:
            return  # conversations have no order among each other
        entries[at], entries[at + 1] = entries[at + 1], entries[at]  # type: ignore[index]
    assert not judge(history).kept


def test_a_restarted_device_may_show_again_but_not_skip():
    history = clean_history()
    again = history.devices[BOB].shown[2:]
    history.devices[BOB].shown.extend(Shown(2, entry) for _, entry in again)
    assert judge(history).kept


def test_a_device_that_did_not_settle_owes_nothing():
    history = clean_history()
    history.devices[BOB].settled = False
    history.devices[BOB].shown.clear()
    assert judge(history).kept


def test_a_new_device_owes_only_what_it_fetched():
    history = clean_history()
    newcomer = history.device("bob", "b2")
    newcomer.settled = True
    newcomer.first_held = {DIRECT: 5, GROUP: 6}
    newcomer.shown = [
        Shown(1, entry) for timeline, first in ((DIRECT, 4), (GROUP, 5)) for entry in history.readings["api"][timeline][first:]
    ]
    assert judge(history).kept
    newcomer.first_held = {DIRECT: 4, GROUP: 6}
    assert judge(history).faults == {Fault.LOST: 1}


def test_what_a_device_scrolled_to_was_no_news():
    history = clean_history()
    newcomer = history.device("bob", "b2")
    newcomer.settled = True
    newcomer.first_held = {DIRECT: 1, GROUP: 7}
    newcomer.shown = [Shown(1, entry) for entry in history.readings["api"][DIRECT][4:]]
    assert judge(history).faults == {Fault.LOST: 4}
    newcomer.take(Scrolled(DIRECT))
    assert judge(history).kept
    recorded = History()
    read_lines(lines_of(history), recorded)
    assert judge(recorded).kept


def test_a_command_without_an_outcome_is_counted_and_no_violation():
    history = clean_history()
    history.devices[CAROL].answered.clear()
    history.devices[BOB].asked.append(Asked(b"u" * 16, DIRECT, "message", b"did it arrive?"))
    verdict = judge(history)
    assert verdict.faults == {Fault.LOST: 1}  # carol's own leave was neither answered nor shown to her device
    assert verdict.unanswered == 2
    assert verdict.line() == "acked 11, stored 12, lost 1, duplicated 0, misordered 0, unanswered 2"


def test_what_devices_did_that_nobody_recorded_is_not_called_invented():
    history = clean_history()
    del history.devices[ALICE]
    assert judge(history).kept


def test_a_history_without_a_reading_is_refused():
    with pytest.raises(ValueError, match="reading"):
        judge(History())


def test_verdicts_add_up_and_stories_stay_few():
    total = Verdict()
    for _ in range(MAX_STORIES + 5):
        broken = clean_history()
        forget_one_on_a_device(broken)
        total.add(judge(broken))
    assert (total.acked, total.faults[Fault.LOST], len(total.stories)) == (12 * 25, 25, MAX_STORIES)
    assert total.counts()["lost"] == 25


def test_equal_histories_get_equal_verdicts():
    history = clean_history()
    store_twice(history)
    assert judge(history) == judge(deepcopy(history))


def test_facts_are_taken_from_what_travels():
    asked = asked_of(Command(request_id=b"r" * 16, to_user_id="bob", send_message=SendMessage(body=b"\0\xff")), DIRECT)
    assert asked == Asked(b"r" * 16, DIRECT, "message", b"\0\xff")
    assert asked_of(Command(conversation_id=GROUP, leave=Leave()), GROUP).kind == "member_left"
    created = Event(
        conversation_id=GROUP, seq=1, actor_user_id="alice", group_created=GroupCreated(member_user_ids=["alice", "bob"])
    )
    assert entry_of(created).joined == ("alice", "bob")
    assert entry_of(Event(conversation_id=GROUP, seq=2, actor_user_id="bob", member_left=MemberLeft())).left == ("bob",)
    assert entry_of(Event(conversation_id=GROUP, seq=3)).kind == "unsupported"
    with pytest.raises(ValueError, match="action"):
        asked_of(Command(), DIRECT)


def test_a_verdict_has_a_line_for_each_guarantee():
    history = clean_history()
    history.devices[ALICE].answered.append(Answered(b"gone" * 4, DIRECT, 7))
    lines = judge(history).by_guarantee()
    assert [line.split()[0] for line in lines] == [f"G{number}" for number in range(1, 23)]
    assert [title for title, line in zip(TITLES.values(), lines, strict=True) if title not in line] == []
    assert lines[0].endswith("judged 13 times, broken 1 times")
    assert lines[9].endswith("judged 1 times, broken 0 times")
    assert "not judged: " in lines[12]
