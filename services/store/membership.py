"""The rules of groups: who may join, leave, lead and rename."""

from collections.abc import Callable, Iterable
from typing import Final

from chassis.errors import AlreadyExists, FailedPrecondition, NotFound, PermissionDenied
from parley.api.v1.commands_pb2 import AddMembers, ChangeRole, ChangeSettings, CreateGroup, RemoveMember, Role
from parley.api.v1.events_pb2 import Event, GroupCreated, MemberLeft, MemberRemoved, MembersAdded, RoleChanged, SettingsChanged
from parley.log.v1.records_pb2 import CommandRecord, MembershipChange
from parley_protocol.ids import group_conversation_id, is_app_id
from parley_protocol.limits import Rules
from services.store.actions import Change, UndecidableError, require_group, require_member
from services.store.state import GROUP, STAYS_MAX, ConversationState, Member

_GROUP_ROLES = (Role.ROLE_MEMBER, Role.ROLE_ADMIN, Role.ROLE_OWNER)


def create_group(state: ConversationState, record: CommandRecord, payload: bytes, rules: Rules) -> Change:
    """A new group, with its creator as owner."""
    if record.conversation_id != group_conversation_id(record.user_id, record.device_id, record.command.request_id):
        raise UndecidableError("the group's id is not the one of its creation")
    title, users = _creation(record, payload, rules)
    if len(users) > record.member_cap:
        raise FailedPrecondition("GROUP_FULL", f"a group has at most {record.member_cap} members")

    def begin() -> list[MembershipChange]:
        state.kind = GROUP
        state.title = title
        changes = _join(state, users)
        owner = state.members[record.user_id]
        owner.role = Role.ROLE_OWNER
        return changes

    return Change("group_created", GroupCreated(title=title, member_user_ids=users).SerializeToString(), begin)


def is_creation_of(first_event: bytes, record: CommandRecord, rules: Rules) -> bool:
    """Tell whether a group's first event is what this CreateGroup asks for."""
    event = Event.FromString(first_event)
    title, users = _creation(record, record.command.create_group, rules)
    created = event.group_created
    return created.title == title and list(created.member_user_ids) == users  # which no other first event names


def _creation(record: CommandRecord, payload: bytes, rules: Rules) -> tuple[str, list[str]]:
    create = CreateGroup.FromString(payload)
    _check_title(create.title, rules)
    return create.title, _users([record.user_id, *create.member_user_ids], rules)


def _add(state: ConversationState, record: CommandRecord, payload: bytes, rules: Rules) -> Change:
    actor = require_group(state, record.user_id)
    if actor.role < Role.ROLE_ADMIN:
        raise PermissionDenied("ROLE_TOO_LOW", "only the owner and admins add members")
    users = [user for user in _users(AddMembers.FromString(payload).user_ids, rules) if not _is_present(state, user)]
    if not users:
        raise AlreadyExists("ALREADY_A_MEMBER", "everybody named is a member already")
    if state.member_count + len(users) > record.member_cap:
        raise FailedPrecondition("GROUP_FULL", f"a group has at most {record.member_cap} members")
    return Change("members_added", MembersAdded(user_ids=users).SerializeToString(), lambda: _join(state, users))


def _remove(state: ConversationState, record: CommandRecord, payload: bytes, rules: Rules) -> Change:
    actor = require_group(state, record.user_id)
    user = RemoveMember.FromString(payload).user_id
    target = _target(state, user)
    if user == record.user_id:
        raise FailedPrecondition("NO_CHANGE", "use Leave to leave")
    if actor.role <= target.role:
        raise PermissionDenied("ROLE_TOO_LOW", "the owner removes anybody, admins remove plain members")
    return Change("member_removed", MemberRemoved(user_id=user).SerializeToString(), lambda: _part(state, user))


def _leave(state: ConversationState, record: CommandRecord, payload: bytes, rules: Rules) -> Change:
    actor = require_group(state, record.user_id)
    heir = _heir(state, record.user_id) if actor.role == Role.ROLE_OWNER else ""

    def go() -> list[MembershipChange]:
        changes = _part(state, record.user_id)
        if heir:
            _give_role(state, heir, Role.ROLE_OWNER)
        return changes

    return Change("member_left", MemberLeft(new_owner_user_id=heir).SerializeToString(), go)


