"""What a batch's decisions add up to: rows of both phases, and what to publish. Pure."""

from collections.abc import Sequence

from chassis.eventlog import LogEntry
from chassis.timeline import Row
from parley.log.v1.records_pb2 import CommandRecord
from services.store import encoding, rows
from services.store.decide import Effect
from services.store.loaded import Decodable, Loaded


class Work:
    """What a batch's decisions add up to."""

    def __init__(self, bucket_bits: int) -> None:
        self._bucket_bits = bucket_bits
        self._events: list[Row] = []
        self._fates: dict[tuple[str, bytes], Row] = {}  # a row stands once: a key may be decided anew when its time is over
        self.touched: dict[str, Loaded] = {}
        self.events: list[tuple[str, int, bytes]] = []
        self.records: list[bytes] = []  # encoded elements of EventBatch.events
        self.accepted = self.rejected = self.acked = self.answered_again = 0

    def add(self, loaded: Loaded, item: Decodable, effect: Effect) -> None:
        record = item.record
        conversation_id = record.conversation_id
        self.touched[conversation_id] = loaded
        if effect.event:
            self.accepted += 1
            self._events.append(rows.event_row(conversation_id, effect.seq, effect.event, effect.stamp, self._bucket_bits))
            self.events.append((conversation_id, effect.seq, effect.event))
            loaded.note_event(effect.seq, effect.event)
        elif effect.fate is not None:
            self.rejected += 1
        elif effect.actor:
            self.acked += 1
        else:
            self.answered_again += 1
        if effect.fate is not None:
            row = rows.fate_row(conversation_id, record.user_id, item.key, effect.fate, effect.stamp)
            self._fates[row.partition, item.key] = row
            loaded.remember(record.user_id, item, effect.fate)
        self.records.append(event_record(record, effect))

    def rows(self) -> tuple[list[Row], list[Row]]:
        """Return the rows of both phases."""
        first, second = [*self._events, *self._fates.values()], []
        for loaded in self.touched.values():
            state = loaded.state
            if state.dirty:
                first.extend(rows.inbox_rows(state))
                second.extend(rows.state_rows(state))
                rows.clear_dirty(state)
        return first, second


def event_record(record: CommandRecord, effect: Effect) -> bytes:
    return encoding.event_record(
        record.conversation_id,
        effect.seq,
        record.user_id,
        record.device_id,
        record.gateway_id,
        record.session_id,
        effect.shared,
        effect.own,
        effect.actor,
        effect.recipients,
        all_members=effect.all_members,
        membership_changes=effect.membership_changes,
        wakes=effect.wakes,
    )


def event_batches(records: Sequence[bytes], max_bytes: int) -> list[LogEntry]:
    """Pack encoded elements of EventBatch.events into as few log entries as their size allows."""
    entries: list[LogEntry] = []
    first = size = 0
    for index, record in enumerate(records):
        if size and size + len(record) > max_bytes:
            entries.append(LogEntry(b"", b"".join(records[first:index])))
            first, size = index, 0
        size += len(record)
    entries.append(LogEntry(b"", b"".join(records[first:])))
    return entries
