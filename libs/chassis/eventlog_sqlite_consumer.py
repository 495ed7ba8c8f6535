"""A consumer of a log in SQLite: which partition is next, which are held, and from where each goes on."""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence

from chassis.eventlog import LogBatch, LogUnavailableError
from chassis.eventlog_sqlite_partition import LogPartition
from chassis.sqlite import StorageError


class SqliteConsumer:
    """See `chassis.eventlog.LogConsumer`; opened by `SqliteLog.open_consumer`. It has all partitions of the topic."""

    def __init__(
        self, topic: str, partitions: Sequence[LogPartition], positions: Sequence[int], advance: Callable[[int, int], None]
    ) -> None:
        self._topic = topic
        self._partitions = deque(partitions)  # turned as they are served, so that a busy one does not starve the others
        self._by_number = partitions
        self._positions = list(positions)
        self._advance = advance
        self._held: dict[int, LogBatch | None] = {}
        self._wake = asyncio.Event()

    def wake(self, number: int) -> None:
        """Look again: this partition may have something to poll. While a batch of it is held it has not, and its release wakes."""
        if self._held.get(number) is None:  # neither held nor, what is None too, being read
            self._wake.set()

    async def poll(self, max_records: int) -> LogBatch:
        while True:
            self._wake.clear()  # before looking: what arrives during a read from the disk must not be missed
            for _ in range(len(self._partitions)):
                partition = self._partitions[0]
                self._partitions.rotate(-1)
                if partition.number not in self._held and self._positions[partition.number] < partition.end:
                    batch = await self._read(partition, max_records)
                    if batch.records:
                        return batch
            await self._wake.wait()

    async def _read(self, partition: LogPartition, max_records: int) -> LogBatch:
        number = partition.number
        self._held[number] = None
        batch = LogBatch(number, ())
        try:
            batch = LogBatch(number, await partition.read(self._positions[number], max_records))
        except StorageError as error:
            raise LogUnavailableError(f"{self._topic}/{number}: {error}") from error
        finally:
            if batch.records:
                self._held[number] = batch
                self._positions[number] = batch.records[-1].offset + 1
            else:
                del self._held[number]
        return batch

    def done(self, batch: LogBatch) -> None:
        self._release(batch, batch.records[-1].offset + 1)
        self._advance(batch.partition, batch.records[-1].offset + 1)

    def retry(self, batch: LogBatch) -> None:
        self._release(batch, batch.records[0].offset)

    def _release(self, batch: LogBatch, position: int) -> None:
        number = batch.partition
        if self._held.get(number) is not batch:
            raise ValueError(f"{self._topic}/{number}: this batch is not held")
        del self._held[number]
        self._positions[number] = position
        if position < self._by_number[number].end:
            self._wake.set()
