"""The rules of groups at their bounds, and what a group's events and rows say."""

import pytest

from chassis.errors import reason_of
from parley.api.v1.commands_pb2 import AddMembers, ChangeRole, ChangeSettings, CreateGroup, Leave, RemoveMember, Role
from parley.api.v1.events_pb2 import GroupCreated, MemberLeft, MemberRemoved, MembersAdded, RoleChanged, SettingsChanged
from parley.store.v1.rows_pb2 import InboxRow, MemberRow
from parley_protocol.limits import RULES
from services.store import encoding, rows
from services.store.actions import UndecidableError
from services.store.state import GROUP
from tests.unit.store_scene import T0, Scene, ack_record, act, command_record, group_scene, outcome_of, say

OWNER, ADMIN, MEMBER = Role.ROLE_OWNER, Role.ROLE_ADMIN, Role.ROLE_MEMBER
YEAR_MS = 365 * 24 * 3600 * 1000


@pytest.fixture
def group() -> Scene:
    return group_scene("bob", "carol", title="team")


def refusal(effect) -> str:
    """Return why a command was refused, "" if it was not."""
    outcome = outcome_of(effect)
    return reason_of(outcome.rejected) if outcome.WhichOneof("result") == "rejected" else ""


def names(count: int) -> list[str]:
    return [f"u{number}" for number in range(count)]


def create(*members: str, title: str = "", **options) -> str:
    """Make a group of its own; return why that was refused, "" if it was not."""
    record = command_record("alice", CreateGroup(title=title, member_user_ids=members), number=1, **options)
    return refusal(Scene(record.conversation_id).apply(record))


def test_an_event_says_what_was_done(group):
    state, event = group.state, group.event
    assert event(1).group_created == GroupCreated(title="team", member_user_ids=["alice", "bob", "carol"])
    act(group, "alice", 2, AddMembers(user_ids=["dave", "bob", "dave"]))
    assert event(2).members_added == MembersAdded(user_ids=["dave"])
    act(group, "alice", 3, ChangeRole(user_id="bob", role=ADMIN))
    assert event(3).role_changed == RoleChanged(user_id="bob", role=ADMIN)
    act(group, "bob", 4, RemoveMember(user_id="carol"))
    assert event(4).member_removed == MemberRemoved(user_id="carol")
    act(group, "bob", 5, ChangeSettings(title="crew"))
    assert event(5).settings_changed == SettingsChanged(title="crew")
    act(group, "dave", 6, Leave())
    assert event(6).member_left == MemberLeft()
    assert {user: member.role for user, member in state.members.items() if member.active} == {"alice": OWNER, "bob": ADMIN}
    act(group, "alice", 7, Leave())
    assert event(7).member_left == MemberLeft(new_owner_user_id="bob")


def test_nobody_removes_one_of_the_own_role_or_a_higher_one(group):
    act(group, "alice", 2, AddMembers(user_ids=["dave"]))
    for number, user in ((3, "bob"), (4, "carol")):
        act(group, "alice", number, ChangeRole(user_id=user, role=ADMIN))
    assert refusal(act(group, "bob", 5, RemoveMember(user_id="carol"))) == "ROLE_TOO_LOW"
    assert refusal(act(group, "bob", 6, RemoveMember(user_id="alice"))) == "ROLE_TOO_LOW"
    assert not refusal(act(group, "bob", 7, RemoveMember(user_id="dave")))
    assert not refusal(act(group, "bob", 8, AddMembers(user_ids=["dave"]))), "admins add"


def test_a_group_may_have_all_the_members_of_its_cap():
    assert not create("bob", "carol", member_cap=3)
    assert create("bob", "carol", member_cap=2) == "GROUP_FULL"


@pytest.mark.parametrize(("title", "members"), [("other", ["bob", "carol"]), ("team", ["bob"]), ("team", ["bob", "carol", "dave"])])
def test_a_group_is_not_made_twice_with_another_title_or_other_members(group, title, members):
    group.now_ms += YEAR_MS  # nobody but the group remembers
    again = command_record("alice", CreateGroup(title=title, member_user_ids=members), number=1)
    assert refusal(group.apply(again)) == "CONVERSATION_EXISTS"


