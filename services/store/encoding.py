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


@lru_cache(maxsize=64)
def _millis(tag: bytes, time_ms: int) -> bytes:
    """A time that is a number of milliseconds: the same for a whole batch, as `timestamp` is."""
    return tag + varint(time_ms)


@lru_cache(maxsize=64)
def _time(tag: bytes, time: bytes) -> bytes:
    return tag + varint(len(time)) + time


@lru_cache(maxsize=16_384)
def _actor(user_id: str, device_id: str) -> bytes:
    """Fields 4 and 5 of an Event."""
    return _id(b"\x22", user_id) + _id(b"\x2a", device_id)


@lru_cache(maxsize=16_384)
def _origin(user_id: str, device_id: str, gateway_id: str, session_id: str) -> bytes:
    """Fields 3 to 6 of an EventRecord."""
    return _id(b"\x1a", user_id) + _id(b"\x22", device_id) + _id(b"\x2a", gateway_id) + _id(b"\x32", session_id)


@lru_cache(maxsize=256)
def _place(epoch: int, partition: int) -> bytes:
    """Fields 1 and 2 of a DedupeRow, and the tag of 3."""
    return b"\x08" + varint(epoch) + b"\x10" + varint(partition) + b"\x18"


@lru_cache(maxsize=64)
def _log_time(log_ms: int) -> bytes:
    """Field 4 of a DedupeRow, and tag and length of 5."""
    return b"\x20" + varint(log_ms) + b"\x2a" + varint(PAYLOAD_HASH_BYTES)


@lru_cache(maxsize=4_096)  # one for all 1-1, one a group
def _head(kind: int, epoch: int, partition: int, title: str, large: bool, version: int, member_count: int) -> bytes:
    """Return what a message changes nothing of in a HeadRow."""
    return b"".join(
        (
            b"\x08",
            varint(kind),
            b"\x20",
            varint(epoch),
            b"\x28",
            varint(partition),
            _bytes(b"\x42", title.encode()),
            b"\x48\x01" if large else b"",
            b"\x50",
            varint(version),
            b"\x60",
            varint(member_count),
        )
    )


@lru_cache(maxsize=4_096)
def _stay(first: int, last: int, role: int, role_seq: int) -> bytes:
    """Fields 1 to 3 of a MemberRow of who came once."""
    return _bytes(b"\x0a", _pair(first, last)) + b"\x10" + varint(role) + b"\x18" + varint(role_seq)


@lru_cache(maxsize=16_384)
def _inbox(kind: int, peer_user_id: str, version: int, active: bool) -> bytes:
    """Return what a message changes nothing of in an InboxRow."""
    left = b"" if active else b"\x68\x01"
    return b"\x08" + varint(kind) + _id(b"\x3a", peer_user_id) + b"\x50" + varint(version) + left


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
            _time(b"\x1a", time),
            _actor(user_id, device_id),
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
            _time(b"\x22", time),
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
            _time(b"\x2a", time),
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
    applied = state.applied
    return b"".join(
        (
            _head(state.kind, applied.epoch, applied.partition, state.title, state.large, state.version, state.member_count),
            b"\x10",
            varint(state.head_seq),
            b"\x18",
            varint(state.message_count),
            b"\x30",
            varint(applied.offset),
            b"\x38",
            varint(state.stamp),
            _millis(b"\x58", state.last_time_ms),
        )
    )


def member_row(member: Member) -> bytes:
    """Encode a parley.store.v1.MemberRow."""
    stays, runs = member.stays, member.own_after_read
    first, last = stays[-1]
    return b"".join(
        (
            *[_bytes(b"\x0a", _pair(*stay)) for stay in stays[:-1]],
            _stay(first, last, member.role, member.role_seq),
            b"\x20",
            varint(member.delivered_seq),
            b"\x28",
            varint(member.read_seq),
            b"\x30",
            varint(member.read_count),
            *[_bytes(b"\x3a", _pair(run.first_seq, run.last_seq) + b"\x18" + varint(run.last_count)) for run in runs],
            _left(member) if last or len(stays) > 1 else b"",
        )
    )


def _left(member: Member) -> bytes:
    """Fields 8 to 12 of a MemberRow: how the conversation looked when he left it."""
    return b"".join(
        (
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
            _inbox(state.kind, peer_user_id, version, member.active),
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
            b"\x40" + varint(peer.delivered_seq) + b"\x48" + varint(peer.read_seq) if peer is not None else b"",
            _millis(b"\x58", last_time_ms),
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
            _origin(user_id, device_id, gateway_id, session_id),
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
    return blake2b(conversation_id.encode() + payload, digest_size=PAYLOAD_HASH_BYTES, person=_person(action)).digest()


@lru_cache(maxsize=32)
def _person(action: str) -> bytes:
    return action.encode()[: blake2b.PERSON_SIZE]
