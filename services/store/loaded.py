"""What is held of one conversation while its records are decided, and what of it `decide` is told. Pure."""

from dataclasses import dataclass, field
from itertools import islice
from typing import Any, NamedTuple

from google.protobuf.message import DecodeError

from chassis.eventlog import LogRecord
from parley.log.v1.records_pb2 import CommandRecord
from services.store import rows
from services.store.decide import Fate, Known, counts
from services.store.seen_keys import SeenKeys, key_hash
from services.store.state import ConversationState

_FATES_KEPT = 256  # a sender's newest answers: what a device that reconnects asks again
_COUNTS_KEPT = 1024  # message counts of the newest events of a group: acks lag by seconds


class Decodable(NamedTuple):
    """A record of the batch that parsed."""

    offset: int
    time_ms: int
    record: CommandRecord
    key: bytes  # device and request_id; empty for acks
    key_hash: int


def item_of(raw: LogRecord) -> Decodable | None:
    """Parse a record of the log; None: it does not parse, or not under this key."""
    try:
        record = CommandRecord.FromString(raw.value)
    except DecodeError:
        return None
    if record.conversation_id.encode() != raw.key:
        return None
    if record.WhichOneof("body") != "command":
        return Decodable(raw.offset, raw.time_ms, record, b"", 0)
    key = rows.request_key(record.device_id, record.command.request_id)
    return Decodable(raw.offset, raw.time_ms, record, key, key_hash(key))


@dataclass(slots=True)
class Sender:
    """What is known of one user's requests in one conversation."""

    seen: SeenKeys
    from_ms: int  # before this log time, and
    until_ms: int  # from this on, keys may count that were stored before `seen` was loaded, and are not in it
    fates: dict[bytes, Fate] = field(default_factory=dict)  # decided here lately: the newest of each key


@dataclass(slots=True)
class Loaded:
    """One conversation in memory."""

    state: ConversationState
    senders: dict[str, Sender] = field(default_factory=dict)
    plain_seq: int = 0  # up to here the timeline is known to hold messages only
    counts: dict[int, int] = field(default_factory=dict)  # message_count by seq, above plain_seq
    events: dict[int, bytes] = field(default_factory=dict)  # what the present batch may have to publish again
    answers: dict[int, Fate] = field(default_factory=dict)  # what the tables say of the present batch's requests, by offset
    replaced: dict[tuple[str, bytes], list[Fate]] = field(default_factory=dict)  # earlier uses of keys that the batch used anew

    def known(self, item: Decodable) -> Known:
        """Return what `decide` may ask."""
        return Known(self.fate_of(item), self.count_at, self.events.__getitem__)

    def fate_of(self, item: Decodable) -> Fate | None:
        """Return what became of the item's request: the newest that counts at its log time. A key may have been used before and
        after: what is too old for one record of a batch, or too far ahead, is not for another.
        """
        sender = self.senders.get(item.record.user_id) if item.key else None
        if sender is None:
            return None
        newest, decided = self.answers.get(item.offset), sender.fates.get(item.key)
        if decided is not None:
            for fate in (decided, *self.replaced.get((item.record.user_id, item.key), ())):
                if counts(fate.log_ms, item.time_ms) and (newest is None or newest.position < fate.position):
                    newest = fate
        return newest

    def count_at(self, seq: int) -> int:
        """Return message_count at a seq that was loaded, or is of this batch."""
        return seq if seq <= self.plain_seq else self.counts[seq]

    def note_head(self) -> None:
        """Keep the count at the head, which later records move on."""
        state = self.state
        if state.message_count == state.head_seq:
            self.plain_seq = state.head_seq
        else:
            self.counts[state.head_seq] = state.message_count

    def note_event(self, seq: int, event: bytes) -> None:
        """Keep of a new event what later records of the batch may ask for: its count, and a group's creation itself."""
        self.note_head()
        if seq == 1:
            self.events[1] = event

    def asked_again(self, item: Decodable) -> bool:
        """Tell whether the record may need what its request caused before."""
        return bool(item.key) and self.fate_of(item) is not None

    def remember(self, user: str, item: Decodable, fate: Fate) -> None:
        """Take in what was decided."""
        sender = self.senders[user]
        if (before := sender.fates.pop(item.key, None)) is not None:
            self.replaced.setdefault((user, item.key), []).append(before)
        sender.fates[item.key] = fate
        sender.seen.add(item.key_hash)

    def settle(self) -> None:
        """Bound what is kept once a batch is written."""
        self.events.clear()
        self.answers.clear()
        self.replaced.clear()
        _trim(self.counts, _COUNTS_KEPT)
        for sender in self.senders.values():
            _trim(sender.fates, _FATES_KEPT)


def _trim(items: dict[Any, Any], keep: int) -> None:
    """Forget the oldest entries over `keep`."""
    for key in list(islice(items, max(0, len(items) - keep))):
        del items[key]