def test_a_title_is_bounded_in_bytes(group):
    limit = RULES[1].title_bytes
    fits = "ä" * (limit // 2)
    assert not create(title=fits)
    assert not refusal(act(group, "alice", 2, ChangeSettings(title=fits)))
    with pytest.raises(UndecidableError):
        create(title=fits + "x")
    with pytest.raises(UndecidableError):
        act(group, "alice", 3, ChangeSettings(title=fits + "x"))


def test_a_command_names_at_least_one_user_and_at_most_so_many(group):
    limit = RULES[1].users_per_action
    everybody = {"member_cap": 10_000}
    assert not create(*names(limit), **everybody)  # the creator comes on top
    with pytest.raises(UndecidableError):
        create(*names(limit + 1), **everybody)
    with pytest.raises(UndecidableError):
        act(group, "alice", 2, AddMembers())
    assert not refusal(act(group, "alice", 3, AddMembers(user_ids=["dave"])))


@pytest.mark.parametrize("users", [[""], ["not an id"], ["dave", "not an id"]])
def test_who_has_no_id_is_no_member(group, users):
    with pytest.raises(UndecidableError):
        act(group, "alice", 2, AddMembers(user_ids=users))
    with pytest.raises(UndecidableError):
        create(*users)


@pytest.mark.parametrize("role", [Role.ROLE_UNSPECIFIED, 4])
def test_roles_that_groups_do_not_have_are_not_given(group, role):
    with pytest.raises(UndecidableError):
        act(group, "alice", 2, ChangeRole(user_id="bob", role=role))


def test_who_comes_back_begins_anew(group):
    """What was before counts as read, and nothing of the leave stays in his row."""
    say(group, "bob", 2)  # unread by himself: seq 2
    act(group, "bob", 3, Leave())
    say(group, "alice", 4)
    act(group, "alice", 5, AddMembers(user_ids=["bob"]))
    bob = group.state.members["bob"]
    row = MemberRow.FromString(encoding.member_row(bob))
    stays = [{"first_seq": 1, "last_seq": 3}, {"first_seq": 5}]
    assert row == MemberRow(stays=stays, role=MEMBER, role_seq=5, delivered_seq=4, read_seq=4, read_count=2)


def test_the_last_16_stays_are_kept(group):
    for number in range(2, 36, 2):  # he leaves at 2, 4, .. 34 and comes back at 3, 5, .. 35
        act(group, "bob", number, Leave())
        act(group, "alice", number + 1, AddMembers(user_ids=["bob"]))
    bob = group.state.members["bob"]
    assert len(bob.stays) == 16
    assert (bob.stays[0], bob.stays[-1]) == ((5, 6), (35, 0))


def test_a_group_is_large_above_50_members_and_all_of_them_are_told():
    """Their inbox rows say no more than that: each message would be written to each of them."""
    scene = group_scene(*names(49))
    assert not scene.state.large
    act(scene, "alice", 2, AddMembers(user_ids=["dave"]))
    assert scene.state.large
    for user in ("alice", "u7", "dave"):  # who stayed, who is new
        assert scene.inbox(user) == InboxRow(kind=GROUP, large=True)


def inboxes_written(scene: Scene, change) -> set[str]:
    before = dict(scene.tables)
    change()
    return {place[1] for place, row in scene.tables.items() if place[0] == rows.INBOX and before.get(place) != row}


def test_in_a_large_group_inbox_rows_are_written_of_those_who_come_and_go():
    scene = group_scene(*names(60))
    assert inboxes_written(scene, lambda: act(scene, "alice", 2, AddMembers(user_ids=["dave"]))) == {"dave"}
    assert inboxes_written(scene, lambda: act(scene, "u3", 3, Leave())) == {"u3"}
    assert scene.inbox("u3") == InboxRow(kind=GROUP, head_seq=3, version=3, last_time_ms=T0, left=True)
    assert not inboxes_written(scene, lambda: act(scene, "alice", 4, ChangeSettings(title="x")))
    assert not inboxes_written(scene, lambda: scene.apply(ack_record("u4", scene.state.conversation_id, delivered=4, read=4)))
