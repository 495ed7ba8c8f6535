"""The topics of a log in Kafka: made once for an epoch, and checked by everybody who opens it.

A topic's name carries the epoch, `parley.commands.e2`: offsets mean nothing in another log, and a consumer group's offsets are
kept by topic name. Within an epoch a topic's number of partitions never changes.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import NoError, TopicAlreadyExistsError, UnknownTopicOrPartitionError, for_code

from chassis.eventlog import LogSetupError, LogUnavailableError
from chassis.eventlog_kafka_connection import KafkaConnection, kafka_errors, refuse_wrong_settings

# The largest record that a topic takes; a poll's events as one record must fit (services cut theirs at 1 MB, see 0004).
MAX_RECORD_BYTES: Final = 8 * 1024 * 1024
RETENTION_DAYS: Final = 7.0  # as Kafka's default; a consumer that is away for longer misses records, loudly
_VISIBLE_SECONDS: Final = 15.0  # a new topic is known to all brokers within seconds
_LOOK_AGAIN_SECONDS: Final = 0.05  # brokers tell nobody that they know it
# A log is neither compacted nor stamped by its clients' clocks.
_REQUIRED: Final = {"cleanup.policy": "delete", "message.timestamp.type": "LogAppendTime"}


@dataclass(frozen=True)
class TopicSettings:
    """How topics are made; what exists keeps what it has."""

    replication_factor: int = 1  # in production 3
    min_insync_replicas: int = 1  # in production 2: with acks=all a record survives the loss of a broker
    retention_days: float = RETENTION_DAYS

    def configs(self) -> dict[str, str]:
        """Return what Kafka is told."""
        return _REQUIRED | {
            "max.message.bytes": str(MAX_RECORD_BYTES),
            "min.insync.replicas": str(self.min_insync_replicas),
            "retention.ms": str(int(self.retention_days * 86_400_000)),
            "unclean.leader.election.enable": "false",
        }


def engine_topic(prefix: str, topic: str, epoch: int) -> str:
    """Return the topic's name in Kafka."""
    return f"{prefix}{topic}.e{epoch}"


async def apply_topics(
    connection: KafkaConnection, topics: Mapping[str, int], *, epoch: int, settings: TopicSettings, prefix: str = ""
) -> list[str]:
    """Make the topics that are not there yet, and check those that are; return the names of what was made.

    Safe to run twice, and at once. Raises LogUnavailableError; LogSetupError: one exists and is not as it has to be.
    """
    async with open_admin(connection) as admin:
        names = {engine_topic(prefix, topic, epoch): count for topic, count in topics.items()}
        new = [
            NewTopic(name, count, settings.replication_factor, topic_configs=settings.configs()) for name, count in names.items()
        ]
        async with kafka_errors("creating topics"):
            answer = await admin.create_topics(new)
        made = []
        for name, code, *rest in answer.topic_errors:
            if (error := for_code(code)) is NoError:
                made.append(name)
            elif error is not TopicAlreadyExistsError:
                raise LogUnavailableError(f"can't create topic {name}: {error.__name__} {rest[0] if rest else ''}".strip())
        deadline = time.monotonic() + _VISIBLE_SECONDS
        while True:
            try:
                await _check(admin, names)
            except UnreadyTopicError:
                if time.monotonic() > deadline:
                    raise
                await asyncio.sleep(_LOOK_AGAIN_SECONDS)
            else:
                return made


async def check_topics(connection: KafkaConnection, topics: Mapping[str, int], *, epoch: int, prefix: str = "") -> str:
    """Check that the topics are there (UnreadyTopicError) and as they have to be (LogSetupError); return Kafka's `cluster_id`.

    Raises LogUnavailableError.
    """
    async with open_admin(connection) as admin:
        await _check(admin, {engine_topic(prefix, topic, epoch): count for topic, count in topics.items()})
        return await cluster_id(admin)


