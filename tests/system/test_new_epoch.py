"""`parley admin new-log-epoch`: a cluster gets another log, on Kafka, the database and Consul; what was said before goes on."""

import asyncio
import random
import signal
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from engine_fixtures import EnginesOfTheRun
from parley_process import Parley, run
from prometheus_client import CollectorRegistry

from chassis.clock import SystemClock
from chassis.eventlog import EventLog, LogBatch, LogEntry, partition_for
from chassis.eventlog_kafka import open_kafka_log
from chassis.eventlog_kafka_connection import KafkaConnection
from chassis.eventlog_kafka_topics import delete_topics
from chassis.registry import Instance
from chassis.registry_consul import open_consul_registry
from chassis.registry_consul_claim import Claim
from chassis.registry_consul_http import ConsulSettings
from chassis.timeline import TimelineSetupError
from chassis.timeline_cql import CqlTimeline, open_cql_timeline
from chassis.timeline_cql_connect import open_cql_session
from chassis.timeline_cql_metrics import CqlMetrics
from chassis.timeline_cql_settings import CqlSettings
from parley.api.v1.commands_pb2 import SendMessage
from parley.api.v1.events_pb2 import Event
from parley.log.v1.records_pb2 import CommandRecord, RawCommand
from parley_protocol.ids import direct_conversation_id
from parley_protocol.topics import COMMANDS, EVENTS, topics
from services.store.apply import GROUP, Applier
from services.store.config import StoreSettings
from services.store.metrics import StoreMetrics
from services.store.recent import RecentEvents
from services.store.rows import TABLES, TIMELINE
from services.store.schema import SCHEMA
from services.store.state import NewerEpochError

pytestmark = pytest.mark.engines("kafka", "scylladb", "consul")
CONVERSATION = direct_conversation_id("alice", "bob")


@dataclass
class Cluster:
    """A cluster without processes: its engines, and what services do there, done by hand."""

    home: Path
    environ: dict[str, str]
    prefix: str
    kafka: KafkaConnection
    cql: CqlSettings
    consul: ConsulSettings

    def parley(self, *arguments: str) -> tuple[int, str, str]:
        return run(*arguments, home=self.home, env=self.environ)

    @asynccontextmanager
    async def log(self, epoch: int, partitions: int) -> AsyncIterator[EventLog]:
        async with open_kafka_log(
            self.kafka, topics(partitions), epoch=epoch, prefix=self.prefix, rng=random.Random(1), metrics=CollectorRegistry(),
            start_seconds=10, heartbeat_seconds=0.3,
        ) as log:  # fmt: skip
            yield log

    @asynccontextmanager
    async def timeline(self, epoch: int | None) -> AsyncIterator[CqlTimeline]:
        async with open_cql_timeline(
            self.cql, TABLES, schema_version=len(SCHEMA), metrics=CollectorRegistry(), log_epoch=epoch
        ) as timeline:
            yield timeline

    async def accept(self, epoch: int, partitions: int, *numbers: int) -> None:
        """Do what a gateway does with commands."""
        async with self.log(epoch, partitions) as log:
            entries = [LogEntry(CONVERSATION.encode(), command(number)) for number in numbers]
            await log.append(COMMANDS, partition_for(CONVERSATION.encode(), partitions), entries)

    async def apply(self, epoch: int, partitions: int, records: int) -> None:
        """Do what stores and routers do, until so many records are done."""
        async with self.log(epoch, partitions) as log, self.timeline(epoch) as timeline:
            applier = an_applier(log, timeline)
            async with asyncio.timeout(40), log.open_consumer(COMMANDS, GROUP) as consumer:
                while records > 0:
                    batch = await consumer.poll(100)
                    await applier.apply(batch)
                    consumer.done(batch)
                    records -= len(batch.records)
            async with asyncio.timeout(40), log.open_consumer(EVENTS, "router") as consumer:
                consumer.done(await consumer.poll(100))

    async def bodies(self) -> list[bytes]:
        """Return the conversation as the tables have it."""
        async with self.timeline(None) as timeline:
            cells = (await timeline.read_partitions(TIMELINE, [f"{CONVERSATION}/0"])).get(f"{CONVERSATION}/0", ())
            return [Event.FromString(cell.value).message.body for cell in cells]


