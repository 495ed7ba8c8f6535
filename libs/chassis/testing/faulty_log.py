"""An EventLog as bad as the port allows: the real implementation behind a bad network, for one process."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager, suppress

from chassis.eventlog import EventLog, LogBatch, LogConsumer, LogEntry, LogRecord, LogUnavailableError
from chassis.testing.faults import (
    APPEND_FAILS,
    APPEND_LATE,
    COMMIT_LAGS,
    LATE_SECONDS_MAX,
    PARTITION_AWAY,
    PARTITION_AWAY_SECONDS_MAX,
    POLL_FAILS,
    PRODUCER_LOST,
    REJOIN,
    REWIND,
    Engine,
    FaultStream,
    Life,
)

_LOOK_AGAIN_SECONDS = 10.0  # a partition that is away is asked for that often: it may be back sooner than it was said to be
_RESOLUTION_SECONDS = 1e-6  # a loop runs timers a nanosecond early

GroupPartition = tuple[str, str, int]  # topic, group, partition


class LogEngine(Engine):
    """A log as its consumers' groups meet it: it remembers what was done but not committed, for all processes."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.committed: dict[GroupPartition, int] = {}  # the last offset that the group's offset has passed
        self._away_until: dict[tuple[str, int], float] = {}
        self.uncommitted: defaultdict[GroupPartition, dict[int, LogRecord]] = defaultdict(dict)

    def commit(self, where: GroupPartition, offset: int) -> None:
        """Let the group's offset pass `offset`; a zombie's late commit does not take it back."""
        self.committed[where] = max(offset, self.committed.get(where, -1))
        records = self.uncommitted[where]
        for done in [done for done in records if done <= offset]:
            del records[done]

    def forget(self) -> None:
        """Know of no commits: after a loss of power the log itself says what was committed."""
        self.committed.clear()
        self.uncommitted.clear()

    def partition_away_seconds(self, topic: str, partition: int, stream: FaultStream, step: str) -> float:
        """Return for how long a partition is away yet; it may go away with this question."""
        now, where = asyncio.get_running_loop().time(), (topic, partition)
        left = 0.0 if stream.healed else self._away_until.get(where, 0.0) - now
        if left <= 0.0 and stream.happens(PARTITION_AWAY, step):
            left = PARTITION_AWAY_SECONDS_MAX ** stream.rng.random()
            self.take_away(topic, partition, left)
        return max(left, 0.0)

    def take_away(self, topic: str, partition: int, seconds: float) -> None:
        """Let nothing be appended to a partition or polled from it for so long, at most until faults are healed."""
        self._away_until[topic, partition] = asyncio.get_running_loop().time() + seconds


