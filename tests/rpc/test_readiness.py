"""Health that means it: live, ready, and why not, over HTTP and gRPC."""

import asyncio
import json
import random
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
from gateway_world import KEY, until
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

from chassis.channels import open_channel
from chassis.clock import SystemClock
from chassis.embedded import open_embedded_engines
from chassis.eventlog import LogEntry, LogUnavailableError
from chassis.inprocess import InProcessChannel, InProcessServer
from chassis.metrics import open_metrics_server
from chassis.readiness import PROCESS, NotReadyError, open_readiness
from chassis.server import open_server
from chassis.timeline import TimelineUnavailableError
from parley.log.v1.records_pb2 import CommandRecord
from parley.store.v1.store_service_pb2 import SyncRequest
from parley.store.v1.store_service_pb2_grpc import StoreServiceStub
from parley_protocol.topics import COMMANDS, DEAD_LETTERS, EVENTS, OFFLINE
from services.gateway.app import open_gateway
from services.gateway.config import GatewaySettings
from services.gateway.tokens import KeyRing, TokenVerifier, verifying_key
from services.router.app import open_router
from services.router.config import RouterSettings
from services.store.app import open_store
from services.store.config import StoreSettings
from services.store.rows import TABLES
from services.store.state import Position
from services.store.stops import SKIPPED, write_stop

SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
DEADLINE_SECONDS = 10


class Engine:
    """Something that answers, refuses or hangs, as the test says."""

    def __init__(self):
        self.error = None
        self.hangs = False

    async def ping(self):
        if self.hangs:
            await asyncio.Event().wait()
        if self.error is not None:
            raise self.error


@pytest.fixture
async def readiness():
    async with open_readiness(interval_seconds=0.01, timeout_seconds=0.1) as readiness:
        yield readiness


@pytest.fixture
async def http(readiness):
    async with open_metrics_server("127.0.0.1:0", CollectorRegistry(), readiness) as running:
        yield running.address


async def get(address, path):
    """Return the status code and the body."""
    host, port = address.rsplit(":", 1)
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    await writer.wait_closed()
    return int(head.split()[1]), body


async def turned(readiness, ready):
    async with asyncio.timeout(DEADLINE_SECONDS):
        await readiness.wait_until(ready)


async def test_a_process_that_starts_is_live_and_not_ready(readiness, http):
    assert await get(http, "/livez") == (200, b"live\n")
    status, body = await get(http, "/healthz")
    assert (status, json.loads(body)) == (503, {"ready": False, "components": {PROCESS: "starting"}})


async def test_it_is_ready_when_everything_has_answered(readiness, http):
    log, tables = Engine(), Engine()
    tables.hangs = True
    readiness.watch({"log": log.ping, "tables": tables.ping})
    status, body = await get(http, "/healthz")
    assert status == 503
    assert json.loads(body)["components"]["tables"] == "not asked yet"
    tables.hangs = False
    await turned(readiness, True)
    status, body = await get(http, "/healthz")
    assert (status, json.loads(body)) == (200, {"ready": True, "components": {PROCESS: "ok", "log": "ok", "tables": "ok"}})


@pytest.mark.parametrize(
    ("error", "hangs", "reason"),
    [
        (LogUnavailableError("no broker at 127.0.0.1:9092"), False, "no broker at 127.0.0.1:9092"),
        (TimelineUnavailableError(), False, "TimelineUnavailableError"),
        (ConnectionRefusedError("refused"), False, "refused"),
        (None, True, "no answer within 0.1 s"),
    ],
)
async def test_what_an_engine_that_is_away_says_is_told_until_it_is_back(readiness, http, error, hangs, reason):
    engine = Engine()
    readiness.watch({"engine": engine.ping})
    await turned(readiness, True)
    engine.error, engine.hangs = error, hangs
    await turned(readiness, False)
    status, body = await get(http, "/healthz")
    assert (status, json.loads(body)["components"]) == (503, {PROCESS: "ok", "engine": reason})
    assert (await get(http, "/livez"))[0] == 200
    engine.error, engine.hangs = None, False
    await turned(readiness, True)
    assert (await get(http, "/healthz"))[0] == 200


async def test_a_start_may_wait_for_the_first_answers_whatever_they_are(readiness):
    slow, broken = Engine(), Engine()
    slow.hangs = True
    broken.error = NotReadyError("a partition stopped")
    readiness.watch({"slow": slow.ping, "broken": broken.ping})
    async with asyncio.timeout(DEADLINE_SECONDS):
        await readiness.wait_asked()
    assert readiness.problems == {PROCESS: "", "slow": "no answer within 0.1 s", "broken": "a partition stopped"}


async def test_a_check_that_is_broken_is_told_and_logged_once(readiness):
    engine = Engine()
    engine.error = ZeroDivisionError("a bug")
    with capture_logs() as logs:
        readiness.watch({"engine": engine.ping})
        await until(lambda: logs)
    assert not readiness.ready
    assert "ZeroDivisionError" in readiness.problems["engine"]
    assert [entry["event"] for entry in logs] == ["task failed"]


