"""One conversation of a device, transition by transition: membership, what is visible, watermarks, and the server's rows."""

from typing import Any

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from timelines_scene import DIRECT, GROUP, ME, PEER, added, created, message, removed

from parley.api.v1 import events_pb2 as e
from parley.api.v1.commands_pb2 import ROLE_ADMIN, ROLE_MEMBER, ROLE_OWNER, ROLE_UNSPECIFIED
from parley_client.conversation_state import ConversationState
from parley_protocol.digests import Held
from parley_protocol.ids import direct_conversation_id


def group(*events: e.Event, **fields: Any) -> ConversationState:
    """Return a group of carol, this user and dave as events made it."""
    state = ConversationState(GROUP)
    for event in (created("carol", ME, "dave"), *events):
        state.place(event, ME)
    for name, value in fields.items():
        setattr(state, name, value)
    return state


def event(seq: int, actor: str = "carol", **content: Any) -> e.Event:
    return e.Event(conversation_id=GROUP, seq=seq, actor_user_id=actor, **content)


def test_at_first_nothing_is_known():
    state = ConversationState("c")
    assert (state.peer_user_id, state.title, state.member_count, state.role) == ("", "", 0, ROLE_UNSPECIFIED)
    assert (state.message_count, state.last_time_ms, state.first_available_seq, state.known_head_seq) == (0, 0, 1, 0)
    assert state.held() == Held("c", 0, 0, 0, 0, 0, 0)
    assert not state.is_placed
    assert not state.is_behind


def test_the_digest_is_of_what_is_held():
    state = ConversationState(
        "c", kind=1, version=3, held_seq=9, known_head_seq=12, delivered_seq=8, read_seq=7, peer_delivered_seq=6, peer_read_seq=4
    )
    assert state.held() == Held("c", 0, 8, 7, 6, 4, 3)
    state.first_held_seq = 5
    assert state.held() == Held("c", 9, 8, 7, 6, 4, 3)


def test_what_is_visible_goes_from_stay_to_stay_and_begins_with_what_the_server_still_has():
    state = ConversationState("c", intervals=[[2, 4], [7, 0]], first_available_seq=3)
    assert [state.next_visible(seq) for seq in (0, 2, 3, 4, 6, 7)] == [3, 3, 4, 7, 7, 8]
    assert [state.previous_visible(seq) for seq in (9, 8, 7, 5, 4, 3)] == [8, 7, 4, 4, 3, None]
    state.intervals.pop()
    assert state.next_visible(4) is None


def test_an_event_brings_its_time_and_the_count_of_messages():
    state = ConversationState(DIRECT)
    for seq, nanos, moment in ((1, 1_500_000, 12_001), (2, 1_000_000, 12_001), (3, 999_999, 12_000)):
        placed = message(seq, count=10 + seq)
        placed.time.CopyFrom(Timestamp(seconds=12, nanos=nanos))
        state.place(placed, ME)
        assert (state.last_time_ms, state.message_count) == (moment, 10 + seq)


def test_what_was_read_elsewhere_is_not_unread_when_it_comes():
    state = ConversationState(DIRECT, kind=1, read_seq=2)
    for seq, unread in ((1, 0), (2, 0), (3, 1)):
        state.place(message(seq), ME)
        assert state.unread_count == unread


def test_a_1_1_is_known_by_its_first_message_and_not_made_anew_by_later_ones():
    state = ConversationState(DIRECT)
    state.place(message(1), ME)
    assert (state.kind, state.peer_user_id, state.role, state.member_count) == (e.CONVERSATION_KIND_DIRECT, PEER, ROLE_MEMBER, 2)
    assert state.intervals == [[1, 0]]
    state.intervals = [[3, 0]]
    state.place(message(4), ME)
    assert state.intervals == [[3, 0]]
    notes = ConversationState(direct_conversation_id(ME, ME))
    notes.place(message(1, ME, notes.conversation_id), ME)
    assert (notes.kind, notes.peer_user_id, notes.member_count) == (e.CONVERSATION_KIND_SELF, "", 1)


def test_a_group_is_made_and_grows():
    state = group()
    assert (state.kind, state.title, state.role, state.member_count) == (e.CONVERSATION_KIND_GROUP, "t", ROLE_MEMBER, 3)
    assert (state.intervals, state.delivered_seq, state.read_seq) == ([[1, 0]], 0, 0)
    state.place(added(2, "erin", "frank"), ME)
    assert (state.member_count, state.role, state.read_seq) == (5, ROLE_MEMBER, 0)
    state.place(added(3, ME), ME)
    assert (state.kind, state.intervals) == (e.CONVERSATION_KIND_GROUP, [[1, 0]])


def test_others_come_and_go_and_change_and_nothing_of_that_is_this_user_s():
    state = group(role=ROLE_OWNER)
    state.place(event(2, role_changed=e.RoleChanged(user_id="dave", role=ROLE_ADMIN)), ME)
    assert state.role == ROLE_OWNER
    state.role = ROLE_MEMBER
    state.place(event(3, role_changed=e.RoleChanged(user_id="dave", role=ROLE_OWNER)), ME)
    assert state.role == ROLE_MEMBER
    state.place(event(4, "dave", member_left=e.MemberLeft(new_owner_user_id="carol")), ME)
    state.place(event(5, settings_changed=e.SettingsChanged()), ME)
    state.place(event(6), ME)  # from the future
    assert (state.role, state.member_count, state.title, state.intervals, state.version) == (ROLE_MEMBER, 2, "t", [[1, 0]], 6)


