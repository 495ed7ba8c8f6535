"""A member of a consumer group on Kafka: drains what is fetched into bounded buffers, and begins anew when it stalls.

aiokafka fetches from a broker again only when all that it has of it is taken, so a partition whose batch takes long would hold
back all others: everything is taken at once, and a partition with enough of it is paused. Rebalancing is eager: all partitions are
taken away and given out anew whenever a member comes or goes. A consumer that gets nothing though there is something (aiokafka
#1154, #703), or whose group or cluster is lost to it, is thrown away and made again.
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Sequence
from contextlib import suppress
from typing import Any, Final

import structlog
from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, TopicPartition
from aiokafka.errors import IllegalStateError, KafkaError, NoOffsetForPartitionError, OffsetOutOfRangeError

from chassis.backoff import Backoff
from chassis.eventlog import LogBatch, LogRecord, LogUnavailableError
from chassis.eventlog_kafka_connection import KAFKA_ERRORS, REQUEST_SECONDS, KafkaConnection, describe
from chassis.eventlog_kafka_metrics import KafkaMetrics
from chassis.eventlog_kafka_partition import ConsumedPartition

SESSION_SECONDS: Final = 6.0  # a killed member's partitions are given to others after it; the least that brokers allow by default
HEARTBEAT_SECONDS: Final = 1.5  # also how soon members notice that another one came
COMMIT_INTERVAL_SECONDS: Final = 0.2  # what a crash delivers again, against one request each time
STALL_SECONDS: Final = 30.0  # without a record though there are some: no rebalance or election takes that long
WATCH_SECONDS: Final = 5.0  # costs a small request each time
_BUFFER_BYTES: Final = 4 * 1024 * 1024  # a partition that has that much waiting is paused ...
_BUFFER_RECORDS: Final = 4_096  # ... or that many, in flight not counted
_FETCH_BYTES: Final = 16 * 1024 * 1024
_POLL_MS: Final = 1_000  # the wait for records ends at once when some come
# While records come, the broker holds a fetch for that long or until there are so many bytes: what would come one by one comes
# together, from all partitions at once, and every stage behind works in batches. After a while without, the next comes at once.
_GATHER_MS: Final = 5
_GATHER_BYTES: Final = 64 * 1024
_GATHER_POLL_MS: Final = 25  # nothing for so long: nothing to gather
_EAGER_MS: Final = 500
_CLOSE_SECONDS: Final = 5.0
_START_SECONDS: Final = 10.0
_MIN_BACKOFF_SECONDS: Final = 0.1
_MAX_BACKOFF_SECONDS: Final = 5.0  # a cluster that is back is found within that
_RESTART: Final = 0  # the one thing that the backoff counts

_log = structlog.get_logger()


class KafkaConsumer(ConsumerRebalanceListener):  # type: ignore[misc]  # aiokafka has no types
    """See `chassis.eventlog.LogConsumer`; opened by `KafkaLog.open_consumer`, which runs `run`."""

    def __init__(
        self,
        connection: KafkaConnection,
        topic: str,
        group: str,
        partition_count: int,
        *,
        rng: random.Random,
        metrics: KafkaMetrics,
        heartbeat_seconds: float = HEARTBEAT_SECONDS,
        stall_seconds: float = STALL_SECONDS,
        watch_seconds: float = WATCH_SECONDS,
    ) -> None:
        self._connection = connection
        self._topic = topic
        self._group = group
        self._metrics = metrics
        self._heartbeat_seconds = heartbeat_seconds
        self._stall_seconds = stall_seconds
        self._watch_seconds = watch_seconds
        self._partitions = [ConsumedPartition(number) for number in range(partition_count)]
        self._next = 0  # whose turn it is, so that a busy partition does not starve the others
        self._backoff = Backoff(_MIN_BACKOFF_SECONDS, _MAX_BACKOFF_SECONDS, rng)
        self._consumer: AIOKafkaConsumer | None = None
        self._paused: set[int] = set()
        self._wake = asyncio.Event()
        self._dirtied = asyncio.Event()
        self._trouble: LogUnavailableError | None = None
        self._progress = [0.0] * partition_count  # monotonic: when each last gave records, or had none to give

    # What callers do.

    async def poll(self, max_records: int) -> LogBatch:
        while True:
            self._wake.clear()
            for turn in range(len(self._partitions)):
                partition = self._partitions[(self._next + turn) % len(self._partitions)]
                if partition.ready:
                    self._next = partition.number + 1
                    batch = partition.take(max_records)
                    self._resume(partition)
                    return batch
            if self._trouble is not None:
                trouble, self._trouble = self._trouble, None
                raise trouble
            await self._wake.wait()

    def done(self, batch: LogBatch) -> None:
        partition = self._partitions[batch.partition]
        partition.done(batch)
        self._wake.set()
        if partition.dirty:
            self._dirtied.set()

    def retry(self, batch: LogBatch) -> None:
        self._partitions[batch.partition].retry(batch)
        self._wake.set()

    # What the group does.

    def on_partitions_assigned(self, assigned: Sequence[TopicPartition]) -> None:
        """Called by aiokafka when it has joined."""
        for partition in assigned:
            self._partitions[partition.partition].assign()
            self._progress[partition.partition] = time.monotonic()

    async def on_partitions_revoked(self, revoked: Sequence[TopicPartition]) -> None:
        """Called by aiokafka before it joins anew: all that is done is committed, for whoever gets them."""
        await self._commit()
        for partition in revoked:
            self._partitions[partition.partition].revoke()
            self._paused.discard(partition.partition)

    # What goes on meanwhile.

    async def run(self) -> None:
        """Consume until cancelled, with one consumer after the other."""
        while True:
            began = time.monotonic()
            try:
                why = await self._live_once()
            except KAFKA_ERRORS as error:
                why = describe(error)
            except Exception as error:  # ours or aiokafka's: told, and no reason for this process to never consume again
                _log.error("kafka.consumer_failed", topic=self._topic, group=self._group, exc_info=error)
                why = repr(error)
            self._metrics.consumer_rebuilds.inc()
            if time.monotonic() - began > self._stall_seconds:
                self._backoff.succeeded(_RESTART)
            delay = self._backoff.failed(_RESTART)
            _log.warning("kafka.consumer_rebuilt", topic=self._topic, group=self._group, why=why, retry_in=delay)
            self._report(why)
            await asyncio.sleep(delay)

    async def _live_once(self) -> str:
        """Consume until something is wrong with this consumer; return what, or raise it."""
        consumer = self._make()
        steps: list[asyncio.Task[str]] = []
        try:
            async with asyncio.timeout(_START_SECONDS):
                await consumer.start()
            self._consumer = consumer
            steps += [asyncio.create_task(step(consumer)) for step in (self._pump, self._watch, self._run_commits)]
            done, _ = await asyncio.wait(steps, return_when=asyncio.FIRST_COMPLETED)
            return done.pop().result()
        finally:
            for step in steps:
                step.cancel()
            if steps:
                await asyncio.wait(steps)
            await self._close(consumer)

    async def _pump(self, consumer: AIOKafkaConsumer) -> str:
        poll_ms = _POLL_MS
        while True:
            try:
                fetched = await consumer.getmany(timeout_ms=poll_ms)
            except NoOffsetForPartitionError as error:  # a new group begins at the oldest record
                (partition,) = error.args
                await consumer.seek_to_beginning(partition)
                continue
            except OffsetOutOfRangeError as error:
                await self._out_of_range(consumer, error.args[0])
                continue
            except KAFKA_ERRORS as error:
                return describe(error)
            poll_ms = _GATHER_POLL_MS if fetched else _POLL_MS
            _gather(consumer, bool(fetched))
            for partition, records in fetched.items():
                self._take_in(self._partitions[partition.partition], records)
            if fetched:
                self._trouble = None  # what was wrong is over
                self._wake.set()

    def _take_in(self, partition: ConsumedPartition, records: Sequence[Any]) -> None:
        if not partition.owned:  # taken away while it was fetched
            return
        partition.add(LogRecord(record.offset, record.timestamp, record.key or b"", record.value or b"") for record in records)
        self._progress[partition.number] = time.monotonic()
        if partition.buffered_bytes >= _BUFFER_BYTES or partition.buffered >= _BUFFER_RECORDS:
            self._pause(partition)

    async def _out_of_range(self, consumer: AIOKafkaConsumer, offsets: dict[TopicPartition, int]) -> None:
        for partition, offset in offsets.items():
            beginning = (await consumer.beginning_offsets([partition]))[partition]
            if offset > beginning:  # it ends before what is done: another log under the same name, its records would be left out
                raise KafkaError(
                    f"{self._topic}/{partition.partition} ends before {offset}, where {self._group} goes on: it lost records"
                )
            lost = beginning - offset
            _log.error(
                "kafka.records_lost_to_retention", topic=self._topic, partition=partition.partition, group=self._group, lost=lost
            )
            self._metrics.lost_records.inc(lost)
            await consumer.seek_to_beginning(partition)

    async def _watch(self, consumer: AIOKafkaConsumer) -> str:
        """Look now and then whether what is there also comes; return when it does not for long."""
        unassigned_since: float | None = None
        while True:
            await asyncio.sleep(self._watch_seconds)
            now = time.monotonic()
            owned = [partition for partition in self._partitions if partition.owned]
            try:
                async with asyncio.timeout(REQUEST_SECONDS):
                    await self._note_progress(consumer, owned, now)
            except KAFKA_ERRORS as error:
                if max(self._progress) < now:  # nor did records come meanwhile
                    self._report(f"no sign of life: {describe(error)}")
            else:
                self._trouble = None if owned else self._trouble
            stalled = [partition.number for partition in owned if now - self._progress[partition.number] > self._stall_seconds]
            if stalled:
                return f"partitions {stalled} have given nothing for {self._stall_seconds:g} s"
            unassigned_since = None if owned or _has_joined(consumer) else unassigned_since or now
            if unassigned_since is not None and now - unassigned_since > self._stall_seconds:
                return f"not in the group {self._group} for {self._stall_seconds:g} s"

    async def _note_progress(self, consumer: AIOKafkaConsumer, owned: Sequence[ConsumedPartition], now: float) -> None:
        """Count as progress that there is nothing to get."""
        ends = await consumer.end_offsets([TopicPartition(self._topic, partition.number) for partition in owned])
        for partition in owned:
            whole = TopicPartition(self._topic, partition.number)
            if partition.buffered or await consumer.position(whole) >= ends[whole]:
                self._progress[partition.number] = now

    async def _run_commits(self, _consumer: AIOKafkaConsumer) -> str:
        while True:
            await self._dirtied.wait()
            await asyncio.sleep(COMMIT_INTERVAL_SECONDS)
            await self._commit()

    async def _commit(self) -> None:
        """Commit what is done. What fails costs a second delivery, and is tried again with the next one."""
        self._dirtied.clear()
        dirty = [partition for partition in self._partitions if partition.owned and partition.dirty]
        if not dirty or self._consumer is None:
            return
        offsets = {TopicPartition(self._topic, partition.number): partition.committable for partition in dirty}
        for partition in dirty:
            partition.dirty = False
        try:
            async with asyncio.timeout(REQUEST_SECONDS):
                await self._consumer.commit(offsets)
        except KAFKA_ERRORS as error:
            _log.warning("kafka.offsets_not_committed", topic=self._topic, group=self._group, error=describe(error))
            self._metrics.commit_failures.inc()
            for partition in dirty:
                partition.dirty = partition.owned
            if any(partition.dirty for partition in dirty):
                self._dirtied.set()

    async def _close(self, consumer: AIOKafkaConsumer) -> None:
        """Commit, leave the group and let go of everything."""
        await self._commit()
        self._consumer = None
        for partition in self._partitions:
            partition.revoke()
        self._paused.clear()
        await abandon_consumer(consumer)

    def _report(self, why: str) -> None:
        self._trouble = LogUnavailableError(f"{self._topic}: {why}")
        self._wake.set()

    def _pause(self, partition: ConsumedPartition) -> None:
        if partition.number not in self._paused and self._consumer is not None:
            with suppress(IllegalStateError):  # taken away a moment ago
                self._consumer.pause(TopicPartition(self._topic, partition.number))
                self._paused.add(partition.number)

    def _resume(self, partition: ConsumedPartition) -> None:
        half = partition.buffered_bytes < _BUFFER_BYTES // 2 and partition.buffered < _BUFFER_RECORDS // 2
        if half and partition.number in self._paused and self._consumer is not None:
            self._paused.discard(partition.number)
            with suppress(IllegalStateError):
                self._consumer.resume(TopicPartition(self._topic, partition.number))

    def _make(self) -> AIOKafkaConsumer:
        consumer = AIOKafkaConsumer(
            **self._connection.client_options(),
            group_id=self._group,
            auto_offset_reset="none",  # where to begin is decided here: silently skipping what is gone is not for everybody
            enable_auto_commit=False,
            session_timeout_ms=int(SESSION_SECONDS * 1_000),
            heartbeat_interval_ms=int(self._heartbeat_seconds * 1_000),
            fetch_max_bytes=_FETCH_BYTES,
            fetch_max_wait_ms=_EAGER_MS,
            max_poll_records=None,
        )
        consumer.subscribe([self._topic], listener=self)
        return consumer


def _gather(consumer: AIOKafkaConsumer, much: bool) -> None:
    """Let the fetches from the next one on wait for company, or not. These are aiokafka's own, of the version in the lock."""
    fetcher = consumer._fetcher
    fetcher._fetch_max_wait_ms = _GATHER_MS if much else _EAGER_MS
    fetcher._fetch_min_bytes = _GATHER_BYTES if much else 1


