"""Appending to Kafka: one batch in flight a partition, and a producer that is thrown away as soon as it has failed.

aiokafka's idempotent producer can wedge: with the broker away its batches never expire, and after a batch failed for good the
sequence numbers skip and every later one fails (aiokafka #1017). So whatever fails or hangs ends that producer; its entries are
unknown to those who appended them, and a new producer begins with a new identity.
"""

import asyncio
import random
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

import structlog
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError

from chassis.backoff import Backoff
from chassis.eventlog import LogEntry, LogUnavailableError
from chassis.eventlog_kafka_connection import KAFKA_ERRORS, KafkaConnection, describe
from chassis.eventlog_kafka_metrics import KafkaMetrics
from chassis.tasks import Tasks, open_tasks

APPEND_SECONDS: Final = 15.0  # an engine that restarts within it costs waiting, no failure
CONNECT_SECONDS: Final = 5.0  # how long an append waits for a producer that is being rebuilt
_BATCH_BYTES: Final = 256 * 1024  # a request's share of one partition; a larger record goes alone
_START_SECONDS: Final = 10.0
_ABANDON_SECONDS: Final = 0.5  # its connections are closed: most of what is left is a matter of turns, not of the network
_ABANDON_TRIES: Final = 10  # a request to each broker may be under way
_MIN_BACKOFF_SECONDS: Final = 0.1
_MAX_BACKOFF_SECONDS: Final = 2.0  # an engine that is back is found within that
_RESTART: Final = 0  # the one thing that the backoff counts

_log = structlog.get_logger()


class RebuiltProducer:
    """The present producer, and the next one when it has failed; opened by `open_producer`."""

    def __init__(self, connection: KafkaConnection, tasks: Tasks, rng: random.Random, metrics: KafkaMetrics) -> None:
        self._connection = connection
        self._tasks = tasks
        self._metrics = metrics
        self._backoff = Backoff(_MIN_BACKOFF_SECONDS, _MAX_BACKOFF_SECONDS, rng)
        self._current: AIOKafkaProducer | None = None
        self._there = asyncio.Event()
        self._renewing: asyncio.Task[None] | None = None
        self._abandoning: set[asyncio.Task[None]] = set()
        self.problem = "not connected yet"

    async def start(self) -> None:
        """Make the first one. Raises what the client raises."""
        self._current = await self._make()
        self.problem = ""
        self._there.set()

    async def get(self) -> AIOKafkaProducer:
        """Wait for one that has not failed."""
        while self._current is None:
            await self._there.wait()
        return self._current

    def failed(self, producer: AIOKafkaProducer, why: str) -> None:
        """Throw this one away, and make another. Whoever waits for an answer of it gets an error."""
        if producer is not self._current:
            return  # somebody else was here first
        self._current = None
        self._there.clear()
        self.problem = why
        self._metrics.producer_rebuilds.inc()
        _log.warning("kafka.producer_rebuilt", why=why)
        abandoning = self._tasks.spawn(abandon_producer(producer), name="abandon producer")
        self._abandoning.add(abandoning)
        abandoning.add_done_callback(self._abandoning.discard)
        self._renewing = self._tasks.spawn(self._renew(), name="renew producer")

    async def close(self) -> None:
        """Let go of it: nobody appends any more."""
        if self._renewing is not None:
            self._renewing.cancel()
            await asyncio.wait([self._renewing])
        if self._abandoning:  # which takes seconds at most
            await asyncio.wait(self._abandoning)
        if self._current is not None:
            await abandon_producer(self._current)

    async def _renew(self) -> None:
        while True:
            try:
                await self.start()
            except KAFKA_ERRORS as error:
                self.problem = describe(error)
                await asyncio.sleep(self._backoff.failed(_RESTART))
            else:
                self._backoff.succeeded(_RESTART)
                return

    async def _make(self) -> AIOKafkaProducer:
        producer = AIOKafkaProducer(
            **self._connection.client_options(), acks="all", enable_idempotence=True, linger_ms=0, max_batch_size=_BATCH_BYTES
        )
        try:
            async with asyncio.timeout(_START_SECONDS):
                await producer.start()
        except BaseException:
            await abandon_producer(producer)
            raise
        return producer


