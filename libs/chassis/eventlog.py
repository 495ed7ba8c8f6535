"""The EventLog port: partitioned, ordered, durable topics with consumer groups, as Kafka offers them.

Implementations: `eventlog_sqlite` (embedded) and `eventlog_kafka`. tests/contracts/test_eventlog.py runs against each.
"""

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from typing import NamedTuple, Protocol


class LogEntry(NamedTuple):
    """What a producer hands over."""

    key: bytes
    value: bytes


class LogRecord(NamedTuple):
    """What a consumer gets."""

    offset: int
    time_ms: int  # the log's time at append, wall milliseconds; may jump back and forward between records
    key: bytes
    value: bytes


class LogBatch(NamedTuple):
    """Records of one partition, offsets ascending (not necessarily consecutive)."""

    partition: int
    records: Sequence[LogRecord]


class LogUnavailableError(Exception):
    """The log did not take or give records. After `append`: any prefix of the records may be in the log, or come yet."""


class LogSetupError(Exception):
    """The log is there and can't be used as configured, which does not get better by waiting."""


class RecordTooLargeError(ValueError):
    """A record is larger than the log takes. Nothing of the append is in the log, and appending it again is of no use."""


class LogConsumer(Protocol):
    """One member of a consumer group.

    A polled batch holds its partition: it is handed out again only after `done` or `retry`, so batches of one partition never
    overlap within a consumer, while partitions proceed independently. `done` and `retry` take the very batch that was polled
    (ValueError: it is not held). Nothing promises that no other consumer works on the same partition at the same time (a zombie,
    a rebalance): effects must be idempotent.
    """

    async def poll(self, max_records: int) -> LogBatch:
        """Wait for the next batch of a partition that is not held. Starts at the group's committed offset, else at the oldest
        record. One call at a time. Cancelling is safe: nothing is consumed. Raises LogUnavailableError: the log can't be read.
        """

    def done(self, batch: LogBatch) -> None:
        """Release the partition and let the group's offset pass the batch.

        Call it after the effects are durable. The commit itself is coalesced by the implementation (within
        `commit_interval_seconds`, and when the consumer closes); until then a crash delivers the records again.
        """

    def retry(self, batch: LogBatch) -> None:
        """Release the partition without progress: the next poll of it starts at this batch's first offset again."""


class EventLog(Protocol):
    """Ordered per partition; at least once per group; positions never reused within an epoch."""

    @property
    def epoch(self) -> int:
        """Which log this is: offsets of another epoch mean nothing here."""

    async def partition_count(self, topic: str) -> int:
        """Return the topic's number of partitions, fixed for the epoch: a log that has another number of them than is declared
        when it is opened refuses to open (LogSetupError). ValueError: the topic was not declared.
        """

    async def ping(self) -> None:
        """Return when the log has given a sign of life. Raises LogUnavailableError: reading or appending would fail now."""

    async def append(self, topic: str, partition: int, entries: Sequence[LogEntry]) -> None:
        """Append in order; on return all of it is durable as the topic promises (`parley.commands`: survives power loss) and
        visible to consumers. Calls for one partition that overlap are appended in the order they were made.

        Raises LogUnavailableError: unknown, any prefix may be there or may still come. A caller that keeps order appends the
        unresolved entries again before later ones, which may duplicate them. Cancelling does not undo. RecordTooLargeError.
        """

    def records(self, topic: str, partition: int) -> AsyncIterator[LogRecord]:
        """Read what lies in a partition now, oldest first, as no member of any group: for those who look into a log. Raises
        LogUnavailableError.
        """

    def open_consumer(self, topic: str, group: str) -> AbstractAsyncContextManager[LogConsumer]:
        """Join a group; leaving commits what is done.

        What has been done when a commit fails is delivered again after a restart. The embedded log keeps what a group has not done
        for as long as it takes, from the group's first consumer on; Kafka for its topics' retention, beyond it a loss is logged.
        """


def partition_for(key: bytes, partition_count: int) -> int:
    """Map a key to a partition: the same on every producer, for good.

    FNV-1a, 32 bits: needs no library, spreads short ASCII ids well. It need not be Kafka's default: producers name the partition.
    """
    value = 0x811C9DC5
    for byte in key:
        value = ((value ^ byte) * 0x01000193) & 0xFFFFFFFF
    return value % partition_count
