"""Opening the log on Kafka: what is not as it has to be is told before anything is served."""

import asyncio
import time
from dataclasses import replace
from functools import partial

import pytest
from kafka_scene import TOPIC, TOPICS, apply, entries, open_log, poll, stopped, values
from kafka_scene import kafka as kafka
from kafka_scene import log as log
from kafka_scene import registry as registry
from kafka_scene import world as world
from worlds import KafkaLogWorld

from chassis.eventlog import EventLog, LogSetupError, LogUnavailableError
from chassis.eventlog_kafka_connection import KafkaConnection
from chassis.eventlog_kafka_topics import MissingTopicError, TopicSettings, apply_topics, engine_topic, partitions_made
from parley_engines.kafka import LOGIN_USER
from parley_engines.state import Started

pytestmark = pytest.mark.engines("kafka")


async def test_a_missing_topic_is_named_with_what_makes_it(world: KafkaLogWorld) -> None:
    with pytest.raises(LogUnavailableError, match=r"nosuch\.e1 does not exist; `parley topics apply`"):
        async with open_log(world.connection, {"nosuch": 1}, prefix=world.prefix):
            pass


async def test_another_number_of_partitions_is_refused(world: KafkaLogWorld) -> None:
    with pytest.raises(LogSetupError, match=r"has 3 partitions and 4 are configured; .*: set PARLEY_KAFKA_PARTITIONS=3$"):
        async with open_log(world.connection, {TOPIC: 4}, prefix=world.prefix):
            pass


async def test_topics_are_made_once_however_often_and_at_once_they_are_applied(world: KafkaLogWorld) -> None:
    made = await asyncio.gather(*(apply(world, {"a": 2, "b": 1}) for _ in range(3)))
    assert sorted(name for names in made for name in names) == [engine_topic(world.prefix, name, 1) for name in ("a", "b")]
    assert await apply(world, {"a": 2, "b": 1}) == []


async def test_a_topic_says_with_how_many_partitions_it_was_made(world: KafkaLogWorld) -> None:
    made = partial(partitions_made, world.connection, TOPIC, prefix=world.prefix)
    assert await made(epoch=1) == 3
    with pytest.raises(MissingTopicError):
        await made(epoch=2)


async def test_a_topic_that_is_not_as_it_has_to_be_is_refused(world: KafkaLogWorld) -> None:
    class Compacted(TopicSettings):
        def configs(self) -> dict[str, str]:
            return super().configs() | {"cleanup.policy": "compact"}

    with pytest.raises(LogSetupError, match=r"cleanup\.policy=compact and needs delete"):
        await apply_topics(world.connection, {"compacted": 1}, epoch=1, settings=Compacted(), prefix=world.prefix)


async def test_another_epoch_is_another_log(world: KafkaLogWorld, log: EventLog) -> None:
    await log.append(TOPIC, 0, entries("old"))
    async with log.open_consumer(TOPIC, "g") as consumer:
        consumer.done(await poll(consumer))
    await apply_topics(world.connection, TOPICS, epoch=2, settings=TopicSettings(), prefix=world.prefix)
    async with open_log(world.connection, prefix=world.prefix, epoch=2) as second:
        assert second.epoch == 2
        await second.append(TOPIC, 0, entries("new"))
        async with second.open_consumer(TOPIC, "g") as consumer:
            batch = await poll(consumer)
            assert (values(batch), batch.records[0].offset) == (["new"], 0)


async def test_a_cluster_that_is_not_there_is_waited_for_and_given_up_on(unused_address: str) -> None:
    began = time.monotonic()
    with pytest.raises(LogUnavailableError, match=unused_address):
        async with open_log(KafkaConnection(unused_address), seconds=1):
            pass
    assert 1 <= time.monotonic() - began < 10


@pytest.fixture
async def unused_address() -> str:
    """Return an address where nobody listens any more."""
    server = await asyncio.start_server(lambda _reader, _writer: None, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    server.close()
    await server.wait_closed()
    return f"{host}:{port}"


async def test_a_cluster_that_hangs_is_given_up_on(kafka: Started) -> None:
    with stopped(kafka), pytest.raises(LogUnavailableError):
        async with asyncio.timeout(20), open_log(KafkaConnection(kafka.address), seconds=1):
            pass


async def test_a_login_is_asked_for_and_a_wrong_one_refused(kafka: Started, world: KafkaLogWorld) -> None:
    connection = KafkaConnection(f"127.0.0.1:{kafka.ports['login']}", LOGIN_USER, LOGIN_USER, "PLAIN")
    async with open_log(connection, prefix=world.prefix) as log:
        await log.append(TOPIC, 0, entries("a"))
    for wrong in (replace(connection, password="guessed"), replace(connection, sasl_mechanism="SCRAM-SHA-256")):
        with pytest.raises(LogSetupError, match=f"refuses the login of '{LOGIN_USER}'") as refused:  # at once: waiting is of no use
            async with asyncio.timeout(20), open_log(wrong, prefix=world.prefix, seconds=600):
                pass
        assert "guessed" not in str(refused.value)
        with pytest.raises(LogSetupError, match="refuses the login"):
            await apply_topics(wrong, TOPICS, epoch=1, settings=TopicSettings(), prefix=world.prefix)
    with pytest.raises(LogUnavailableError):
        async with asyncio.timeout(20), open_log(replace(connection, user=""), prefix=world.prefix, seconds=1):
            pass
