"""How a cluster gets another log: the one way to recreate topics, or to have another number of partitions.

Steps in an order in which each may be the last one for a while: told the same epoch again, the procedure goes on where it ended.
The last step, the epoch in the tables, is the one that counts: before it nothing has changed for who runs, after it the old log is
over.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from chassis.eventlog_kafka_connection import KafkaConnection
from chassis.eventlog_kafka_lag import GroupLag, read_lag
from chassis.eventlog_kafka_topics import MissingTopicError, TopicSettings, apply_topics, engine_topic
from parley_cli.failures import CommandError, SetupError
from parley_protocol.topics import COMMANDS, EVENTS, topics
from services.router.route import GROUP as ROUTER
from services.store.apply import GROUP as STORE

_LOOK_SECONDS: Final = 0.5  # between two looks at what groups have committed: Kafka tells nobody
_DRAINED: Final = (  # who has to be done with what, in this order: stores make what routers read; and what it costs else
    (
        COMMANDS,
        STORE,
        "commands that no store has applied stay behind. Nobody was told that they are sent: devices send them again, under"
        " the same ids, when they connect; those of a device that never comes back are lost",
    ),
    (
        EVENTS,
        ROUTER,
        "records of events that no router has passed on stay behind. What they tell of is stored: devices find it when they"
        " connect, nobody is woken for it",
    ),
)


@dataclass(frozen=True)
class NewEpoch:
    """What is asked for."""

    epoch: int
    partitions: int
    settings: TopicSettings
    prefix: str
    undrained: bool
    wait_seconds: float  # for stores and routers to finish


@dataclass(frozen=True)
class Cluster:
    """What the procedure reads and changes."""

    connection: KafkaConnection
    gateways: Callable[[], Awaitable[list[str]]]  # those that are registered
    read_epoch: Callable[[], Awaitable[int]]
    raise_epoch: Callable[[int], Awaitable[None]]
    note_epoch: Callable[[int], Awaitable[None]]  # where gateways and routers, which have no tables, see it


async def new_log_epoch(cluster: Cluster, wanted: NewEpoch, say: Callable[[str], None]) -> None:
    """Go through the steps, and say each. Raises SetupError, CommandError and what the engines raise; then it may be run again."""
    now = await cluster.read_epoch()
    if not now <= wanted.epoch <= now + 1:
        raise SetupError(f"the tables belong to log epoch {now}: the next one is {now + 1}, not {wanted.epoch}.")
    if now < wanted.epoch:
        await _close(cluster, wanted, now, say)
    made = await apply_topics(
        cluster.connection, topics(wanted.partitions), epoch=wanted.epoch, settings=wanted.settings, prefix=wanted.prefix
    )
    names = f"parley.*.e{wanted.epoch} with {wanted.partitions} partitions each"
    say(f"topics: {wanted.prefix}{names} {'are made' if made else 'are there'}")
    if now < wanted.epoch:
        await cluster.raise_epoch(wanted.epoch)
        if (now := await cluster.read_epoch()) != wanted.epoch:
            raise CommandError(f"the tables belong to log epoch {now} by now: somebody else was faster.")
    say(f"tables: they belong to log epoch {wanted.epoch}; stores of an older one stop within seconds")
    await cluster.note_epoch(wanted.epoch)
    say(f"Consul: it names log epoch {wanted.epoch}; gateways and routers of an older one stop")
    say(f"now start stores, routers, gateways: PARLEY_KAFKA_LOG_EPOCH={wanted.epoch} PARLEY_KAFKA_PARTITIONS={wanted.partitions}")


async def _close(cluster: Cluster, wanted: NewEpoch, epoch: int, say: Callable[[str], None]) -> None:
    """See that nothing is added to the old log and that all of it was done, or say what is left behind."""
    if running := await cluster.gateways():
        raise CommandError(f"gateways take commands: stop {', '.join(sorted(running))} first. Stores and routers go on.")
    say("gateways: none is registered, nothing is accepted")
    ends = {}
    for topic, group, cost in _DRAINED:
        name = engine_topic(wanted.prefix, topic, epoch)
        try:
            lag = await _drain(cluster, wanted, name, group, say)
        except MissingTopicError as error:
            if not wanted.undrained:
                raise CommandError(f"{error}: what of it was not done is lost; --undrained goes on without.") from error
            say(f"{group}: {name} is not there, --undrained: {cost}")
            continue
        ends[name, group] = lag.ends
        if not lag.records:
            say(f"{group}: nothing is left of {name}")
        elif wanted.undrained:
            say(f"{group}: --undrained: {lag.records} {cost}")
        else:
            raise CommandError(
                f"{group}: {lag.records} records of {name} are left after {wanted.wait_seconds:g} s. Let one run, mend or skip"
                f" what stops it, or --undrained: {lag.records} {cost}."
            )
    for (name, group), before in ends.items():
        if (await read_lag(cluster.connection, name, f"{name}.{group}")).ends != before and not wanted.undrained:
            raise CommandError(f"{name} grew meanwhile: somebody still writes there. Stop all gateways, then run this again.")


async def _drain(cluster: Cluster, wanted: NewEpoch, name: str, group: str, say: Callable[[str], None]) -> GroupLag:
    """Wait until the group is done with all of the topic; return what is left when the time is over."""
    deadline = time.monotonic() + (0.0 if wanted.undrained else wanted.wait_seconds)
    told = None
    while True:
        lag = await read_lag(cluster.connection, name, f"{name}.{group}")
        if not lag.records or time.monotonic() >= deadline:
            return lag
        if lag.records != told:
            told = lag.records
            say(f"{group}: {told} records of {name} are left")
        await asyncio.sleep(_LOOK_SECONDS)
