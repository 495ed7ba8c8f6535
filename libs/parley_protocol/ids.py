"""Conversation ids and the shapes of the app's own ids."""

import hashlib
from base64 import b32encode

MAX_ID_BYTES = 128
REQUEST_ID_BYTES = 16
DIRECT_PREFIX = "d_"
GROUP_PREFIX = "g_"
_HASH_BYTES = 16  # 128 bits: 26 characters of base32
_CONVERSATION_ID_CHARS = 28
_BASE32 = frozenset("abcdefghijklmnopqrstuvwxyz234567")


def is_app_id(text: str) -> bool:
    """Tell whether text can be a user or device id: 1 to 128 characters of printable ASCII, no space."""
    return 0 < len(text) <= MAX_ID_BYTES and text.isascii() and text.isprintable() and " " not in text


def is_conversation_id(text: str) -> bool:
    """Tell whether text has the shape of a conversation id."""
    return len(text) == _CONVERSATION_ID_CHARS and text.startswith((DIRECT_PREFIX, GROUP_PREFIX)) and _BASE32.issuperset(text[2:])


def direct_conversation_id(user_a: str, user_b: str) -> str:
    """Return the id of the conversation of two users (of one with himself): the same from either side."""
    return DIRECT_PREFIX + _hash_text(*(user.encode() for user in sorted((user_a, user_b))))


def group_conversation_id(creator: str, device_id: str, request_id: bytes) -> str:
    """Return the id of the group that this CreateGroup command makes, so that asking twice finds the first."""
    return GROUP_PREFIX + _hash_text(creator.encode(), device_id.encode(), request_id)


def _hash_text(*parts: bytes) -> str:
    digest = hashlib.sha256(b"".join(len(part).to_bytes(2) + part for part in parts)).digest()
    return b32encode(digest[:_HASH_BYTES]).decode().rstrip("=").lower()
