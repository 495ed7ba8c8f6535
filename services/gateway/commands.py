"""What a command must look like, whoever sends it, before it may enter the log; and which conversation it speaks of.

Pure. Refuses only what can never be valid under the rules; membership and everything else that needs state is decided by the store.
"""

from collections.abc import Callable, Iterable
from typing import Final
from unicodedata import category

from google.protobuf.message import DecodeError
from google.protobuf.unknown_fields import UnknownFieldSet

from chassis.errors import InvalidArgument, Unimplemented
from parley.api.v1.commands_pb2 import (
    AddMembers,
    Attachment,
    ChangeRole,
    ChangeSettings,
    CreateGroup,
    Leave,
    RemoveMember,
    Role,
    SendMessage,
)
from parley.log.v1.records_pb2 import RawCommand
from parley.store.v1.store_service_pb2 import SyncResponse
from parley_protocol.frames import varint
from parley_protocol.ids import REQUEST_ID_BYTES, is_app_id, is_conversation_id
from parley_protocol.limits import Rules

_SHA256_BYTES = 32
_SHALLOW_BYTES: Final = 128  # beside its body a message of so few bytes can't nest deeply enough to matter
_WRAPPERS: Final = (b"\x52", b"\x92\x01", b"\x0a", b"\x0a")  # Event.message, Conversation.last_events, conversations, response
_ROLES: Final = frozenset((Role.ROLE_MEMBER, Role.ROLE_ADMIN, Role.ROLE_OWNER))


def check_request_id(request_id: bytes) -> None:
    """Raise InvalidArgument unless it is 16 bytes: an outcome could not name the command by another."""
    if len(request_id) != REQUEST_ID_BYTES:
        raise InvalidArgument("FIELD_INVALID", f"request_id must be {REQUEST_ID_BYTES} bytes, not {len(request_id)}")


def check_command(command: RawCommand, rules: Rules) -> None:
    """Raise InvalidArgument or Unimplemented if the command (its request id apart) can never be valid."""
    name = command.WhichOneof("action")
    if name is None:
        if len(UnknownFieldSet(command)):
            raise Unimplemented("ACTION_UNSUPPORTED", "this server does not know the action")
        raise InvalidArgument("FIELD_MISSING", "action is missing")
    target = command.WhichOneof("target")
    if target == "conversation_id":
        if not is_conversation_id(command.conversation_id):
            raise InvalidArgument("FIELD_INVALID", "conversation_id must be d_ or g_ and 26 characters")
    elif target == "to_user_id":
        _check_user_id("to_user_id", command.to_user_id)
    if (target is None) != (name == "create_group"):
        if target is None:
            raise InvalidArgument("FIELD_MISSING", "target is missing")
        raise InvalidArgument("FIELD_INVALID", "create_group takes no target: the server names the group")
    if command.seen_seq < 0:
        raise InvalidArgument("FIELD_INVALID", "seen_seq must not be negative")
    encoded: bytes = getattr(command, name)
    if len(encoded) > rules.command_bytes:
        raise InvalidArgument("BODY_TOO_LARGE", f"{name} must not be larger than {rules.command_bytes} bytes, it is {len(encoded)}")
    try:
        _CHECKS[name](encoded, rules)
    except DecodeError as error:
        raise InvalidArgument("MALFORMED", f"{name} can't be parsed") from error


def _check_send_message(encoded: bytes, rules: Rules) -> None:
    message = SendMessage.FromString(encoded)
    size = len(message.body)
    if size > rules.body_bytes:
        raise InvalidArgument("BODY_TOO_LARGE", f"body must not be larger than {rules.body_bytes} bytes, it is {size}")
    if len(encoded) - size > _SHALLOW_BYTES:
        _check_depth(encoded)
    if not size and not message.attachments:
        raise InvalidArgument("FIELD_MISSING", "body is empty and there are no attachments")
    if message.reply_to_seq < 0:
        raise InvalidArgument("FIELD_INVALID", "reply_to_seq must not be negative")
    _check_content_type("content_type", message.content_type, rules)
    if message.mentions:
        _check_user_ids("mentions", message.mentions, 0, rules.mentions)
    if message.attachments:
        if len(message.attachments) > rules.attachments:
            raise InvalidArgument("FIELD_INVALID", f"attachments must not be more than {rules.attachments}")
        for attachment in message.attachments:
            _check_attachment(attachment, rules)


