"""How far a consumer group is behind a topic of Kafka."""

from typing import NamedTuple

from aiokafka import AIOKafkaConsumer, TopicPartition

from chassis.eventlog_kafka_connection import KafkaConnection, kafka_errors
from chassis.eventlog_kafka_consumer import abandon_consumer
from chassis.eventlog_kafka_topics import open_admin, partition_count


class GroupLag(NamedTuple):
    """What a group has left to do."""

    ends: tuple[int, ...]  # offset after the last record, by partition
    left: tuple[int, ...]  # records that the group has not done, as far as it has committed, by partition

    @property
    def records(self) -> int:
        """Return how many records are left."""
        return sum(self.left)


async def read_lag(connection: KafkaConnection, topic: str, group: str) -> GroupLag:
    """Ask how far a group is, topic and group by their names in Kafka. Who never committed has all before him.

    Raises UnreadyTopicError, LogUnavailableError.
    """
    async with open_admin(connection) as admin, kafka_errors(f"looking at {topic}"):
        whole = [TopicPartition(topic, number) for number in range(await partition_count(admin, topic))]
        committed = await admin.list_consumer_group_offsets(group, partitions=whole)
        consumer = AIOKafkaConsumer(**connection.client_options(), enable_auto_commit=False)
        try:
            await consumer.start()
            begins, ends = await consumer.beginning_offsets(whole), await consumer.end_offsets(whole)
        finally:
            await abandon_consumer(consumer)
    left = []
    for place in whole:
        offset = committed[place].offset if place in committed else -1
        left.append(ends[place] - max(offset, begins[place]))
    return GroupLag(tuple(ends[place] for place in whole), tuple(left))
