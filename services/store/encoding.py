"""The bytes that the hot path makes for every message, put together by hand.

Any protobuf reader reads them; a test holds them against the generated classes. By hand because building messages field by field
costs three times as much. Numbers of 0 are written out: leaving them out, as the generated classes do, would cost more.
"""

from collections.abc import Iterable, Sequence
from functools import lru_cache
from hashlib import blake2b

from parley.log.v1.records_pb2 import MembershipChange
from parley_protocol.frames import varint
from services.store.state import ConversationState, Member

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


@lru_cache(maxsize=64)  # a batch of the log has one time
def timestamp(time_ms: int) -> bytes:
    """Encode a google.protobuf.Timestamp."""
    seconds, millis = divmod(time_ms, 1000)
    return (b"\x08" + varint(seconds) if seconds else b"") + (b"\x10" + varint(millis * 1_000_000) if millis else b"")


@lru_cache(maxsize=16_384)  # ids come again with every message; ~200 bytes an entry
def _id(tag: bytes, text: str) -> bytes:
    encoded = text.encode()
    return tag + varint(len(encoded)) + encoded if encoded else b""


def _bytes(tag: bytes, value: bytes) -> bytes:
    return tag + varint(len(value)) + value if value else b""


def _number(tag: bytes, value: int) -> bytes:
    return tag + varint(value) if value else b""


@lru_cache(maxsize=256)
def _place(epoch: int, partition: int) -> bytes:
    """Fields 1 and 2 of a DedupeRow, and the tag of 3."""
    return b"\x08" + varint(epoch) + b"\x10" + varint(partition) + b"\x18"


@lru_cache(maxsize=64)
def _log_time(log_ms: int) -> bytes:
    """Field 4 of a DedupeRow, and tag and length of 5."""
    return b"\x20" + varint(log_ms) + b"\x2a" + varint(PAYLOAD_HASH_BYTES)


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
            _id(b"\x0a", conversation_id),
            b"\x10",
            varint(seq),
            b"\x1a",
            varint(len(time)),
            time,
            _id(b"\x22", user_id),
            _id(b"\x2a", device_id),
            _bytes(b"\x32", request_id),
            b"\x38",
            varint(count),
            CONTENT_TAGS[content],
            varint(len(payload)),
            payload,
        )
    )


def accepted(request_id: bytes, conversation_id: str, seq: int, count: int, time: bytes, *, duplicate: bool) -> bytes:
    """Encode a parley.api.v1.Outcome with Accepted."""
    body = b"".join(
        (
            _id(b"\x0a", conversation_id),
            b"\x10",
            varint(seq),
            b"\x18",
            varint(count),
            b"\x22",
            varint(len(time)),
            time,
            b"\x28\x01" if duplicate else b"",
        )
    )
    return b"".join((_bytes(b"\x0a", request_id), b"\x12", varint(len(body)), body))


def rejected(request_id: bytes, status: bytes) -> bytes:
    """Encode a parley.api.v1.Outcome with an encoded google.rpc.Status."""
    return _bytes(b"\x0a", request_id) + b"\x1a" + varint(len(status)) + status


def receipt(conversation_id: str, user_id: str, delivered_seq: int, read_seq: int, time: bytes) -> bytes:
    """Encode a parley.api.v1.Receipt."""
    return b"".join(
        (
            _id(b"\x0a", conversation_id),
            _id(b"\x12", user_id),
            _number(b"\x18", delivered_seq),
            _number(b"\x20", read_seq),
            b"\x2a",
            varint(len(time)),
            time,
        )
    )


def inbox_change(
    conversation_id: str, head_seq: int, message_count: int, delivered_seq: int, read_seq: int, unread_count: int, version: int
) -> bytes:
    """Encode a parley.api.v1.InboxChange."""
    return b"".join(
        (
            _id(b"\x0a", conversation_id),
            _number(b"\x10", head_seq),
            _number(b"\x18", message_count),
            _number(b"\x20", delivered_seq),
            _number(b"\x28", read_seq),
            _number(b"\x30", unread_count),
            _number(b"\x38", version),
        )
    )


def dedupe_row(
    epoch: int, partition: int, offset: int, log_ms: int, payload_hash: bytes, seq: int, count: int, rejection: bytes
) -> bytes:
    """Encode a parley.store.v1.DedupeRow."""
    return b"".join(
        (
            _place(epoch, partition),
            varint(offset),
            _log_time(log_ms),
            payload_hash,
            b"\x30",
            varint(seq),
            b"\x38",
            varint(count),
            _bytes(b"\x42", rejection),
        )
    )


