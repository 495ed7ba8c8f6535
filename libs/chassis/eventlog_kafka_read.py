"""Reading a partition of Kafka from its oldest record to its present end, as no member of a group."""

import asyncio
from collections.abc import AsyncIterator
from typing import Final

from aiokafka import AIOKafkaConsumer, TopicPartition

from chassis.eventlog import LogRecord
from chassis.eventlog_kafka_connection import REQUEST_SECONDS, KafkaConnection, kafka_errors
from chassis.eventlog_kafka_consumer import abandon_consumer

_SILENCE_SECONDS: Final = 4 * REQUEST_SECONDS  # there are records, and none come


async def read_partition(connection: KafkaConnection, topic: str, partition: int) -> AsyncIterator[LogRecord]:
    """Yield what lies there now. Raises LogUnavailableError."""
    whole = TopicPartition(topic, partition)
    consumer = AIOKafkaConsumer(**connection.client_options(), enable_auto_commit=False)
    try:
        async with kafka_errors(f"reading {topic}/{partition}"):
            async with asyncio.timeout(_SILENCE_SECONDS):
                await consumer.start()
                consumer.assign([whole])
                position, end = (await consumer.beginning_offsets([whole]))[whole], (await consumer.end_offsets([whole]))[whole]
                consumer.seek(whole, position)
            while position < end:
                async with asyncio.timeout(_SILENCE_SECONDS):
                    record = await consumer.getone(whole)
                position = record.offset + 1
                if record.offset < end:
                    yield LogRecord(record.offset, record.timestamp, record.key or b"", record.value or b"")
    finally:
        await abandon_consumer(consumer)