def test_this_user_rises_and_leaves():
    state = group(event(2, role_changed=e.RoleChanged(user_id=ME, role=ROLE_ADMIN)))
    assert state.role == ROLE_ADMIN
    state.place(event(3, ME, member_left=e.MemberLeft(new_owner_user_id="dave")), ME)
    assert (state.role, state.member_count, state.intervals) == (ROLE_UNSPECIFIED, 2, [[1, 3]])
    state.place(added(9, ME), ME)
    assert (state.kind, state.role, state.intervals) == (e.CONVERSATION_KIND_UNSPECIFIED, ROLE_MEMBER, [[1, 3], [9, 0]])
    assert (state.delivered_seq, state.read_seq) == (8, 8)


@pytest.mark.parametrize(
    ("told", "then"),
    [([[4, 9]], [[4, 9]]), ([[9, 12], [20, 0]], [[9, 12], [20, 0]]), ([[1, 4]], [[1, 4], [9, 0]]), ([[20, 0]], [[20, 0], [9, 0]])],
)
def test_a_stay_of_which_a_page_told_is_not_begun_again(told: list[list[int]], then: list[list[int]]):
    state = group(intervals=told)
    state.place(added(9, ME), ME)
    assert state.intervals == then


@pytest.mark.parametrize(("told", "then"), [([], []), ([[1, 10], [20, 0]], [[1, 10], [20, 0]]), ([[2, 0]], [[2, 10]])])
def test_a_later_stay_of_which_a_page_told_is_not_ended_by_an_earlier_leave(told: list[list[int]], then: list[list[int]]):
    state = group(intervals=told)
    state.place(removed(10, ME), ME)
    assert state.intervals == then


def test_what_is_older_than_the_version_changes_nothing():
    state = group(version=5)
    for seq in (4, 5):
        state.place(event(seq, settings_changed=e.SettingsChanged(title="old")), ME)
        assert (state.title, state.version, state.held_seq) == ("t", 5, seq)


def test_each_of_two_watermarks_rises_alone():
    state = ConversationState("c", delivered_seq=5, read_seq=3, peer_delivered_seq=1)
    assert state.raise_own(5, 4)
    assert state.raise_own(6, 4)
    assert not state.raise_own(6, 4)
    assert state.raise_peer(2, 0)
    assert state.raise_peer(2, 1)
    assert not state.raise_peer(1, 1)
    assert (state.delivered_seq, state.read_seq, state.peer_delivered_seq, state.peer_read_seq) == (6, 4, 2, 1)


def test_unread_is_counted_here_only_if_all_of_it_is_held():
    assert not ConversationState("c").counts_locally
    assert ConversationState("c", first_held_seq=8, read_seq=7).counts_locally
    assert not ConversationState("c", first_held_seq=8, read_seq=6).counts_locally


@pytest.mark.parametrize(("held", "counted", "read"), [(5, 3, 0), (1, 5, 0), (1, 1, 1)])
def test_a_count_of_an_older_moment_is_dropped(held: int, counted: int, read: int):
    state = ConversationState("c", first_held_seq=1, held_seq=held, counted_seq=counted, read_seq=read)
    assert not state.set_unread(4, 0, 9)
    assert state.unread_count == 0


def test_a_row_counts_as_far_as_it_is_newer():
    state = ConversationState("c", kind=2, title="new", version=5, first_held_seq=1, held_seq=4, last_time_ms=7, read_seq=2)
    old = e.Conversation(kind=2, title="old", version=3, head_seq=3, last_time=Timestamp(seconds=1), delivered_seq=1, read_seq=2)
    assert not state.take_row(old)
    assert (state.title, state.last_time_ms, state.delivered_seq) == ("new", 7, 2)
    equal = e.Conversation(
        kind=2, title="same", version=5, head_seq=4, last_time=Timestamp(seconds=2), peer_delivered_seq=3, peer_read_seq=1
    )
    assert state.take_row(equal)
    assert (state.title, state.last_time_ms) == ("same", 2_000)
    assert (state.peer_delivered_seq, state.peer_read_seq) == (3, 1)
    state.take_row(e.Conversation(kind=2, version=5, head_seq=9))
    assert state.last_time_ms == 2_000, "the row says no time"
    state.kind = e.CONVERSATION_KIND_UNSPECIFIED  # who came back asks what it is now
    state.take_row(e.Conversation(kind=2, title="asked", version=4, head_seq=9))
    assert state.title == "asked"
    state.kind = e.CONVERSATION_KIND_DIRECT
    state.take_row(e.Conversation(kind=2, title="older", version=3, head_seq=9))
    assert state.title == "asked"


def test_each_watermark_that_exceeds_the_server_s_is_told_again():
    for delivered, read, ahead in ((5, 3, False), (4, 3, True), (5, 2, True)):
        state = ConversationState("c", kind=1, delivered_seq=5, read_seq=3)
        assert state.take_row(e.Conversation(kind=1, head_seq=9, delivered_seq=delivered, read_seq=read)) is ahead


def test_the_first_seq_that_the_server_still_has_is_1_or_what_it_says():
    state = ConversationState("c")
    for told, known in ((5, 5), (0, 1)):
        state.take_intervals([], told)
        assert state.first_available_seq == known
