"""Rows and pages of a conversation: what of them is taken, and where they fit."""

import pytest
from timelines_scene import DIRECT, GROUP, ME, PEER, Device, message, page

from parley.api.v1 import events_pb2 as e
from parley_client.errors import ProtocolError
from parley_client.store import Change
from parley_protocol.ids import direct_conversation_id


def interval(first: int, last: int = 0) -> e.Interval:
    return e.Interval(first_seq=first, last_seq=last)


def test_what_a_row_tells_is_kept_and_lets_in_what_was_ahead():
    device = Device()
    assert device.live(message(3, "carol", GROUP)) == []
    change = Change()
    row = e.Conversation(conversation_id=GROUP, kind=2, head_seq=3, title="t", visible_intervals=[interval(3)])
    device.timelines.take_row(row, new_device=False, change=change)
    assert change.conversations == {GROUP: device.state(GROUP)}
    assert device.keep(change) == [3]
    assert not device.timelines.behind
    change = Change()
    row.title = "renamed"
    device.timelines.take_row(row, new_device=False, change=change)
    assert change.conversations == {GROUP: device.state(GROUP)}
    assert device.state(GROUP).title == "renamed"


def test_a_new_device_that_is_given_no_events_begins_with_the_first_page():
    device = Device()
    device.live(message(5))
    device.row(e.Conversation(conversation_id=DIRECT, kind=1, head_seq=7, visible_intervals=[interval(5)]), new_device=True)
    state = device.state()
    assert (state.is_placed, state.held_seq, list(device.timelines.behind)) == (False, 0, [DIRECT])
    assert device.page(DIRECT, page([], [(4, 0)])) == []
    assert not state.is_placed
    assert device.page(DIRECT, page([message(6), message(7)], [(4, 0)])) == [6, 7]
    assert (state.first_held_seq, state.held_seq) == (6, 7)


def test_what_a_page_repeats_is_passed_over():
    device = Device()
    device.live(message(1), message(2))
    assert device.page(DIRECT, page([message(seq) for seq in range(1, 5)])) == [3, 4]
    assert device.state().first_held_seq == 1


@pytest.mark.parametrize("history", [False, True])
def test_a_page_tells_what_is_visible_unless_it_is_older_than_what_is_held(history: bool):
    device = Device()
    row = e.Conversation(conversation_id=DIRECT, kind=1, head_seq=5, last_events=[message(5)], visible_intervals=[interval(1)])
    device.row(row, new_device=True)
    for head_seq, stays in ((4, [[1, 0]]), (5, [[2, 0]])):
        content = page([], [(2, 0)])
        content.head_seq = head_seq
        device.state().intervals = [[1, 0]]
        change = Change()
        if history:
            device.timelines.take_history(DIRECT, 5, content, change)
        else:
            device.timelines.take_page(DIRECT, content, change)
        assert change.conversations == {DIRECT: device.state()}
        assert device.state().intervals == stays


def test_what_was_ahead_and_came_with_a_page_takes_no_room_any_more():
    device = Device()
    device.live(message(1))
    device.live(*(message(seq) for seq in range(3, 3 + 256)))
    assert device.page(DIRECT, page([message(seq) for seq in range(2, 259)])) == list(range(2, 259))
    assert not device.timelines._ahead
    device.live(*(message(seq) for seq in range(260, 260 + 256)))
    assert device.live(message(259)) == list(range(259, 260 + 256))
    assert not device.timelines._ahead
    assert not device.timelines.behind


def test_some_of_what_was_ahead_goes_on_waiting():
    device = Device()
    device.live(message(1), message(3), message(6))
    assert device.page(DIRECT, page([message(2)])) == [2, 3]
    assert list(device.timelines.behind) == [DIRECT]
    assert device.page(DIRECT, page([message(4), message(5)])) == [4, 5, 6]


def test_a_conversation_that_is_not_known_is_asked_for_when_its_events_are_here():
    """Its first event is of this user's other device, which names no peer."""
    device = Device()
    assert device.live(message(1, ME)) == [1]
    assert list(device.timelines.behind) == [DIRECT]
    device.timelines.meet(DIRECT, PEER)
    assert (device.state().kind, device.state().peer_user_id) == (e.CONVERSATION_KIND_DIRECT, PEER)
    device.timelines.meet(DIRECT, "mallory")
    assert device.state().peer_user_id == PEER
    assert device.live(message(2, ME)) == [2]
    assert not device.timelines.behind


def test_a_user_can_meet_himself():
    device = Device()
    notes = direct_conversation_id(ME, ME)
    device.timelines.meet(notes, ME)
    assert (device.state(notes).kind, device.state(notes).peer_user_id) == (e.CONVERSATION_KIND_SELF, "")


def test_what_comes_live_is_kept_with_its_conversation():
    device = Device()
    for seq in (1, 2):
        change = Change()
        device.timelines.place_live([message(seq)], change)
        assert change.conversations == {DIRECT: device.state()}


def test_a_first_page_has_no_hole():
    device = Device()
    with pytest.raises(ProtocolError):
        device.page(DIRECT, page([message(1), message(3)]))
