"""The client's timelines: gaps, intervals, watermarks and unread, whatever comes in whatever order."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from timelines_scene import DIRECT, GROUP, ME, PEER, Device, added, created, message, page, removed

from parley.api.v1 import events_pb2 as e
from parley.api.v1.commands_pb2 import ROLE_ADMIN, ROLE_MEMBER, ROLE_OWNER
from parley_client.errors import ProtocolError
from parley_client.store import Change
from parley_client.timelines import Timelines


def test_the_next_event_is_appended_and_one_that_is_held_is_dropped():
    device = Device()
    assert device.live(message(1)) == [1]
    assert device.live(message(1), message(2)) == [2]
    assert not device.timelines.behind


def test_an_event_that_is_ahead_waits_for_the_page_that_fills_the_gap():
    device = Device()
    device.live(message(1))
    assert device.live(message(4), message(5)) == []
    assert list(device.timelines.behind) == [DIRECT]
    assert device.page(DIRECT, page([message(2), message(3)])) == [2, 3, 4, 5]
    assert not device.timelines.behind


def test_a_late_event_that_fills_the_gap_itself_lets_those_ahead_in():
    device = Device()
    device.live(message(1), message(3))
    assert device.live(message(2)) == [2, 3]
    assert not device.timelines.behind


def test_what_was_announced_and_then_comes_by_itself_is_not_fetched():
    device = Device()
    device.live(message(1))
    assert device.inbox(head_seq=2, unread_count=2)
    assert list(device.timelines.behind) == [DIRECT]
    assert device.live(message(2)) == [2]
    assert not device.timelines.behind


def test_of_what_is_ahead_as_much_is_kept_as_fills_a_page_and_what_is_held_takes_no_room():
    device = Device()
    held = [message(seq) for seq in range(1, 301)]
    device.live(*held)
    device.live(*held)
    device.live(*(message(seq) for seq in range(302, 302 + 257)))
    assert device.live(message(301)) == list(range(301, 302 + 256))
    assert list(device.timelines.behind) == [DIRECT], "one was not kept: it has to be fetched"


def test_where_the_held_stretch_begins():
    device = Device()
    device.live(message(1))
    assert device.state().first_held_seq == 1
    whole = e.Conversation(conversation_id=GROUP, kind=2, head_seq=1, visible_intervals=[e.Interval(first_seq=1)])
    device.row(whole)
    assert (device.state(GROUP).first_held_seq, device.state(GROUP).held_seq) == (1, 0)
    device = Device()
    device.row(e.Conversation(conversation_id=GROUP, kind=2, visible_intervals=[e.Interval(first_seq=1)]))
    assert not device.state(GROUP).is_placed, "nothing is there yet"
    device = Device()
    device.row(e.Conversation(conversation_id=GROUP, kind=2, head_seq=7))
    assert (device.state(GROUP).first_held_seq, device.state(GROUP).held_seq) == (7, 6), (
        "nothing of it may be seen: what comes is new"
    )


def test_who_missed_a_conversation_refuses_a_first_page_that_leaves_out_its_beginning():
    device = Device()
    device.row(e.Conversation(conversation_id=DIRECT, kind=1, head_seq=9, visible_intervals=[e.Interval(first_seq=3)]))
    with pytest.raises(ProtocolError):
        device.page(DIRECT, page([message(5), message(6)], [(3, 0)]))


def test_an_announced_head_is_kept_over_a_restart_and_never_goes_down():
    device = Device()
    device.live(message(1))
    change = Change()
    device.timelines.announce(DIRECT, 9, change)
    assert change.conversations == {DIRECT: device.state()}
    for head_seq in (9, 5):
        change = Change()
        device.timelines.announce(DIRECT, head_seq, change)
        assert not change.conversations
    restarted = Timelines([device.state()], counting=device.store)
    restarted.find_behind()
    assert list(restarted.behind) == [DIRECT]
    whole = Device()
    whole.live(message(1))
    whole.timelines.find_behind()
    assert not whole.timelines.behind
    device.page(DIRECT, page([message(seq) for seq in range(2, 6)]))
    assert list(device.timelines.behind) == [DIRECT]


def test_a_page_with_a_hole_inside_what_is_visible_is_refused():
    device = Device()
    device.live(message(1))
    with pytest.raises(ProtocolError):
        device.page(DIRECT, page([message(2), message(4)]))


def test_who_came_back_goes_on_from_his_leave_to_his_return_without_a_gap():
    device = Device()
    assert device.live(created(ME, "carol"), removed(2, ME)) == [1, 2]
    assert device.live(added(9, ME)) == []  # he may have come and gone in between: only the server knows
    assert device.page(GROUP, page([added(9, ME)], [(1, 2), (9, 0)])) == [9]
    state = device.timelines.conversations[GROUP]
    assert (state.held_seq, state.role) == (9, ROLE_MEMBER)
    assert (state.delivered_seq, state.read_seq) == (8, 8)


def test_who_came_back_asks_what_the_conversation_is_now():
    """What changed while he was away was not told to him, and his digest says that he holds everything."""
    device = Device()
    device.live(created(ME, "carol"), removed(2, ME))
    device.live(added(9, ME))
    device.page(GROUP, page([added(9, ME)], [(1, 2), (9, 0)]))
    state = device.timelines.conversations[GROUP]
    assert (list(device.timelines.behind), state.is_behind) == ([GROUP], True)
    row = e.Conversation(conversation_id=GROUP, kind=2, head_seq=9, version=9, title="renamed", member_count=5, role=ROLE_ADMIN)
    row.visible_intervals.extend([e.Interval(first_seq=1, last_seq=2), e.Interval(first_seq=9)])
    device.row(row)
    assert (state.title, state.member_count, state.role, state.held_seq) == ("renamed", 5, ROLE_ADMIN, 9)
    assert not device.timelines.behind


def test_several_stays_in_one_page():
    device = Device()
    device.live(created(ME, "carol"), removed(2, ME))
    stays = [(1, 2), (5, 6), (9, 0)]
    events = [added(5, ME), removed(6, ME), added(9, ME), message(10, "carol", GROUP, 1)]
    assert device.page(GROUP, page(events, stays)) == [5, 6, 9, 10]
    assert [tuple(stay) for stay in device.timelines.conversations[GROUP].intervals] == stays


def test_a_new_device_begins_with_the_last_events_of_a_row():
    device = Device()
    row = e.Conversation(conversation_id=DIRECT, kind=1, head_seq=9, peer_user_id=PEER, visible_intervals=[e.Interval(first_seq=1)])
    row.last_events.extend([message(8), message(9)])
    device.row(row, new_device=True)
    state = device.timelines.conversations[DIRECT]
    assert (state.first_held_seq, state.held_seq, state.is_behind) == (8, 9, False)


def test_a_device_that_missed_a_conversation_fetches_it_from_its_beginning():
    device = Device()
    row = e.Conversation(conversation_id=DIRECT, kind=1, head_seq=9, peer_user_id=PEER, visible_intervals=[e.Interval(first_seq=3)])
    row.last_events.extend([message(8), message(9)])
    device.row(row)
    assert list(device.timelines.behind) == [DIRECT]
    events = [message(seq) for seq in range(3, 8)]
    assert device.page(DIRECT, page(events, [(3, 0)])) == [3, 4, 5, 6, 7, 8, 9]


def test_history_goes_in_front_and_must_fit():
    device = Device()
    device.row(e.Conversation(conversation_id=DIRECT, kind=1, head_seq=9, last_events=[message(9)]), new_device=True)
    change = Change()
    with pytest.raises(ProtocolError):
        device.timelines.take_history(DIRECT, 9, page([message(6), message(7)]), change)
    device.timelines.take_history(DIRECT, 9, page([message(7), message(8)]), change)
    assert [event.seq for event in change.prepended] == [7, 8]
    assert not change.appended
    assert device.timelines.conversations[DIRECT].first_held_seq == 7
    device.timelines.take_history(DIRECT, 9, page([message(7), message(8)]), change)  # asked for twice at the same time
    assert device.timelines.conversations[DIRECT].first_held_seq == 7
    assert [event.seq for event in change.prepended] == [7, 8]
    assert change.conversations == {DIRECT: device.state()}


def test_roles_titles_and_counts_follow_the_events_and_older_ones_change_nothing():
    device = Device()
    device.live(created(ME, PEER, actor=ME))
    state = device.timelines.conversations[GROUP]
    assert (state.role, state.member_count, state.title, state.version) == (ROLE_OWNER, 2, "t", 1)
    change = e.Event(conversation_id=GROUP, seq=2, actor_user_id=ME, settings_changed=e.SettingsChanged(title="new"))
    role = e.Event(conversation_id=GROUP, seq=3, actor_user_id=ME, role_changed=e.RoleChanged(user_id=PEER, role=ROLE_OWNER))
    left = e.Event(conversation_id=GROUP, seq=4, actor_user_id=PEER, member_left=e.MemberLeft(new_owner_user_id=ME))
    device.live(change, role)
    assert (state.title, state.role, state.version) == ("new", ROLE_ADMIN, 3)
    device.live(left)
    assert (state.role, state.member_count, state.version) == (ROLE_OWNER, 1, 4)
    old = e.Conversation(conversation_id=GROUP, kind=2, head_seq=2, title="t", version=1, role=ROLE_MEMBER)
    device.row(old)
    assert (state.title, state.role, state.version) == ("new", ROLE_OWNER, 4)


def test_a_content_from_the_future_takes_its_place():
    device = Device()
    device.live(message(1))
    assert device.live(e.Event(conversation_id=DIRECT, seq=2, actor_user_id=PEER), message(3, count=2)) == [2, 3]


def test_trimmed_events_are_history_that_can_be_fetched_again():
    device = Device()
    device.live(*(message(seq) for seq in range(1, 7)))
    change = Change()
    device.timelines.trim(DIRECT, 3, change)
    assert not change.trimmed, "not at each event: only at twice as many"
    device.live(message(7))
    device.timelines.trim(DIRECT, 3, change)
    assert change.conversations == {DIRECT: device.state()}
    device.keep(change)
    state = device.state()
    assert (state.first_held_seq, state.held_seq) == (5, 7)
    assert [event.seq for event in device.store.events(DIRECT, 1, 99, 99)] == [5, 6, 7]
    assert state.previous_visible(state.first_held_seq) == 4


@given(st.data())
def test_whatever_is_lost_doubled_or_late_the_device_appends_exactly_what_is_visible_in_order(data: st.DataObject):
    """A server with several stays of a member, a stream that loses and repeats, pages on demand."""
    edges = sorted(data.draw(st.sets(st.integers(2, 30), max_size=4)))
    stays = list(zip([1, *edges[1::2]], edges[0::2], strict=False))
    stays = [*stays, (edges[-1] if edges and len(edges) % 2 == 0 else (edges[-1] + 1 if edges else 1), 0)]
    stays = [(first, last) for first, last in stays if last == 0 or first <= last]
    head = data.draw(st.integers(stays[-1][0], 40))
    visible = [seq for seq in range(1, head + 1) if any(a <= seq and (b == 0 or seq <= b) for a, b in stays)]
    device, appended = Device(), list[int]()
    for _ in range(data.draw(st.integers(1, 20))):
        if data.draw(st.booleans()) or DIRECT not in device.timelines.behind:
            seqs = sorted(data.draw(st.lists(st.sampled_from(visible), max_size=6)))
            appended += device.live(*map(message, seqs))
        else:
            appended += fetch(device, visible, stays, size=data.draw(st.integers(1, 10)))
    appended += device.live(message(visible[-1]))
    while DIRECT in device.timelines.behind:
        appended += fetch(device, visible, stays, size=5)
    assert appended == visible
    assert device.unread() == len(visible)


def fetch(device: Device, visible: list[int], stays: list[tuple[int, int]], size: int) -> list[int]:
    """Fetch a page as the client does."""
    state = device.timelines.conversations[DIRECT]
    if not state.is_placed:
        intervals = [e.Interval(first_seq=first, last_seq=last) for first, last in stays]
        row = e.Conversation(conversation_id=DIRECT, kind=1, head_seq=visible[-1], visible_intervals=intervals)
        row.unread_count = len(visible)
        device.row(row)
    seqs = [seq for seq in visible if seq > state.held_seq][:size]
    return device.page(DIRECT, page([message(seq) for seq in seqs], stays))
