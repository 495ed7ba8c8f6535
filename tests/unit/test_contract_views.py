"""What devices show beside events, as the judge sees it: each mistake alone, at its edge, and as it is told."""

import pytest
from clean_history import ALICE, BOB, DIRECT, clean_history

from parley_checker.guarantees import Guarantee
from parley_checker.history import Device, DeviceHistory, History, Mark, ReadBack, View
from parley_checker.judge import judge
from parley_checker.verdict import Fault


def stories_of(*marks: tuple[int, int]) -> list[str]:
    """Return what is said of watermarks, (delivered, read), that a device was told one after the other."""
    history = clean_history()
    history.devices[ALICE].marks = [Mark(1, DIRECT, "bob", delivered, read) for delivered, read in marks]
    verdict = judge(history)
    assert verdict.judged[Guarantee.WATERMARKS] == len(marks)
    assert verdict.broken.total() == verdict.broken[Guarantee.WATERMARKS] == len(verdict.stories)
    return [story.removeprefix("G11 backward: alice/a1 was told that bob has ") for story in verdict.stories]


@pytest.mark.parametrize("marks", [[(0, 0)], [(1, 0)], [(1, 1)], [(3, 1), (3, 1), (3, 2), (4, 2), (4, 4)]])
def test_watermarks_may_stay_and_rise_each_for_itself(marks: list[tuple[int, int]]):
    assert stories_of(*marks) == []


def test_each_of_two_watermarks_alone_may_not_fall_below_the_highest_that_was_told():
    assert stories_of((5, 2), (3, 2), (4, 2), (5, 1)) == [
        f"3, read 2 in {DIRECT}, after 5, 2",
        f"4, read 2 in {DIRECT}, after 5, 2",
        f"5, read 1 in {DIRECT}, after 5, 2",
    ]


def test_nobody_has_read_more_than_he_has():
    assert stories_of((1, 2)) == [f"1, read 2 in {DIRECT}: more than it has"]


def test_users_are_kept_apart():
    history = clean_history()
    history.devices[ALICE].marks = [Mark(1, DIRECT, user, seq, seq) for user, seq in (("bob", 5), ("alice", 3), ("bob", 6))]
    assert judge(history).kept


@pytest.mark.parametrize(("least", "head", "fits"), [(4, 4, True), (1, 6, True), (6, 6, True), (5, 4, False), (6, 7, False)])
def test_a_read_finds_what_was_known_and_no_more_than_there_is(least: int, head: int, fits: bool):
    history = clean_history()
    history.devices[BOB].reads.append(ReadBack(DIRECT, least, head))
    verdict = judge(history)
    assert verdict.judged[Guarantee.READ_YOUR_WRITES] == 2
    story = f"G10 stale: bob/b1 knew that {DIRECT} seq {least} is stored, and read a head of {head}"
    assert verdict.stories == ([] if fits else [story])


def test_of_what_is_not_stored_nothing_is_read():
    for head, fits in ((0, True), (1, False)):
        history = clean_history()
        history.devices[BOB].reads = [ReadBack("g_" + "b" * 26, 0, head)]
        assert judge(history).kept is fits


def test_a_wrong_view_is_told_with_what_was_counted_and_a_stranger_s_hides_none():
    history = clean_history()
    stranger = DeviceHistory(views=[View(DIRECT, 9, 9, 9, 9)], settled=True)
    history = History(devices={Device("dave", "d1"): stranger, **history.devices}, readings=history.readings)
    assert judge(history).kept, "who is no member shows nothing that could be counted"
    history.devices[BOB].views[0] = View(DIRECT, 6, 6, 3, 0)
    verdict = judge(history)
    assert verdict.faults == {Fault.MISCOUNTED: 1}
    assert verdict.judged[Guarantee.UNREAD] == 3
    assert verdict.stories == [f"G12 miscounted: bob/b1 shows of {DIRECT} (held, head, unread) = (6, 6, 0), counted (6, 6, 1)"]
