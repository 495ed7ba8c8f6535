"""The bytes that the hot path makes for every message, put together by hand.

Fields stand in the order of their numbers, so the bytes equal those of the generated classes (a test holds that). By hand because
building nested messages field by field costs three times as much.
"""

from hashlib import blake2b

from parley_protocol.frames import varint

PAYLOAD_HASH_BYTES = 16

# Event content: the tag of the field with the same number as the command's action.
CONTENT_TAGS = {
    "message": b"\x52",  # 10
    "group_created": b"\x72",  # 14
    "members_added": b"\x7a",  # 15
    "member_removed": b"\x82\x01",  # 16
    "member_left": b"\x8a\x01",  # 17
    "role_changed": b"\x92\x01",  # 18
    "settings_changed": b"\x9a\x01",  # 19
}


def timestamp(time_ms: int) -> bytes:
    """Encode a google.protobuf.Timestamp."""
    seconds, millis = divmod(time_ms, 1000)
    return (b"\x08" + varint(seconds) if seconds else b"") + (b"\x10" + varint(millis * 1_000_000) if millis else b"")


def _text(tag: bytes, encoded: bytes) -> bytes:
    return tag + varint(len(encoded)) + encoded if encoded else b""


def event(
    conversation_id: str,
    seq: int,
    time: bytes,
    user_id: str,
    device_id: str,
    request_id: bytes,
    count: int,
    content: str,
    payload: bytes,
) -> bytes:
    """Encode a parley.api.v1.Event whose content is encoded already; `time` is an encoded Timestamp."""
    return b"".join(
        (
            _text(b"\x0a", conversation_id.encode()),
            b"\x10" + varint(seq),
            b"\x1a" + varint(len(time)) + time,
            _text(b"\x22", user_id.encode()),
            _text(b"\x2a", device_id.encode()),
            _text(b"\x32", request_id),
            b"\x38" + varint(count) if count else b"",
            CONTENT_TAGS[content],
            varint(len(payload)),
            payload,
        )
    )


def accepted(request_id: bytes, conversation_id: str, seq: int, count: int, time: bytes, *, duplicate: bool) -> bytes:
    """Encode a parley.api.v1.Outcome with Accepted."""
    body = b"".join(
        (
            _text(b"\x0a", conversation_id.encode()),
            b"\x10" + varint(seq),
            b"\x18" + varint(count) if count else b"",
            b"\x22" + varint(len(time)) + time,
            b"\x28\x01" if duplicate else b"",
        )
    )
    return _text(b"\x0a", request_id) + b"\x12" + varint(len(body)) + body


def rejected(request_id: bytes, status: bytes) -> bytes:
    """Encode a parley.api.v1.Outcome with an encoded google.rpc.Status."""
    return _text(b"\x0a", request_id) + b"\x1a" + varint(len(status)) + status


def receipt(conversation_id: str, user_id: str, delivered_seq: int, read_seq: int, time: bytes) -> bytes:
    """Encode a parley.api.v1.Receipt."""
    return b"".join(
        (
            _text(b"\x0a", conversation_id.encode()),
            _text(b"\x12", user_id.encode()),
            b"\x18" + varint(delivered_seq) if delivered_seq else b"",
            b"\x20" + varint(read_seq) if read_seq else b"",
            b"\x2a" + varint(len(time)) + time,
        )
    )


def payload_hash(conversation_id: str, action: str, payload: bytes) -> bytes:
    """Hash what a request_id stands for: the resolved conversation and the action's bytes as the device sent them."""
    hasher = blake2b(digest_size=PAYLOAD_HASH_BYTES, person=action.encode()[:16])
    hasher.update(conversation_id.encode())
    hasher.update(payload)
    return hasher.digest()


def inbox_change(
    conversation_id: str, head_seq: int, message_count: int, delivered_seq: int, read_seq: int, unread_count: int, version: int
) -> bytes:
    """Encode a parley.api.v1.InboxChange."""
    numbers = (head_seq, message_count, delivered_seq, read_seq, unread_count, version)  # fields 2 to 7
    return _text(b"\x0a", conversation_id.encode()) + b"".join(
        bytes((index << 3,)) + varint(number) for index, number in enumerate(numbers, start=2) if number
    )
