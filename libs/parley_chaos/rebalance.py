"""A member that joins a consumer group, takes partitions, does nothing with them, and leaves: as one that is scaled out and in."""

import asyncio
import random
from collections.abc import Mapping
from contextlib import suppress
from typing import Final

from prometheus_client import CollectorRegistry

from chassis.config import load_settings
from chassis.eventlog import LogUnavailableError
from chassis.eventlog_kafka import open_kafka_log
from chassis.eventlog_kafka_settings import KafkaSettings
from parley_protocol.topics import COMMANDS, EVENTS, topics
from services.router import route
from services.store import apply

GROUPS: Final[Mapping[str, tuple[str, str]]] = {"store": (COMMANDS, apply.GROUP), "router": (EVENTS, route.GROUP)}
_JOIN_SECONDS: Final = 60.0  # for Kafka to have it in: longer than another member's session lasts, also while others join


class Joined:
    """What the member got."""

    def __init__(self) -> None:
        self.partitions: set[int] = set()
        self.records = 0


async def join_group(environ: Mapping[str, str], group: str, seconds: float) -> Joined:
    """Be a member of "store" or "router" until something was taken, and for so many seconds more; commit nothing, and leave.

    What was taken goes to the others from the same offsets. Raises LogUnavailableError, TimeoutError.
    """
    settings = load_settings(KafkaSettings, environ)
    topic, name = GROUPS[group]
    joined = Joined()
    async with (
        open_kafka_log(
            settings.connection(), topics(settings.partitions), epoch=settings.log_epoch, prefix=settings.prefix,
            rng=random.Random(), metrics=CollectorRegistry(),
        ) as log,
        log.open_consumer(topic, name) as consumer,
    ):  # fmt: skip

        async def take() -> None:
            while True:
                with suppress(LogUnavailableError):
                    batch = await consumer.poll(1)  # never done: what is held is not handed out again
                    joined.partitions.add(batch.partition)
                    joined.records += len(batch.records)
                    first.set()

        first = asyncio.Event()
        async with asyncio.TaskGroup() as group_of_tasks:
            taking = group_of_tasks.create_task(take())
            async with asyncio.timeout(_JOIN_SECONDS):
                await first.wait()
            await asyncio.sleep(seconds)
            taking.cancel()
    return joined