class FaultyLog:
    """Passes on to an EventLog, with every fault that its contract leaves open.

    An append that fails leaves any prefix in the log, and may add the rest much later; one whose caller is cancelled goes on.
    Commits lag: after a crash, or a partition that is lost and regained, everything since the last commit comes again, cut into
    batches differently. What is kept: order within a partition, and the order of one caller's overlapping appends.
    """

    def __init__(self, inner: EventLog, engine: LogEngine, stream: FaultStream, life: Life) -> None:
        self._inner = inner
        self._engine = engine
        self._stream = stream
        self._life = life
        self._producer = 0  # counts the process's producers: what an earlier one had under way is unknown
        self._order: defaultdict[tuple[str, int], asyncio.Lock] = defaultdict(asyncio.Lock)

    @property
    def epoch(self) -> int:
        return self._inner.epoch

    async def partition_count(self, topic: str) -> int:
        return await self._inner.partition_count(topic)

    async def ping(self) -> None:
        if asyncio.get_running_loop().time() < self._engine.away_until:
            raise LogUnavailableError("the engine is away")
        await self._inner.ping()

    async def append(self, topic: str, partition: int, entries: Sequence[LogEntry]) -> None:
        await self._life.step(f"before append to {topic}")
        await self._engine.ask(self._append(topic, partition, list(entries)))
        await self._life.step(f"after append to {topic}")

    async def _append(self, topic: str, partition: int, entries: list[LogEntry]) -> None:
        stream, step = self._stream, f"append to {topic}"
        async with self._order[topic, partition]:  # asyncio's locks are fair: overlapping appends keep their order
            producer = self._producer
            if stream.happens(PRODUCER_LOST, step):
                self._producer += 1
            await stream.latency(step)
            if self._engine.is_away(stream, step) or self._engine.partition_away_seconds(topic, partition, stream, step):
                raise LogUnavailableError("the engine is away")
            if not stream.happens(APPEND_FAILS, step) and producer == self._producer:
                await self._inner.append(topic, partition, entries)
                stream.note(f"appended {len(entries)} to {topic}")
                await stream.latency()
                if producer != self._producer:
                    raise LogUnavailableError("all of it is in the log, but who knows")
                return
            taken = stream.rng.randint(0, len(entries))
            if taken:
                await self._inner.append(topic, partition, entries[:taken])
            rest = entries[taken:]
            if rest and stream.happens(APPEND_LATE, step):
                self._engine.spawn(self._append_late(topic, partition, rest[: stream.rng.randint(1, len(rest))]))
            raise LogUnavailableError("some of it may be in the log")

    async def _append_late(self, topic: str, partition: int, entries: list[LogEntry]) -> None:
        await asyncio.sleep(self._stream.rng.uniform(0.0, LATE_SECONDS_MAX))
        with suppress(LogUnavailableError):  # lost with the power of the machine that it was on its way to
            await self._inner.append(topic, partition, entries)
            self._stream.note(f"appended {len(entries)} to {topic} late")

    def records(self, topic: str, partition: int) -> AsyncIterator[LogRecord]:
        return self._inner.records(topic, partition)

    @asynccontextmanager
    async def open_consumer(self, topic: str, group: str) -> AsyncIterator[LogConsumer]:
        async with self._inner.open_consumer(topic, group) as inner:
            partitions = range(await self._inner.partition_count(topic))
            consumer = FaultyConsumer(inner, topic, group, partitions, self._engine, self._stream, self._life)
            consumer.rewind(partitions)
            try:
                yield consumer
            finally:
                await consumer.close()


