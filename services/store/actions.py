"""What an action may do, and the one that is nearly all of them: sending a message. Membership has a module of its own.

An action first checks, against a state that it leaves alone, and returns a Change, which is applied once the record has its seq.
"""

from collections.abc import Callable
from typing import NamedTuple

from chassis.errors import FailedPrecondition, InvalidArgument, NotFound, PermissionDenied
from parley.api.v1.commands_pb2 import Role, SendMessage
from parley.log.v1.records_pb2 import CommandRecord, MembershipChange
from parley_protocol.ids import direct_conversation_id
from parley_protocol.limits import Rules
from services.store.state import DIRECT, GROUP, SELF, ConversationState, Member


class UndecidableError(Exception):
    """The record can never be decided: it goes to the dead letters, deterministically."""


class Change(NamedTuple):
    """What an allowed action will do."""

    content: str  # the event's content field
    payload: bytes  # its encoded value
    apply: Callable[[], list[MembershipChange]]  # moves the members; called once the record has its seq


def require_member(state: ConversationState, user: str) -> Member:
    """Return the member who acts, or refuse without telling strangers whether the conversation exists."""
    member = state.members.get(user)
    if member is None:
        raise NotFound("CONVERSATION_NOT_FOUND", "there is no such conversation, or you never were a member of it")
    if not member.active:
        raise PermissionDenied("NOT_A_MEMBER", "you are no longer a member of this conversation")
    return member


def require_group(state: ConversationState, user: str) -> Member:
    """Return the member who acts on a group's membership or settings."""
    member = require_member(state, user)
    if state.kind != GROUP:
        raise FailedPrecondition("WRONG_CONVERSATION_KIND", "only groups have members, roles and settings that change")
    return member


def send_message(state: ConversationState, record: CommandRecord, payload: bytes, rules: Rules) -> Change:
    """A message; the first one to a user creates the 1-1 conversation."""
    user, command = record.user_id, record.command
    message = SendMessage.FromString(payload)
    if len(message.body) > rules.body_bytes:
        raise UndecidableError(f"the body has {len(message.body)} bytes, over the limit of {rules.body_bytes}")
    if state.exists or command.WhichOneof("target") == "conversation_id":
        member = require_member(state, user)
        reply_to_seq = message.reply_to_seq
        if reply_to_seq and not (reply_to_seq <= state.head_seq and member.sees(reply_to_seq)):
            raise InvalidArgument("REPLY_TARGET_INVALID", "reply_to_seq names no event that you can see")
        return Change("message", payload, list)
    peer = command.to_user_id
    if record.conversation_id != direct_conversation_id(user, peer):
        raise UndecidableError("the conversation's id is not the one of its two users")
    if message.reply_to_seq:
        raise InvalidArgument("REPLY_TARGET_INVALID", "reply_to_seq names no event that you can see")

    def begin() -> list[MembershipChange]:
        state.kind = SELF if peer == user else DIRECT
        for name in dict.fromkeys((user, peer)):
            state.members[name] = Member([(1, 0)], Role.ROLE_MEMBER, 1, 0, 0, 0)
        state.membership_changed()
        state.version = 0  # the two never change
        for name in state.members:
            state.touch_member(name)
        return []

    return Change("message", payload, begin)