def command(number: int) -> bytes:
    action = SendMessage(content_type="text/plain", body=b"%d" % number).SerializeToString()
    body = RawCommand(request_id=number.to_bytes(16, "big"), to_user_id="bob", send_message=action)
    record = CommandRecord(rules_version=1, conversation_id=CONVERSATION, user_id="alice", device_id="phone", command=body)
    return record.SerializeToString()


def an_applier(log: EventLog, timeline: CqlTimeline) -> Applier:
    metrics = StoreMetrics(CollectorRegistry())
    return Applier(
        StoreSettings(),
        log=log,
        timeline=timeline,
        recent=RecentEvents(0),
        clock=SystemClock(),
        metrics=metrics,
        rng=random.Random(1),
    )


@pytest.fixture
def cluster(tmp_path: Path, engines: EnginesOfTheRun) -> Iterator[Cluster]:
    name = uuid.uuid4().hex[:12]
    addresses = {engine: engines.address(engine) for engine in ("kafka", "scylladb", "consul")}
    environ = {
        "PARLEY_KAFKA_SERVERS": addresses["kafka"],
        "PARLEY_KAFKA_PREFIX": f"e{name}.",
        "PARLEY_KAFKA_PARTITIONS": "2",
        "PARLEY_CQL_HOSTS": addresses["scylladb"],
        "PARLEY_CQL_KEYSPACE": f"e{name}",
        "PARLEY_CONSUL_ADDRESS": addresses["consul"],
        "PARLEY_CONSUL_PREFIX": f"e{name}",
    }
    made = Cluster(
        tmp_path,
        environ,
        f"e{name}.",
        KafkaConnection(addresses["kafka"]),
        CqlSettings(hosts=addresses["scylladb"], keyspace=f"e{name}"),
        ConsulSettings(address=addresses["consul"], prefix=f"e{name}"),
    )
    try:
        for making in (("topics", "apply"), ("schema", "apply", "--replication", "1")):
            code, _, err = made.parley(*making)
            assert code == 0, err
        yield made
    finally:
        asyncio.run(_remove(made))


async def _remove(cluster: Cluster) -> None:
    for epoch in (1, 2):
        await delete_topics(cluster.kafka, topics(1), epoch=epoch, prefix=cluster.prefix)
    async with open_cql_session(cluster.cql, CqlMetrics(CollectorRegistry())) as session:
        await session.define(f"DROP KEYSPACE IF EXISTS {cluster.cql.keyspace}")


def test_a_drained_cluster_goes_on_in_a_new_log_with_other_partitions(cluster: Cluster) -> None:
    async def with_a_gateway() -> tuple[int, str, str]:
        async with (
            open_consul_registry(cluster.consul, claim=Claim("parley"), version="0", rng=random.Random(1)) as registry,
            registry.open_session(Instance("gateway", "gateway-7", "127.0.0.1:9")),
        ):
            return await asyncio.to_thread(cluster.parley, "admin", "new-log-epoch", "2")

    asyncio.run(cluster.accept(1, 2, 1, 2, 3))
    code, _, err = asyncio.run(with_a_gateway())
    assert (code, "gateways take commands: stop gateway-7 first" in err) == (1, True), err
    code, _, err = cluster.parley("admin", "new-log-epoch", "2", "--wait", "0.1")
    assert (code, "3 records of" in err, "devices send them again" in err) == (1, True, True), err
    code, _, err = cluster.parley("admin", "new-log-epoch", "4")
    assert (code, "the next one is 2, not 4" in err) == (2, True), err

    asyncio.run(cluster.apply(1, 2, 3))
    code, out, err = cluster.parley("admin", "new-log-epoch", "2", "--partitions", "3")
    assert (code, out.splitlines()[-1].endswith("PARLEY_KAFKA_LOG_EPOCH=2 PARLEY_KAFKA_PARTITIONS=3")) == (0, True), err
    again = cluster.parley("admin", "new-log-epoch", "2", "--partitions", "3")
    assert (again[0], "are there" in again[1]) == (0, True), again
    assert "can't change within an epoch" in cluster.parley("admin", "new-log-epoch", "2")[2]

    asyncio.run(_old_stores_are_over(cluster))
    asyncio.run(cluster.accept(2, 3, 3, 4))  # the third once more: its device has seen no outcome
    asyncio.run(cluster.apply(2, 3, 2))
    assert asyncio.run(cluster.bodies()) == [b"1", b"2", b"3", b"4"]
    asyncio.run(_a_late_store_stops(cluster))