class FaultyConsumer:
    """A group's member that now and then loses its partitions and regains them: it goes on after the last commit, be that behind
    what it has done or, where another member went ahead, beyond what it has seen.
    """

    def __init__(
        self,
        inner: LogConsumer,
        topic: str,
        group: str,
        partitions: Sequence[int],
        engine: LogEngine,
        stream: FaultStream,
        life: Life,
    ) -> None:
        self._inner = inner
        self._partitions = partitions
        self._topic = topic
        self._group = group
        self._engine = engine
        self._stream = stream
        self._life = life
        self._polling: asyncio.Future[LogBatch] | None = None
        self._released = asyncio.Event()
        self._held: dict[int, LogBatch | None] = {}  # partition -> the inner consumer's batch, if it is one
        self._next: dict[int, int] = {}  # partition -> the offset after the last that was handed out
        self._first: dict[int, int] = {}  # partition -> what the inner consumer has below this offset is passed over
        self._again: dict[int, list[LogRecord]] = {}  # to hand out before what the inner consumer has
        self._waiting: dict[int, LogBatch] = {}  # polled from the inner consumer, to hand out when its partition is free

    def rewind(self, partitions: Iterable[int]) -> None:
        """Go on after the committed offset."""
        for partition in partitions:
            where = self._topic, self._group, partition
            records = self._engine.uncommitted[where]
            self._again[partition] = [records[offset] for offset in sorted(records)]
            self._first[partition] = self._next[partition] = self._engine.committed.get(where, -1) + 1

    async def poll(self, max_records: int) -> LogBatch:
        stream, step = self._stream, f"poll of {self._topic}"
        await self._life.step(f"before {step}")
        await stream.latency(step)
        if self._engine.is_away(stream, step) or stream.happens(POLL_FAILS, step):
            raise LogUnavailableError("the poll failed")
        size = stream.rng.randint(1, max_records) if stream.rng.random() < 0.5 else max_records
        self._rebalance()
        while (batch := self._take(size)) is None:
            await self._fill(size)
            self._rebalance()
        self._next[batch.partition] = batch.records[-1].offset + 1
        stream.note(f"polled {self._topic}/{batch.partition} {[record.offset for record in batch.records]}")
        try:
            await self._life.step(f"after {step}")
        except asyncio.CancelledError:
            if self._life.alive:
                self.retry(batch)  # cancelling a poll consumes nothing
            raise
        return batch

    def _rebalance(self) -> None:
        """Lose free partitions and regain them, now and then."""
        step = f"poll of {self._topic}"
        free = [partition for partition in self._partitions if partition not in self._held]
        if free and self._stream.happens(REWIND, step):
            self.rewind(free)
        elif (passed := [partition for partition in free if self._is_behind(partition)]) and self._stream.happens(REJOIN, step):
            self.rewind(passed)

    def _is_behind(self, partition: int) -> bool:
        return self._engine.committed.get((self._topic, self._group, partition), -1) >= self._next.get(partition, 0)

    def _take(self, size: int) -> LogBatch | None:
        away = {partition for partition in self._partitions if self._is_away(partition)}
        for partition, records in self._again.items():
            if records and partition not in self._held and partition not in away:
                self._again[partition] = records[size:]
                self._held[partition] = None
                return LogBatch(partition, records[:size])
        for partition, batch in list(self._waiting.items()):
            if partition not in self._held and partition not in away:
                del self._waiting[partition]
                if new := [record for record in batch.records if record.offset >= self._first.get(partition, 0)]:
                    self._held[partition] = batch
                    return LogBatch(partition, new)
                self._inner.done(batch)
        return None

    def _is_away(self, partition: int) -> bool:
        """Tell whether a partition is away; if so, look again when it is back."""
        seconds = self._engine.partition_away_seconds(self._topic, partition, self._stream, f"poll of {self._topic}")
        if seconds:
            # Not sooner than the loop can tell moments apart: it would look again at this very one, for ever.
            delay = min(max(seconds, _RESOLUTION_SECONDS), _LOOK_AGAIN_SECONDS)
            asyncio.get_running_loop().call_later(delay, self._released.set)
        return bool(seconds)

    async def _fill(self, size: int) -> None:
        """Wait for a batch of the inner consumer, or for a partition to be released."""
        self._released.clear()
        if self._polling is None:
            self._polling = asyncio.ensure_future(self._inner.poll(size))
        released = asyncio.ensure_future(self._released.wait())
        try:
            await asyncio.wait((self._polling, released), return_when=asyncio.FIRST_COMPLETED)
        finally:
            released.cancel()
        if self._polling.done():
            polling, self._polling = self._polling, None
            batch = polling.result()
            self._waiting[batch.partition] = batch

    def done(self, batch: LogBatch) -> None:
        self._life.require_alive()
        where = self._topic, self._group, batch.partition
        self._engine.uncommitted[where].update({record.offset: record for record in batch.records})
        if not self._stream.happens(COMMIT_LAGS, f"commit of {self._topic}"):
            self._engine.commit(where, batch.records[-1].offset)
        if (inner := self._held.pop(batch.partition)) is not None:
            self._inner.done(inner)
        self._released.set()

    def retry(self, batch: LogBatch) -> None:
        self._life.require_alive()
        if (inner := self._held.pop(batch.partition)) is not None:
            self._inner.retry(inner)
        else:
            self._again[batch.partition] = [*batch.records, *self._again[batch.partition]]
        self._released.set()

    async def close(self) -> None:
        """Leave: commits what is done, unless the process died."""
        if self._polling is not None:
            self._polling.cancel()
            await asyncio.gather(self._polling, return_exceptions=True)  # nobody will take the batch, or the error
        if self._life.alive:
            for where, records in self._engine.uncommitted.items():
                if where[:2] == (self._topic, self._group) and records:
                    self._engine.commit(where, max(records))
