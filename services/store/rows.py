"""How the store's knowledge lies in the tables: partitions, keys and values, both ways.

| table | partition | key -> value |
| conversation_state | conversation | empty -> HeadRow; user -> MemberRow |
| timeline | conversation/bucket | seq, 8 bytes big-endian -> Event |
| dedupe | conversation/user/week | device NUL request_id -> DedupeRow |
| inbox | user | conversation -> InboxRow |
| partition_stop | see services/store/stops.py |
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from chassis.timeline import PARTITION_WRITE_BYTES, Cell, Point, Row
from parley.store.v1.rows_pb2 import DedupeRow, HeadRow, InboxRow, MemberRow
from services.store import encoding
from services.store.decide import Fate
from services.store.state import DIRECT, ConversationState, Member, OwnRange, Position

STATE: Final = "conversation_state"
TIMELINE: Final = "timeline"
DEDUPE: Final = "dedupe"
INBOX: Final = "inbox"
STOP: Final = "partition_stop"
TABLES: Final = (STATE, TIMELINE, DEDUPE, INBOX, STOP)

HEAD_KEY: Final = b""
BUCKET_BITS: Final = 10  # 1,024 events a partition: 0.2 MB at 100 bytes, 16 MB at the body limit
WEEK_MS: Final = 7 * 24 * 3600 * 1000
LOG_STEP_MS: Final = 24 * 3600 * 1000  # how far log time jumps back at most without a read: clocks may be wrong by an hour
DEDUPE_TTL_SECONDS: Final = (14 + 7) * 24 * 3600  # what decide remembers, and a week that a store may lag behind


def pieces(rows: Sequence[Row], max_bytes: int = PARTITION_WRITE_BYTES) -> Iterator[Sequence[Row]]:
    """Cut rows into writes of at most `max_bytes`, nearly always one: for rows that need not appear together."""
    first = size = 0
    for index, row in enumerate(rows):
        size += len(row.key) + len(row.value)
        if size > max_bytes and index > first:
            yield rows[first:index]
            first, size = index, len(row.key) + len(row.value)
    if rows:
        yield rows[first:]


def seq_key(seq: int) -> bytes:
    return seq.to_bytes(8)


def timeline_partition(conversation_id: str, seq: int, bucket_bits: int) -> str:
    return f"{conversation_id}/{seq >> bucket_bits}"


def timeline_point(conversation_id: str, seq: int, bucket_bits: int) -> Point:
    return Point(TIMELINE, timeline_partition(conversation_id, seq, bucket_bits), seq_key(seq))


def request_key(device_id: str, request_id: bytes) -> bytes:
    return device_id.encode() + b"\0" + request_id


def dedupe_partition(conversation_id: str, user_id: str, week: int) -> str:
    return f"{conversation_id}/{user_id}/{week}"


def dedupe_partitions(conversation_id: str, user_id: str, log_ms: int) -> list[str]:
    """Return where a request that counts at log_ms can lie: 14 days back, and a week ahead, for log time may have jumped back."""
    week = log_ms // WEEK_MS
    return [dedupe_partition(conversation_id, user_id, week - back) for back in (-1, 0, 1, 2)]


def sender_partitions(conversation_id: str, user_id: str, log_ms: int) -> list[str]:
    """Return where requests of a sender can lie that may count in `sender_span(log_ms)`."""
    places = dedupe_partitions(conversation_id, user_id, log_ms) + dedupe_partitions(conversation_id, user_id, log_ms - LOG_STEP_MS)
    return list(dict.fromkeys(places))


def sender_span(log_ms: int) -> tuple[int, int]:
    """Return the log times, from the first to before the second, at which only requests in `sender_partitions` may count."""
    return (log_ms - LOG_STEP_MS) // WEEK_MS * WEEK_MS, (log_ms // WEEK_MS + 1) * WEEK_MS


def event_row(conversation_id: str, seq: int, event: bytes, stamp: int, bucket_bits: int) -> Row:
    return Row(TIMELINE, timeline_partition(conversation_id, seq, bucket_bits), seq_key(seq), event, stamp)


def fate_row(conversation_id: str, user_id: str, key: bytes, fate: Fate, stamp: int) -> Row:
    position = fate.position
    value = encoding.dedupe_row(*position, fate.log_ms, fate.payload_hash, fate.seq, fate.message_count, fate.rejection)
    partition = dedupe_partition(conversation_id, user_id, fate.log_ms // WEEK_MS)
    return Row(DEDUPE, partition, key, value, stamp, DEDUPE_TTL_SECONDS)


def fate_of(value: bytes) -> Fate:
    row = DedupeRow.FromString(value)
    position = Position(row.log_epoch, row.partition, row.offset)
    return Fate(position, row.log_time_ms, row.payload_hash, row.seq, row.message_count, row.rejection)


def state_rows(state: ConversationState) -> list[Row]:
    """Return the changed rows of the state itself: one partition, written as one atomic mutation."""
    conversation_id = state.conversation_id
    rows = [Row(STATE, conversation_id, HEAD_KEY, encoding.head_row(state), state.stamp)]
    rows.extend(
        Row(STATE, conversation_id, user.encode(), encoding.member_row(state.members[user]), stamp)
        for user, stamp in state.dirty_members.items()
    )
    return rows


def inbox_rows(state: ConversationState) -> list[Row]:
    """Return the changed inbox rows of the conversation's members."""
    stamps = dict.fromkeys(state.present, state.dirty_inboxes_of_all) if state.dirty_inboxes_of_all else {}
    for user, stamp in state.dirty_inboxes.items():
        stamps[user] = max(stamps.get(user, stamp), stamp)
    key = state.conversation_id.encode()
    return [Row(INBOX, user, key, inbox_row(state, user), stamp) for user, stamp in stamps.items()]


