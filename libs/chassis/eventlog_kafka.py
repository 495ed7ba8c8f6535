"""The EventLog on Kafka. Topics are made beforehand (`eventlog_kafka_topics.apply_topics`) and checked when the log is opened."""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Final

import structlog
from prometheus_client import CollectorRegistry

from chassis.backoff import Backoff
from chassis.eventlog import LogEntry, LogRecord, LogUnavailableError, RecordTooLargeError
from chassis.eventlog_kafka_connection import KAFKA_ERRORS, REQUEST_SECONDS, KafkaConnection, describe, refuse_wrong_settings
from chassis.eventlog_kafka_consumer import HEARTBEAT_SECONDS, KafkaConsumer
from chassis.eventlog_kafka_metrics import KafkaMetrics
from chassis.eventlog_kafka_producer import APPEND_SECONDS, Lane, RebuiltProducer, open_producer
from chassis.eventlog_kafka_read import read_partition
from chassis.eventlog_kafka_topics import MAX_RECORD_BYTES, check_topics, engine_topic
from chassis.tasks import Tasks, open_tasks

START_SECONDS: Final = 60.0  # how long a cluster that does not answer yet is waited for: both may have been started together
_WAITING_BYTES: Final = 64 * 1024 * 1024  # what may wait for the log in memory, over all partitions
_OVERHEAD_BYTES: Final = 512  # of a record alone in its batch, rounded up generously

_log = structlog.get_logger()


class KafkaLog:
    """See `chassis.eventlog.EventLog`; opened by `open_kafka_log`.

    Retention does not wait for groups: a group that is away for longer than the topic's retention misses records, and says so.
    """

    def __init__(
        self,
        connection: KafkaConnection,
        topics: Mapping[str, int],
        *,
        epoch: int,
        prefix: str,
        cluster_id: str,
        producer: RebuiltProducer,
        tasks: Tasks,
        rng: random.Random,
        metrics: KafkaMetrics,
        append_seconds: float,
        heartbeat_seconds: float,
    ) -> None:
        self.log_id = f"{cluster_id}/{prefix}"  # which log in the world, over all of its epochs
        self._connection = connection
        self._topics = topics
        self._epoch = epoch
        self._prefix = prefix
        self._producer = producer
        self._rng = rng
        self._metrics = metrics
        self._heartbeat_seconds = heartbeat_seconds
        self._lanes = {
            topic: [Lane(producer, engine_topic(prefix, topic, epoch), number, tasks, append_seconds) for number in range(count)]
            for topic, count in topics.items()
        }
        self._waiting_bytes = 0

    @property
    def epoch(self) -> int:
        return self._epoch

    async def partition_count(self, topic: str) -> int:
        return len(self._lanes_of(topic))

    async def ping(self) -> None:
        try:
            async with asyncio.timeout(REQUEST_SECONDS):
                producer = await self._producer.get()
                if not await producer.client.force_metadata_update():
                    raise LogUnavailableError("no broker answers")
        except KAFKA_ERRORS as error:
            raise LogUnavailableError(self._producer.problem or describe(error)) from error

    async def append(self, topic: str, partition: int, entries: Sequence[LogEntry]) -> None:
        lane = self._lanes_of(topic)[partition]
        if not entries:
            return
        size = 0
        for key, value in entries:
            length = len(key) + len(value)
            if length > MAX_RECORD_BYTES - _OVERHEAD_BYTES:
                raise RecordTooLargeError(f"{topic}/{partition}: a record of {length} bytes; the log takes {MAX_RECORD_BYTES}")
            size += length
        if self._waiting_bytes and self._waiting_bytes + size > _WAITING_BYTES:
            raise LogUnavailableError(f"{topic}/{partition}: {self._waiting_bytes} bytes wait for the log already")
        self._waiting_bytes += size
        future = lane.append(entries)
        future.add_done_callback(lambda _: self._gone(size))
        await asyncio.shield(future)  # a caller who is cancelled does not undo it

    def _gone(self, size: int) -> None:
        self._waiting_bytes -= size

    async def records(self, topic: str, partition: int) -> AsyncIterator[LogRecord]:
        self._lanes_of(topic)
        name = engine_topic(self._prefix, topic, self._epoch)
        async for record in read_partition(self._connection, name, partition):
            yield record

    @asynccontextmanager
    async def open_consumer(self, topic: str, group: str) -> AsyncIterator[KafkaConsumer]:
        count = len(self._lanes_of(topic))
        name = engine_topic(self._prefix, topic, self._epoch)
        # The group's name carries the topic's: no two groups share offsets by accident, and another epoch is another group.
        consumer = KafkaConsumer(
            self._connection,
            name,
            f"{name}.{group}",
            count,
            rng=self._rng,
            metrics=self._metrics,
            heartbeat_seconds=self._heartbeat_seconds,
        )
        async with open_tasks(f"consumer {name}.{group}") as tasks:
            tasks.spawn(consumer.run(), name="consume")
            yield consumer

    def _lanes_of(self, topic: str) -> Sequence[Lane]:
        try:
            return self._lanes[topic]
        except KeyError:
            raise ValueError(f"topic {topic} was not declared when the log was opened") from None


@asynccontextmanager
async def open_kafka_log(
    connection: KafkaConnection,
    topics: Mapping[str, int],
    *,
    epoch: int,
    rng: random.Random,
    metrics: CollectorRegistry,
    prefix: str = "",
    start_seconds: float = START_SECONDS,
    append_seconds: float = APPEND_SECONDS,
    heartbeat_seconds: float = HEARTBEAT_SECONDS,
) -> AsyncIterator[KafkaLog]:
    """Open the log of an epoch, whose topics exist with these numbers of partitions.

    Waits `start_seconds` for a cluster that does not answer, and says that it does. Raises LogUnavailableError: it did not answer
    or a topic is missing; LogSetupError: one is not as it has to be, or the login is refused. `prefix` begins all topics' names.
    """
    counted = KafkaMetrics(metrics)
    async with open_producer(connection, rng, counted) as producer:
        cluster_id = await _connect(connection, topics, epoch, prefix, producer, start_seconds, Backoff(0.1, 2.0, rng))
        async with open_tasks("kafka log") as tasks:
            yield KafkaLog(
                connection,
                topics,
                epoch=epoch,
                prefix=prefix,
                cluster_id=cluster_id,
                producer=producer,
                tasks=tasks,
                rng=rng,
                metrics=counted,
                append_seconds=append_seconds,
                heartbeat_seconds=heartbeat_seconds,
            )


async def _connect(
    connection: KafkaConnection,
    topics: Mapping[str, int],
    epoch: int,
    prefix: str,
    producer: RebuiltProducer,
    seconds: float,
    backoff: Backoff,
) -> str:
    """Return the id of Kafka's cluster, once it answers and has the topics."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            await producer.start()
            break
        except KAFKA_ERRORS as error:
            await refuse_wrong_settings(connection)
            left = deadline - time.monotonic()
            if left <= 0:
                raise LogUnavailableError(f"Kafka at {connection.bootstrap_servers}: {describe(error)}") from error
            _log.warning("kafka.waiting", bootstrap_servers=connection.bootstrap_servers, error=describe(error))
            await asyncio.sleep(min(backoff.failed(0), left))
    return await check_topics(connection, topics, epoch=epoch, prefix=prefix)
