"""Events as lines for people and as JSON for scripts. Pure.

Bodies and ids are other people's bytes: what goes to a terminal is made harmless first (no escape sequences, no overriding of
the line's direction), what goes to JSON stays exact.
"""

import base64
import json
import unicodedata
from datetime import datetime, tzinfo
from typing import Any

from parley.api.v1 import commands_pb2, events_pb2

# Embeddings, overrides and isolates: left open they would reorder the rest of the line. Right-to-left text needs none of them.
_DIRECTION_CONTROLS = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200e\u200f\u061c")
_JOINERS = "\u200c\u200d"  # not printable by Unicode's reckoning, and a part of words and of emoji
_TEXT_TYPES = ("", "text/plain")


def harmless(text: str) -> str:
    """Return text in which nothing commands the terminal: controls are shown as escapes, line breaks are indented."""
    shown = []
    for char in text:
        if char == "\n":
            shown.append("\n      ")
        elif char == "\t":
            shown.append(char)
        elif unicodedata.category(char) in {"Cc", "Cs", "Zl", "Zp"} or char in _DIRECTION_CONTROLS:
            shown.append(f"\\x{ord(char):02x}" if ord(char) < 0x100 else f"\\u{ord(char):04x}")
        else:
            shown.append(char)
    return "".join(shown)


def one_line(text: str, width: int) -> str:
    """Return text made harmless, on one line, cut to `width` characters."""
    line = " ".join(harmless(text).split())
    return line if len(line) <= width else line[: width - 1] + "…"


def last_cause(detail: str) -> str:
    """Return the end of a chain of causes, which is what a person can use: "Connection refused", "the server stops"."""
    return harmless(detail.rpartition(": ")[2])


def describe(event: events_pb2.Event) -> str:
    """Say what happened, for a person: a message's text, or what its actor did."""
    actor = event.actor_user_id
    match event.WhichOneof("content"):
        case "message":
            return describe_message(event.message)
        case "group_created":
            title = f" “{harmless(event.group_created.title)}”" if event.group_created.title else ""
            return f"* {actor} created the group{title} with {', '.join(event.group_created.member_user_ids)}"
        case "members_added":
            return f"* {actor} added {', '.join(event.members_added.user_ids)}"
        case "member_removed":
            return f"* {actor} removed {event.member_removed.user_id}"
        case "member_left":
            heir = event.member_left.new_owner_user_id
            return f"* {actor} left" + (f"; {heir} owns the group now" if heir else "")
        case "role_changed":
            return f"* {actor} made {event.role_changed.user_id} {role_name(event.role_changed.role)}"
        case "settings_changed":
            return f"* {actor} renamed the group to “{harmless(event.settings_changed.title)}”"
        case _:
            return "* (something that this version does not know)"


def describe_message(message: commands_pb2.SendMessage) -> str:
    """Return a message's text, or what there is instead of text."""
    parts = []
    if message.body:
        text = _text_of(message)
        parts.append(harmless(text) if text is not None else f"({len(message.body)} bytes of {message.content_type or 'no text'})")
    parts += [f"(attachment {harmless(a.uri)}, {a.size_bytes} bytes)" for a in message.attachments]
    return " ".join(parts)


def line_of(event: events_pb2.Event, zone: tzinfo | None = None) -> str:
    """Return an event as a line: `#12 2026-01-31 08:15:00 alice: hello`. `zone` None: local time."""
    time = datetime.fromtimestamp(event.time.seconds, tz=zone).strftime("%Y-%m-%d %H:%M:%S")
    text = describe(event)
    return f"#{event.seq} {time} " + (f"{event.actor_user_id}: {text}" if event.HasField("message") else text)


def member_line(member: events_pb2.Member, *, online: bool, in_group: bool) -> str:
    """Say who a member is and how far he has come."""
    role = f", {role_name(member.role)}" if in_group else ""
    has = f"has up to #{member.delivered_seq}" if member.delivered_seq else "has nothing yet"
    read = f", read up to #{member.read_seq}" if member.read_seq else ""
    return f"{member.user_id}: {'online' if online else 'offline'}{role}, {has}{read}"


def role_name(role: int) -> str:
    """Return a role in words; what is not known counts as member."""
    return "owner" if role == commands_pb2.ROLE_OWNER else "admin" if role == commands_pb2.ROLE_ADMIN else "member"


def json_of(event: events_pb2.Event) -> dict[str, Any]:
    """Return an event for JSON. A message's body is `text` where it is valid UTF-8, else `body_base64`, and exact either way."""
    document: dict[str, Any] = {
        "conversation_id": event.conversation_id,
        "seq": event.seq,
        "time": event.time.ToJsonString(),
        "actor_user_id": event.actor_user_id,
        "actor_device_id": event.actor_device_id,
        "request_id": event.request_id.hex(),
        "message_count": event.message_count,
        "kind": event.WhichOneof("content") or "unsupported",
    }
    match event.WhichOneof("content"):
        case "message":
            document |= _message_json(event.message)
        case "group_created":
            document |= {"title": event.group_created.title, "member_user_ids": list(event.group_created.member_user_ids)}
        case "members_added":
            document["user_ids"] = list(event.members_added.user_ids)
        case "member_removed":
            document["user_id"] = event.member_removed.user_id
        case "member_left":
            document["new_owner_user_id"] = event.member_left.new_owner_user_id
        case "role_changed":
            document |= {"user_id": event.role_changed.user_id, "role": role_name(event.role_changed.role)}
        case "settings_changed":
            document["title"] = event.settings_changed.title
    return document


def json_line(event: events_pb2.Event) -> str:
    """Return an event as a line of JSON: other scripts' letters as they are, what would command a terminal as JSON's escapes."""
    line = json.dumps(json_of(event), ensure_ascii=False)
    return "".join(char if char.isprintable() or char in _JOINERS else json.dumps(char)[1:-1] for char in line)


def _message_json(message: commands_pb2.SendMessage) -> dict[str, Any]:
    document: dict[str, Any] = {"content_type": message.content_type or "text/plain"}
    try:
        document["text"] = message.body.decode()
    except UnicodeDecodeError:
        document["body_base64"] = base64.b64encode(message.body).decode()
    if message.mentions:
        document["mentions"] = list(message.mentions)
    if message.reply_to_seq:
        document["reply_to_seq"] = message.reply_to_seq
    if message.attachments:
        document["attachments"] = [
            {"uri": a.uri, "content_type": a.content_type, "size_bytes": a.size_bytes, "sha256": a.sha256.hex()}
            for a in message.attachments
        ]
    return document


def _text_of(message: commands_pb2.SendMessage) -> str | None:
    if message.content_type.partition(";")[0].strip().lower() not in _TEXT_TYPES:
        return None
    try:
        return message.body.decode()
    except UnicodeDecodeError:
        return None
