"""Asking Kafka with how many partitions a topic was made, while it can't say and where there is none."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest
from aiokafka.errors import LeaderNotAvailableError, NoError, UnknownTopicOrPartitionError

from chassis import eventlog_kafka_topics
from chassis.eventlog import LogUnavailableError
from chassis.eventlog_kafka_connection import KafkaConnection
from chassis.eventlog_kafka_topics import MissingTopicError, UnreadyTopicError, partitions_made

Answer = type[NoError | LeaderNotAvailableError | UnknownTopicOrPartitionError]


class Admin:
    """Answers in turn; a topic has three partitions."""

    def __init__(self, answers: Sequence[Answer]) -> None:
        self.answers = list(answers)

    async def describe_topics(self, names: Sequence[str]) -> list[dict[str, object]]:
        return [{"topic": name, "error_code": self.answers.pop(0).errno, "partitions": [{}, {}, {}]} for name in names]


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Admin:
    admin = Admin([])

    @asynccontextmanager
    async def open_admin(connection: KafkaConnection) -> AsyncIterator[Admin]:
        yield admin

    monkeypatch.setattr(eventlog_kafka_topics, "open_admin", open_admin)
    monkeypatch.setattr(eventlog_kafka_topics, "_LOOK_AGAIN_SECONDS", 0.0)
    return admin


async def made(seconds: float) -> int:
    return await partitions_made(KafkaConnection("127.0.0.1:1"), "t", epoch=1, seconds=seconds)


async def test_a_kafka_that_cannot_say_yet_is_asked_again(answers):
    answers.answers = [LeaderNotAvailableError, LeaderNotAvailableError, NoError]
    assert await made(60.0) == 3


async def test_one_that_cannot_say_is_no_kafka_without_the_topic(answers):
    answers.answers = [LeaderNotAvailableError]
    with pytest.raises(UnreadyTopicError, match="LeaderNotAvailableError") as caught:
        await made(0.0)
    assert isinstance(caught.value, LogUnavailableError)
    assert not isinstance(caught.value, MissingTopicError)


async def test_a_topic_that_is_not_there_is_told_at_once(answers):
    answers.answers = [UnknownTopicOrPartitionError, NoError]
    with pytest.raises(MissingTopicError):
        await made(60.0)
    assert answers.answers == [NoError]