@asynccontextmanager
async def open_producer(connection: KafkaConnection, rng: random.Random, metrics: KafkaMetrics) -> AsyncIterator[RebuiltProducer]:
    """Own a producer, which is to be started."""
    async with open_tasks("kafka producer") as tasks:
        producer = RebuiltProducer(connection, tasks, rng, metrics)
        try:
            yield producer
        finally:
            await producer.close()


async def abandon_producer(producer: AIOKafkaProducer) -> None:
    """End a producer without waiting for what it has not sent.

    `stop` would flush first, which takes until the broker is back. So what it waits for is taken away: the sender ends once its
    connections are closed, and then nothing is pending any more. These are aiokafka's own parts, of the version in the lock.
    """
    for connection in list(producer.client._conns.values()):
        connection.close()
    sender = producer._sender.sender_task
    for _ in range(_ABANDON_TRIES):  # cancelled, it waits for its requests; cancelled again, it cancels the one that it waits for
        if sender is None or sender.done():
            break
        sender.cancel()
        await asyncio.wait([sender], timeout=_ABANDON_SECONDS)
    accumulator = producer._message_accumulator
    for batches in accumulator._batches.values():
        accumulator._pending_batches.update(batches)  # where those that were put back for another try expect to be when they end
    accumulator._batches.clear()
    unsent = list(accumulator._pending_batches)
    accumulator.fail_all(KafkaError("the producer was given up"))
    for batch in unsent:
        for future in (batch.future, batch._drain_waiter):
            future.exception()  # nobody waits for it any more: it would be told as never retrieved
    with suppress(*KAFKA_ERRORS):
        await producer.stop()


class _Append:
    """One call's entries, and how many of them are not in the log yet."""

    __slots__ = ("entries", "future", "left")

    def __init__(self, entries: Sequence[LogEntry], future: asyncio.Future[None]) -> None:
        self.entries = entries
        self.left = len(entries)
        self.future = future


class Lane:
    """One partition: what overlapping calls append goes out in their order, all that came meanwhile in the next batch."""

    def __init__(self, producer: RebuiltProducer, topic: str, partition: int, tasks: Tasks, append_seconds: float) -> None:
        self._producer = producer
        self._topic = topic
        self._partition = partition
        self._tasks = tasks
        self._append_seconds = append_seconds
        self._waiting: deque[tuple[_Append, LogEntry]] = deque()
        self._running = False

    def append(self, entries: Sequence[LogEntry]) -> asyncio.Future[None]:
        """Queue entries; the future ends when all are in the log, or with LogUnavailableError."""
        append = _Append(entries, asyncio.get_running_loop().create_future())
        self._waiting.extend((append, entry) for entry in entries)
        if not self._running:
            self._running = True
            self._tasks.spawn(self._run(), name=f"append {self._topic}/{self._partition}")
        return append.future

    async def _run(self) -> None:
        try:
            while self._waiting:
                await self._send_next()
        finally:
            self._running = False
            self._fail(f"{self._topic}/{self._partition}: closed")  # only what a cancellation left

    async def _send_next(self) -> None:
        where = f"{self._topic}/{self._partition}"
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                producer = await self._producer.get()
        except TimeoutError:
            self._fail(f"{where}: not connected: {self._producer.problem}")
            return
        try:
            async with asyncio.timeout(self._append_seconds):
                batch = producer.create_batch()
                count = self._fill(batch)
                await (await producer.send_batch(batch, self._topic, partition=self._partition))
        except KAFKA_ERRORS as error:
            self._producer.failed(producer, f"{where}: {describe(error)}")
            # What waits behind it fails with it: were it to succeed, what the caller appends again would come after it.
            self._fail(f"{where}: {describe(error)}")
        else:
            for _ in range(count):
                append, _entry = self._waiting.popleft()
                append.left -= 1
                if not append.left and not append.future.done():
                    append.future.set_result(None)

    def _fill(self, batch: Any) -> int:
        """Take what fits, without removing it; return how many."""
        count = 0
        for _append, (key, value) in self._waiting:
            if batch.append(key=key, value=value, timestamp=None) is None:
                break
            count += 1
        batch.close()
        return count

    def _fail(self, why: str) -> None:
        while self._waiting:
            append, _entry = self._waiting.popleft()
            if not append.future.done():
                append.future.set_exception(LogUnavailableError(why))
                append.future.exception()  # its caller may have been cancelled