def clear_dirty(state: ConversationState) -> None:
    """Note that all rows are on their way; if they do not arrive, the state is dropped."""
    state.dirty = False
    state.dirty_members.clear()
    state.dirty_inboxes.clear()
    state.dirty_inboxes_of_all = 0


def inbox_row(state: ConversationState, user: str) -> bytes:
    """Return a user's view as an inbox row; of a large conversation only that he has it."""
    member = state.members[user]
    if state.large and member.active:
        return InboxRow(kind=state.kind, large=True).SerializeToString()
    if state.kind != DIRECT:
        return encoding.inbox_row(state, member, "", None)
    peer = peer_of(state.members, user)
    return encoding.inbox_row(state, member, peer, state.members[peer])


def peer_of(members: Iterable[str], user: str) -> str:
    """Return the other one of a 1-1 conversation."""
    return next(name for name in members if name != user)


def member_of(value: bytes) -> Member:
    row = MemberRow.FromString(value)
    return Member(
        [(stay.first_seq, stay.last_seq) for stay in row.stays],
        row.role,
        row.role_seq,
        row.delivered_seq,
        row.read_seq,
        row.read_count,
        [OwnRange(run.first_seq, run.last_seq, run.last_count) for run in row.own_after_read],
        row.left_count,
        row.left_time_ms,
        row.left_version,
        row.left_title,
        row.left_member_count,
    )


def state_of(conversation_id: str, cells: Sequence[Cell]) -> ConversationState:
    """Return the state that rows of its partition say: all of them, or the head and some members."""
    state = ConversationState(conversation_id)
    for key, value in cells:
        if key == HEAD_KEY:
            head = HeadRow.FromString(value)
            state.kind = head.kind
            state.head_seq, state.message_count = head.head_seq, head.message_count
            state.applied = Position(head.log_epoch, head.partition, head.offset)
            state.stamp = head.stamp
            state.title, state.large, state.version = head.title, head.large, head.version
            state.last_time_ms, state.member_count = head.last_time_ms, head.member_count
        else:
            state.members[key.decode()] = member_of(value)
    return state
