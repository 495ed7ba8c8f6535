"""Commands as a client makes them, and the events that it can tell from its own accepted ones. Pure."""

import random
from collections.abc import Sequence

from parley.api.v1 import commands_pb2, events_pb2
from parley_client.errors import InvalidCommandError
from parley_protocol import ids, limits


def new_request_id(wall_ms: int, rng: random.Random) -> bytes:
    """Return a UUIDv7 (RFC 9562): 48 bits of time, 74 random ones. Unique per device even where its clock stands still."""
    high = (wall_ms & (1 << 48) - 1) << 16 | 0x7000 | rng.getrandbits(12)
    low = 0b10 << 62 | rng.getrandbits(62)
    return (high << 64 | low).to_bytes(ids.REQUEST_ID_BYTES, "big")


def target_of(command: commands_pb2.Command, user_id: str, device_id: str) -> str:
    """Return the conversation that a command of this user and device belongs to, also where it names a user or creates a group."""
    if command.HasField("conversation_id"):
        return command.conversation_id
    if command.HasField("to_user_id"):
        return ids.direct_conversation_id(user_id, command.to_user_id)
    return ids.group_conversation_id(user_id, device_id, command.request_id)


def with_target(command: commands_pb2.Command, to_user: str | None, conversation: str | None) -> commands_pb2.Command:
    """Set the command's target: exactly one of a user and a conversation. Raises InvalidCommandError."""
    if (to_user is None) == (conversation is None):
        raise InvalidCommandError("name either a user or a conversation")
    if to_user is not None:
        if not ids.is_app_id(to_user):
            raise InvalidCommandError(f"not a user id: {to_user!r}")
        command.to_user_id = to_user
    elif conversation is not None:
        if not ids.is_conversation_id(conversation):
            raise InvalidCommandError(f"not a conversation id: {conversation!r}")
        command.conversation_id = conversation
    return command


def check_users(users: Sequence[str]) -> Sequence[str]:
    """Return the user ids. Raises InvalidCommandError for one that can be none."""
    for user in users:
        if not ids.is_app_id(user):
            raise InvalidCommandError(f"not a user id: {user!r}")
    return users


def check_size(command: commands_pb2.Command) -> commands_pb2.Command:
    """Return the command. Raises InvalidCommandError for one so large that its frame would end the stream, again and again."""
    size, limit = command.ByteSize(), limits.RULES[limits.RULES_VERSION].command_bytes
    if size > limit:
        raise InvalidCommandError(f"the command has {size} bytes, over the limit of {limit}")
    return command


def event_of(
    command: commands_pb2.Command, accepted: commands_pb2.Accepted, user_id: str, device_id: str
) -> events_pb2.Event | None:
    """Return the event that an accepted message became, equal to what the other devices get; None for other actions.

    Of the others the store decides the content (who was added indeed, who owns the group now): the device fetches those.
    """
    if not command.HasField("send_message"):
        return None
    return events_pb2.Event(
        conversation_id=accepted.conversation_id,
        seq=accepted.seq,
        time=accepted.time,
        actor_user_id=user_id,
        actor_device_id=device_id,
        request_id=command.request_id,
        message_count=accepted.message_count,
        message=command.send_message,
    )