def _check_depth(encoded: bytes) -> None:
    """Raise DecodeError if the message can't be parsed where it lies deepest on its way: protobuf's parsers go down 100 levels.

    What nests almost that deep in unknown fields would parse here, and break every stream and page that it is put into.
    """
    for tag in _WRAPPERS:
        encoded = tag + varint(len(encoded)) + encoded
    SyncResponse.FromString(encoded)


def _check_attachment(attachment: Attachment, rules: Rules) -> None:
    if not attachment.uri:
        raise InvalidArgument("FIELD_MISSING", "attachments.uri is missing")
    if len(attachment.uri.encode()) > rules.attachment_uri_bytes:
        raise InvalidArgument("FIELD_INVALID", f"attachments.uri must not be longer than {rules.attachment_uri_bytes} bytes")
    _check_content_type("attachments.content_type", attachment.content_type, rules)
    if attachment.size_bytes < 0:
        raise InvalidArgument("FIELD_INVALID", "attachments.size_bytes must not be negative")
    if attachment.sha256 and len(attachment.sha256) != _SHA256_BYTES:
        raise InvalidArgument("FIELD_INVALID", f"attachments.sha256 must be {_SHA256_BYTES} bytes or empty")


def _check_create_group(encoded: bytes, rules: Rules) -> None:
    action = CreateGroup.FromString(encoded)
    _check_title(action.title, rules)
    _check_user_ids("member_user_ids", action.member_user_ids, 0, rules.users_per_action)


def _check_add_members(encoded: bytes, rules: Rules) -> None:
    _check_user_ids("user_ids", AddMembers.FromString(encoded).user_ids, 1, rules.users_per_action)


def _check_remove_member(encoded: bytes, _rules: Rules) -> None:
    _check_user_id("user_id", RemoveMember.FromString(encoded).user_id)


def _check_leave(encoded: bytes, _rules: Rules) -> None:
    Leave.FromString(encoded)


def _check_change_role(encoded: bytes, _rules: Rules) -> None:
    action = ChangeRole.FromString(encoded)
    _check_user_id("user_id", action.user_id)
    if action.role not in _ROLES:
        raise InvalidArgument("FIELD_INVALID", "role must be one that this server knows")


def _check_change_settings(encoded: bytes, rules: Rules) -> None:
    action = ChangeSettings.FromString(encoded)
    if not action.HasField("title"):
        raise InvalidArgument("FIELD_MISSING", "no setting that this server knows is set")
    _check_title(action.title, rules)


_CHECKS: Final[dict[str, Callable[[bytes, Rules], None]]] = {
    "send_message": _check_send_message,
    "create_group": _check_create_group,
    "add_members": _check_add_members,
    "remove_member": _check_remove_member,
    "leave": _check_leave,
    "change_role": _check_change_role,
    "change_settings": _check_change_settings,
}


def _check_user_id(name: str, user_id: str) -> None:
    if not is_app_id(user_id):
        raise InvalidArgument("FIELD_INVALID", f"{name} must be 1 to 128 characters of printable ASCII without space")


def _check_user_ids(name: str, user_ids: Iterable[str], least: int, most: int) -> None:
    count = 0
    for count, user_id in enumerate(user_ids, 1):
        if count > most:
            raise InvalidArgument("FIELD_INVALID", f"{name} must not be more than {most}")
        _check_user_id(name, user_id)
    if count < least:
        raise InvalidArgument("FIELD_MISSING", f"{name} must be at least {least}")


def _check_content_type(name: str, content_type: str, rules: Rules) -> None:
    if len(content_type) > rules.content_type_bytes or not (content_type.isascii() and content_type.isprintable()):
        raise InvalidArgument("FIELD_INVALID", f"{name} must be printable ASCII, at most {rules.content_type_bytes} bytes")


def _check_title(title: str, rules: Rules) -> None:
    if len(title.encode()) > rules.title_bytes or any(category(char) == "Cc" for char in title):
        raise InvalidArgument("FIELD_INVALID", f"title must be at most {rules.title_bytes} bytes without control characters")