async def partitions_made(connection: KafkaConnection, topic: str, *, epoch: int, prefix: str = "", seconds: float = 0.0) -> int:
    """Return how many partitions a topic was made with; wait `seconds` at most for a Kafka that can't say it yet.

    Raises MissingTopicError at once, LogUnavailableError.
    """
    deadline = time.monotonic() + seconds
    while True:
        try:
            async with open_admin(connection) as admin, kafka_errors("looking at topics"):
                return await partition_count(admin, engine_topic(prefix, topic, epoch))
        except MissingTopicError:
            raise
        except LogUnavailableError:
            if time.monotonic() >= deadline:
                raise
        await asyncio.sleep(_LOOK_AGAIN_SECONDS)


async def delete_topics(connection: KafkaConnection, topics: Collection[str], *, epoch: int, prefix: str = "") -> None:
    """Delete topics with all that is in them. Raises LogUnavailableError."""
    async with open_admin(connection) as admin, kafka_errors("deleting topics"):
        await admin.delete_topics([engine_topic(prefix, topic, epoch) for topic in topics])


class UnreadyTopicError(LogUnavailableError):
    """A topic can't be used now: it has no leader yet, or Kafka can't say."""


class MissingTopicError(UnreadyTopicError):
    """A topic does not exist, as far as this broker knows."""


async def _check(admin: AIOKafkaAdminClient, names: Mapping[str, int]) -> None:
    if not names:
        return
    async with kafka_errors("looking at topics"):
        described = {topic["topic"]: topic for topic in await admin.describe_topics(list(names))}
    for name, count in names.items():
        partitions = _partitions(name, described[name])
        if len(partitions) != count:
            raise LogSetupError(
                f"topic {name} has {len(partitions)} partitions and {count} are configured; it can't change within an epoch:"
                f" set PARLEY_KAFKA_PARTITIONS={len(partitions)}"
            )
        if any(for_code(partition["error_code"]) is not NoError for partition in partitions):
            raise UnreadyTopicError(f"topic {name} has partitions without a leader")
    async with kafka_errors("looking at the topics' settings"):
        answers = await admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, name) for name in names])
    for answer in answers:
        for _code, _message, _kind, name, entries in answer.resources:
            _check_configs(name, {entry[0]: entry[1] for entry in entries})


async def cluster_id(admin: AIOKafkaAdminClient) -> str:
    """Return the id that Kafka's cluster has had from its first day on. Raises LogUnavailableError."""
    async with kafka_errors("asking for the cluster's id"):
        return str((await admin.describe_cluster())["cluster_id"])


async def partition_count(admin: AIOKafkaAdminClient, name: str) -> int:
    """Return how many partitions a topic has. Raises UnreadyTopicError, and what the client raises."""
    (topic,) = await admin.describe_topics([name])
    return len(_partitions(name, topic))


def _partitions(name: str, topic: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    error = for_code(topic["error_code"])
    if error is UnknownTopicOrPartitionError:
        raise MissingTopicError(f"topic {name} does not exist; `parley topics apply` makes it")
    if error is not NoError:
        raise UnreadyTopicError(f"topic {name}: {error.__name__}")
    partitions: list[Mapping[str, Any]] = topic["partitions"]
    return partitions


def _check_configs(name: str, configs: Mapping[str, str]) -> None:
    for key, value in _REQUIRED.items():
        if key in configs and configs[key] != value:
            raise LogSetupError(f"topic {name} has {key}={configs[key]} and needs {value}")
    if int(configs.get("max.message.bytes", MAX_RECORD_BYTES)) < MAX_RECORD_BYTES:
        raise LogSetupError(f"topic {name} has max.message.bytes={configs['max.message.bytes']} and needs {MAX_RECORD_BYTES}")


@asynccontextmanager
async def open_admin(connection: KafkaConnection) -> AsyncIterator[AIOKafkaAdminClient]:
    """Open a client for topics and groups. Raises LogUnavailableError."""
    admin = AIOKafkaAdminClient(**connection.client_options())
    try:
        try:
            async with kafka_errors(f"Kafka at {connection.bootstrap_servers}"):
                await admin.start()
        except LogUnavailableError:
            await refuse_wrong_settings(connection)
            raise
        yield admin
    finally:
        await admin.close()
