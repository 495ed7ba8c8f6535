"""Ticks: how far one's own messages have got."""

from hypothesis import given
from hypothesis import strategies as st

from parley_cli.ticks import Tick, Ticks, Turn


def sent_to(*others: str) -> Ticks:
    ticks = Ticks()
    ticks.set_others(others)
    return ticks


def test_a_stored_message_has_one_tick_until_the_other_member_has_it() -> None:
    ticks = sent_to("bob")
    ticks.sent(4, "hello")
    assert ticks.of(4) is Tick.SENT
    ticks.move("bob", 4, 0)
    assert ticks.of(4) is Tick.DELIVERED
    ticks.move("bob", 4, 4)
    assert ticks.of(4) is Tick.READ


def test_in_a_group_the_slowest_member_decides() -> None:
    ticks = sent_to("bob", "carol")
    ticks.sent(2, "hello")
    ticks.move("bob", 2, 2)
    assert ticks.of(2) is Tick.SENT
    ticks.move("carol", 2, 0)
    assert ticks.of(2) is Tick.DELIVERED
    ticks.set_others(["bob"])
    assert ticks.of(2) is Tick.READ


def test_with_nobody_else_a_message_stays_sent() -> None:
    ticks = sent_to()
    ticks.sent(1, "note")
    assert ticks.of(1) is Tick.SENT


def test_watermarks_of_oneself_move_nothing() -> None:
    ticks = sent_to("bob")
    ticks.move("alice", 9, 9)
    assert ticks.of(1) is Tick.SENT


def test_reading_implies_delivery() -> None:
    ticks = sent_to("bob")
    ticks.move("bob", 0, 5)
    assert ticks.of(5) is Tick.READ


def test_each_turn_is_told_once_and_reading_alone_where_it_covers_delivery() -> None:
    ticks = sent_to("bob")
    ticks.sent(1, "one")
    ticks.sent(2, "two")
    ticks.move("bob", 2, 0)
    assert ticks.turns() == [Turn(2, Tick.DELIVERED)]
    assert ticks.turns() == []
    ticks.sent(3, "three")
    ticks.move("bob", 3, 3)
    assert ticks.turns() == [Turn(3, Tick.READ)]


def test_only_own_messages_turn() -> None:
    ticks = sent_to("bob")
    ticks.sent(2, "mine")
    ticks.move("bob", 7, 7)
    assert ticks.turns() == [Turn(2, Tick.READ)]
    ticks.move("bob", 9, 9)
    assert ticks.turns() == []


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20))))
def test_ticks_never_turn_back(moves: list[tuple[int, int]]) -> None:
    ticks = sent_to("bob")
    ticks.sent(10, "mine")
    seen = Tick.SENT
    for delivered, read in moves:
        ticks.move("bob", delivered, read)
        assert ticks.of(10) >= seen
        seen = ticks.of(10)
