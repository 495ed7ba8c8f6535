"""What one member of a consumer group knows of a partition: what came and was not handed out, what is held, what is done.

Pure bookkeeping. A partition may be taken away and come back at any time, also while a batch of it is being worked on: the batch
still holds it then, so that no two batches of a partition overlap here, and what is done of it need not be done again.
"""

from collections import deque
from collections.abc import Iterable

from chassis.eventlog import LogBatch, LogRecord


class ConsumedPartition:
    """One partition, in and out of our hands."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.owned = False
        self.dirty = False  # something is done that is not committed
        self.buffered_bytes = 0
        self._records: deque[LogRecord] = deque()
        self._held: LogBatch | None = None
        self._held_since = 0  # the tenure in which the held batch was handed out
        self._tenure = 0  # counts how often the partition came to us
        self._floor = 0  # everything below is done here

    @property
    def ready(self) -> bool:
        """Tell whether there is something to hand out."""
        return self._held is None and bool(self._records)

    @property
    def buffered(self) -> int:
        """How many records wait to be handed out."""
        return len(self._records)

    @property
    def committable(self) -> int:
        """The offset that the group's may pass to: everything below is done."""
        return self._floor

    def assign(self) -> None:
        """Take note that it is ours from now on: its records come again from the group's committed offset."""
        self.revoke()
        self.owned = True
        self._tenure += 1

    def revoke(self) -> None:
        """Take note that it is not ours any more. What was not handed out is somebody else's; a batch that is held stays held."""
        self.owned = False
        self.dirty = False
        self._clear()

    def add(self, records: Iterable[LogRecord]) -> None:
        """Take what was fetched, in order. What is done already (before it came back to us) is left out."""
        for record in records:
            if record.offset >= self._floor:
                self._records.append(record)
                self.buffered_bytes += len(record.key) + len(record.value)

    def take(self, max_records: int) -> LogBatch:
        """Hand out the next batch, which holds the partition."""
        assert self.ready
        records = [self._records.popleft() for _ in range(min(max_records, len(self._records)))]
        self.buffered_bytes -= _bytes(records)
        self._held, self._held_since = LogBatch(self.number, records), self._tenure
        return self._held

    def done(self, batch: LogBatch) -> None:
        """Release it, and let the offset pass the batch. ValueError: it is not held."""
        self._release(batch)
        self._floor = max(self._floor, batch.records[-1].offset + 1)
        self.dirty = self.owned
        while self._records and self._records[0].offset < self._floor:  # it came back to us meanwhile, and these with it
            self.buffered_bytes -= _bytes([self._records.popleft()])

    def retry(self, batch: LogBatch) -> None:
        """Release it; its records are handed out again. ValueError: it is not held."""
        self._release(batch)
        if self.owned and self._held_since == self._tenure:  # else they come again anyhow, to whoever has it
            self._records.extendleft(reversed(batch.records))
            self.buffered_bytes += _bytes(batch.records)

    def _release(self, batch: LogBatch) -> None:
        if self._held is not batch:
            raise ValueError(f"partition {batch.partition}: this batch is not held")
        self._held = None

    def _clear(self) -> None:
        self._records.clear()
        self.buffered_bytes = 0


def _bytes(records: Iterable[LogRecord]) -> int:
    return sum(len(record.key) + len(record.value) for record in records)