def _change_role(state: ConversationState, record: CommandRecord, payload: bytes, rules: Rules) -> Change:
    actor = require_group(state, record.user_id)
    change = ChangeRole.FromString(payload)
    if change.role not in _GROUP_ROLES:
        raise UndecidableError(f"role {change.role} is none")
    target = _target(state, change.user_id)
    if actor.role != Role.ROLE_OWNER:
        raise PermissionDenied("ROLE_TOO_LOW", "only the owner changes roles")
    if target.role == change.role:
        raise FailedPrecondition("NO_CHANGE", "the member has that role already")
    if change.user_id == record.user_id:
        raise FailedPrecondition("NO_CHANGE", "the owner hands over by making another member the owner")

    def give() -> list[MembershipChange]:
        if change.role == Role.ROLE_OWNER:
            _give_role(state, record.user_id, Role.ROLE_ADMIN)
        _give_role(state, change.user_id, change.role)
        state.membership_changed()
        return []

    return Change("role_changed", RoleChanged(user_id=change.user_id, role=change.role).SerializeToString(), give)


def _change_settings(state: ConversationState, record: CommandRecord, payload: bytes, rules: Rules) -> Change:
    actor = require_group(state, record.user_id)
    change = ChangeSettings.FromString(payload)
    _check_title(change.title, rules)
    if actor.role < Role.ROLE_ADMIN:
        raise PermissionDenied("ROLE_TOO_LOW", "only the owner and admins change settings")
    if not change.HasField("title") or change.title == state.title:
        raise FailedPrecondition("NO_CHANGE", "nothing would change")

    def rename() -> list[MembershipChange]:
        state.title = change.title
        state.membership_changed()
        return []

    return Change("settings_changed", SettingsChanged(title=change.title).SerializeToString(), rename)


ACTIONS: Final[dict[str, Callable[[ConversationState, CommandRecord, bytes, Rules], Change]]] = {
    "create_group": create_group,
    "add_members": _add,
    "remove_member": _remove,
    "leave": _leave,
    "change_role": _change_role,
    "change_settings": _change_settings,
}


def _users(user_ids: Iterable[str], rules: Rules) -> list[str]:
    """Return the named users without repetitions, in order."""
    users = list(dict.fromkeys(user_ids))
    if not 0 < len(users) <= rules.users_per_action + 1:  # the creator comes on top
        raise UndecidableError(f"{len(users)} users in one action, of 1 to {rules.users_per_action}")
    if not all(map(is_app_id, users)):
        raise UndecidableError("a user id is malformed")
    return users


def _check_title(title: str, rules: Rules) -> None:
    if len(title.encode()) > rules.title_bytes:
        raise UndecidableError(f"the title has more than {rules.title_bytes} bytes")


def _is_present(state: ConversationState, user: str) -> bool:
    member = state.members.get(user)
    return member is not None and member.active


def _target(state: ConversationState, user: str) -> Member:
    if not _is_present(state, user):
        raise NotFound("TARGET_NOT_A_MEMBER", "the user named is not a member")
    return require_member(state, user)


def _join(state: ConversationState, users: list[str]) -> list[MembershipChange]:
    """Let users see the timeline from the head on; what was before counts as delivered and read."""
    seq, count = state.head_seq, state.message_count
    for user in users:
        stays = [*(state.members[user].stays if user in state.members else ()), (seq, 0)]
        # The joining itself is no message: count is that of seq - 1, too.
        state.members[user] = Member(stays[-STAYS_MAX:], Role.ROLE_MEMBER, seq, seq - 1, seq - 1, count)
    state.membership_changed()
    for user in users:
        state.touch_member(user)
        state.touch_inbox(user)
    return [MembershipChange(user_id=user, joined=True) for user in users]


def _part(state: ConversationState, user: str) -> list[MembershipChange]:
    """End a user's view of the timeline at the head."""
    member = state.members[user]
    member.stays[-1] = (member.stays[-1][0], state.head_seq)
    member.role = Role.ROLE_UNSPECIFIED
    state.membership_changed()
    member.left_count, member.left_time_ms, member.left_version = state.message_count, state.last_time_ms, state.version
    member.left_title, member.left_member_count = state.title, state.member_count
    state.touch_member(user)
    return [MembershipChange(user_id=user, joined=False)]


def _give_role(state: ConversationState, user: str, role: Role.ValueType) -> None:
    member = state.members[user]
    member.role, member.role_seq = role, state.head_seq
    state.touch_member(user)


def _heir(state: ConversationState, owner: str) -> str:
    """Return who owns the group after its owner left: the member of the highest role for the longest, by id among equals."""
    others = [(-state.members[user].role, state.members[user].role_seq, user) for user in state.present if user != owner]
    return min(others)[2] if others else ""