def head_row(state: ConversationState) -> bytes:
    """Encode a parley.store.v1.HeadRow."""
    return b"".join(
        (
            b"\x08",
            varint(state.kind),
            b"\x10",
            varint(state.head_seq),
            b"\x18",
            varint(state.message_count),
            b"\x20",
            varint(state.applied.epoch),
            b"\x28",
            varint(state.applied.partition),
            b"\x30",
            varint(state.applied.offset),
            b"\x38",
            varint(state.stamp),
            _bytes(b"\x42", state.title.encode()),
            b"\x48\x01" if state.large else b"",
            b"\x50",
            varint(state.version),
            b"\x58",
            varint(state.last_time_ms),
            b"\x60",
            varint(state.member_count),
        )
    )


def member_row(member: Member) -> bytes:
    """Encode a parley.store.v1.MemberRow."""
    return b"".join(
        (
            *[_bytes(b"\x0a", _pair(first, last)) for first, last in member.stays],
            b"\x10",
            varint(member.role),
            b"\x18",
            varint(member.role_seq),
            b"\x20",
            varint(member.delivered_seq),
            b"\x28",
            varint(member.read_seq),
            b"\x30",
            varint(member.read_count),
            *[
                _bytes(b"\x3a", _pair(run.first_seq, run.last_seq) + b"\x18" + varint(run.last_count))
                for run in member.own_after_read
            ],
            _number(b"\x40", member.left_count),
            _number(b"\x48", member.left_time_ms),
            _number(b"\x50", member.left_version),
            _bytes(b"\x5a", member.left_title.encode()),
            _number(b"\x60", member.left_member_count),
        )
    )


def _pair(first: int, last: int) -> bytes:
    return b"\x08" + varint(first) + b"\x10" + varint(last)


def inbox_row(state: ConversationState, member: Member, peer_user_id: str, peer: Member | None) -> bytes:
    """Encode a parley.store.v1.InboxRow of a conversation that is not large, or of one who left it."""
    head_seq, message_count, version, last_time_ms = state.visible_head(member)
    return b"".join(
        (
            b"\x08",
            varint(state.kind),
            b"\x10",
            varint(head_seq),
            b"\x18",
            varint(message_count),
            b"\x20",
            varint(member.delivered_seq),
            b"\x28",
            varint(member.read_seq),
            b"\x30",
            varint(message_count - member.read_count - member.own_count()),
            _id(b"\x3a", peer_user_id),
            b"\x40" + varint(peer.delivered_seq) + b"\x48" + varint(peer.read_seq) if peer is not None else b"",
            b"\x50",
            varint(version),
            b"\x58",
            varint(last_time_ms),
            b"" if member.active else b"\x68\x01",
        )
    )


def event_record(
    conversation_id: str,
    seq: int,
    user_id: str,
    device_id: str,
    gateway_id: str,
    session_id: str,
    shared: bytes,
    own: bytes,
    actor: bytes,
    recipients: Sequence[str],
    *,
    all_members: bool,
    membership_changes: Iterable[MembershipChange],
    wakes: bool,
) -> bytes:
    """Encode a parley.log.v1.EventRecord as an element of EventBatch.events."""
    record = b"".join(
        (
            _id(b"\x0a", conversation_id),
            _number(b"\x10", seq),
            _id(b"\x1a", user_id),
            _id(b"\x22", device_id),
            _id(b"\x2a", gateway_id),
            _id(b"\x32", session_id),
            _bytes(b"\x3a", shared),
            _bytes(b"\x42", own),
            _bytes(b"\x4a", actor),
            *[_id(b"\x52", user) for user in recipients],
            b"\x58\x01" if all_members else b"",
            *[_bytes(b"\x62", change.SerializeToString()) for change in membership_changes],
            b"\x68\x01" if wakes else b"",
        )
    )
    return b"\x0a" + varint(len(record)) + record


def payload_hash(conversation_id: str, action: str, payload: bytes) -> bytes:
    """Hash what a request_id stands for: the resolved conversation and the action's bytes as the device sent them."""
    hasher = blake2b(digest_size=PAYLOAD_HASH_BYTES, person=action.encode()[:16])
    hasher.update(conversation_id.encode())
    hasher.update(payload)
    return hasher.digest()