def _has_joined(consumer: AIOKafkaConsumer) -> bool:
    """Tell whether the group has said which partitions are ours, be it none: there may be more members than partitions."""
    subscription = consumer._subscription.subscription
    return subscription is not None and subscription.assignment is not None


async def abandon_consumer(consumer: AIOKafkaConsumer) -> None:
    """Stop a consumer; one that does not stop loses its tasks. These are aiokafka's own, of the version in the lock.

    What fails on the way goes no further: raised in place of a cancellation, it would let whoever was told to end go on.
    """
    if await _succeeds(consumer.stop()):
        return
    coordinator, fetcher, client = consumer._coordinator, consumer._fetcher, consumer._client
    tasks: list[asyncio.Task[Any] | None] = [client._sync_task]
    if coordinator is not None:
        tasks += [getattr(coordinator, name, None) for name in ("_coordination_task", "_heartbeat_task", "_commit_refresh_task")]
    if fetcher is not None:
        tasks += [fetcher._fetch_task, *fetcher._pending_tasks]
    left = [task for task in tasks if task is not None and not task.done()]
    for task in left:
        task.cancel()
    if left:
        await asyncio.wait(left, timeout=_CLOSE_SECONDS)
    await _succeeds(client.close())


async def _succeeds(closing: Awaitable[None]) -> bool:
    try:
        async with asyncio.timeout(_CLOSE_SECONDS):
            await closing
    except KAFKA_ERRORS:
        return False
    except Exception as error:  # aiokafka's mistake, not the engine's
        _log.warning("kafka.consumer_not_closed", exc_info=error)
        return False
    return True