async def test_health_checks_over_grpc_say_the_same(readiness):
    engine = Engine()
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(
            open_server(bind="127.0.0.1:0", register=lambda _: None, readiness=readiness, stop_grace_seconds=0.1)
        )
        channel = await stack.enter_async_context(open_channel(server.address))
        watching = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        assert (await watching.read()).status == NOT_SERVING
        readiness.watch({"engine": engine.ping})
        assert (await watching.read()).status == SERVING
        engine.error = LogUnavailableError()
        assert (await watching.read()).status == NOT_SERVING
        engine.error = None
        assert (await watching.read()).status == SERVING
        readiness.report(PROCESS, "draining")
        assert (await watching.read()).status == NOT_SERVING
        watching.cancel()


# What each service can't work without


class CutLog:
    """A log whose ping the test breaks."""

    def __init__(self, inner):
        self._inner = inner
        self.engine = Engine()
        self.ping = self.engine.ping

    def __getattr__(self, name):
        return getattr(self._inner, name)


class CutTimeline:
    """Tables whose reads the test breaks."""

    def __init__(self, inner):
        self._inner = inner
        self.engine = Engine()

    async def read_points(self, points):
        await self.engine.ping()
        return await self._inner.read_points(points)

    def __getattr__(self, name):
        return getattr(self._inner, name)


@asynccontextmanager
async def open_service(name, log, timeline, registry):
    clock, metrics, rng = SystemClock(), CollectorRegistry(), random.Random(1)
    channel = InProcessChannel(InProcessServer())
    if name == "store":
        settings = StoreSettings(skip_look_seconds=0.05)
        service = open_store(settings, log=log, timeline=timeline, clock=clock, metrics=metrics, rng=rng)
    elif name == "router":
        service = open_router(
            RouterSettings(), log=log, registry=registry, store_channel=channel, open_gateway_channel=lambda _: channel,
            clock=clock, metrics=metrics, rng=rng,
        )  # fmt: skip
    else:
        verifier = TokenVerifier(KeyRing({"": verifying_key(KEY.public_key())}), clock, development=True)
        service = open_gateway(
            GatewaySettings(), log=log, store_channel=channel, router_channel=channel, verifier=verifier, clock=clock,
            metrics=metrics, rng=rng,
        )  # fmt: skip
    async with service as service:
        yield service


@pytest.mark.parametrize(("service", "engine"), [("store", "log"), ("store", "tables"), ("router", "log"), ("gateway", "log")])
async def test_a_service_is_not_ready_without_its_engine_and_says_which(readiness, http, service, engine):
    topics = {COMMANDS: 1, EVENTS: 1, OFFLINE: 1, DEAD_LETTERS: 1}
    async with open_embedded_engines(
        None, topics=topics, durable_topics=(COMMANDS,), tables=TABLES, clock=SystemClock()
    ) as engines:
        log, timeline = CutLog(engines.log), CutTimeline(engines.timeline)
        async with open_service(service, log, timeline, engines.registry) as running:
            readiness.watch(running.probes)
            await turned(readiness, True)
            if engine == "log":
                log.engine.error = LogUnavailableError("the broker is away")
            else:
                timeline.engine.error = TimelineUnavailableError("the database is away")
            await turned(readiness, False)
            status, body = await get(http, "/healthz")
            assert status == 503
            assert json.loads(body)["components"][engine].endswith("is away")


async def test_a_store_whose_partition_stopped_is_not_ready_says_why_and_is_still_read(readiness, http):
    newer = CommandRecord(rules_version=99, conversation_id="c", user_id="alice", device_id="d1")
    after = LogEntry(b"c", b"\xff")  # would be a dead letter
    async with open_embedded_engines(
        None, topics={COMMANDS: 2, EVENTS: 2, DEAD_LETTERS: 2}, durable_topics=(COMMANDS,), tables=TABLES, clock=SystemClock()
    ) as engines:
        async with open_service("store", engines.log, engines.timeline, engines.registry) as store:
            readiness.watch(store.probes)
            await turned(readiness, True)
            await engines.log.append(COMMANDS, 0, [LogEntry(b"c", newer.SerializeToString())])
            await turned(readiness, False)
            status, body = await get(http, "/healthz")
            assert status == 503
            assert "partition 0 stopped at record 1/0/0: " in (why := json.loads(body)["components"]["partitions"])
            assert "rules_version 99" in why
            await engines.log.append(COMMANDS, 0, [after])
            await engines.log.append(COMMANDS, 1, [after])
            async with asyncio.timeout(DEADLINE_SECONDS), engines.log.open_consumer(DEAD_LETTERS, "test") as letters:
                assert (await letters.poll(10)).partition == 1  # the other one goes on
            server = InProcessServer()
            store.register(server)
            await StoreServiceStub(InProcessChannel(server)).Sync(SyncRequest(user_id="alice"), timeout=DEADLINE_SECONDS)
            await server.stop(None)
            assert [record async for record in engines.log.records(DEAD_LETTERS, 0)] == []
        async with open_service("store", engines.log, engines.timeline, engines.registry) as store:  # not lost: it comes again
            readiness.watch(store.probes)
            await turned(readiness, False)
            async with asyncio.timeout(DEADLINE_SECONDS):
                await until(lambda: "rules_version 99" in readiness.problems["partitions"])
            await write_stop(engines.timeline, Position(1, 0, 0), SKIPPED, "no use")
            await turned(readiness, True)