async def _old_stores_are_over(cluster: Cluster) -> None:
    with pytest.raises(TimelineSetupError, match="belongs to log epoch 2, this process was told 1"):
        async with cluster.timeline(1):
            pass


async def _a_late_store_stops(cluster: Cluster) -> None:
    """One that has not heard of the new log meets what that has written."""
    async with cluster.log(1, 2) as log, cluster.timeline(None) as timeline:
        number = partition_for(CONVERSATION.encode(), 2)
        batch = LogBatch(number, [record async for record in log.records(COMMANDS, number)])
        with pytest.raises(NewerEpochError):
            await an_applier(log, timeline).apply(batch)


def test_gateways_and_routers_of_an_old_log_end_and_none_starts(cluster: Cluster) -> None:
    """A gateway that stood still was not seen when its cluster got another log: it must not go on with the old one."""
    code, out, err = cluster.parley("key", "--data", str(cluster.home / "keys"))
    assert code == 0, err
    environ = {name: value for name, value in cluster.environ.items() if "_CQL_" not in name}
    of_gateways = {
        "PARLEY_GATEWAY_TOKEN_KEYS_FILE": out.strip(),
        "PARLEY_GATEWAY_LISTEN": "127.0.0.1:0",
        "PARLEY_GATEWAY_SLOT_SETTLE_SECONDS": "0",
    }

    def serve(role: str, **more: str) -> Parley:
        return Parley("serve", role, home=cluster.home, env=environ | (of_gateways if role == "gateway" else {}) | more)

    def ends(process: Parley, why: str) -> None:
        assert process.wait(60) == 2
        assert why in process.stderr.rest().splitlines()[-1]

    over = "Error: the cluster has gone on to log epoch 2, this process was told 1: start it with PARLEY_KAFKA_LOG_EPOCH=2."
    with serve("gateway") as gateway, serve("router") as router:
        for process in (gateway, router):
            process.expect("is ready on", 60)
        gateway.signal(signal.SIGSTOP)
        while (
            "gateways take commands" in (refused := cluster.parley("admin", "new-log-epoch", "2"))[2]
        ):  # until Consul has missed it
            assert router.running
        assert refused[0] == 0, refused
        ends(router, over)
        gateway.signal(signal.SIGCONT)
        ends(gateway, over)
    with serve("gateway") as gateway, serve("router") as router, serve("router", PARLEY_KAFKA_LOG_EPOCH="2") as newer:
        ends(gateway, over)
        ends(router, over)
        newer.expect("is ready on", 60)
    other = f"{cluster.prefix}b."
    code, _, err = run("topics", "apply", home=cluster.home, env=environ | {"PARLEY_KAFKA_PREFIX": other})
    assert code == 0, err
    try:
        with serve("router", PARLEY_KAFKA_PREFIX=other) as stranger:  # another cluster, whose prefix in Consul nobody changed
            ends(stranger, f"{cluster.prefix}' and not '")
    finally:
        asyncio.run(delete_topics(cluster.kafka, topics(1), epoch=1, prefix=other))


def test_what_an_undrained_cluster_leaves_behind_is_said_and_sent_again(cluster: Cluster) -> None:
    asyncio.run(cluster.accept(1, 2, 1))
    asyncio.run(cluster.apply(1, 2, 1))
    asyncio.run(cluster.accept(1, 2, 2, 3))
    code, out, err = cluster.parley("admin", "new-log-epoch", "2", "--undrained")
    assert (code, "store: --undrained: 2 commands" in out, "devices send them again" in out) == (0, True, True), (out, err)
    asyncio.run(cluster.accept(2, 2, 2, 3, 4))
    asyncio.run(cluster.apply(2, 2, 3))
    assert asyncio.run(cluster.bodies()) == [b"1", b"2", b"3", b"4"]
