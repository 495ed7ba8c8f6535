"""A conversation with very many events and a user with 5,000 conversations, in a cluster on Kafka and the database.

Both lie in the tables before anybody connects. What is asked of them is right, and costs what it costs in small ones: counted in
rows that a page reads, for times say little on a shared machine. Those are logged (`--log-cli-level=INFO`), of a million events
with `JDK_JAVA_OPTIONS= LARGE_EVENTS=1000000`.
"""

import asyncio
import logging
import os
import random
import re
import time
import urllib.request
from collections.abc import Coroutine, Iterator
from typing import Any

import grpc
import pytest
from bulk_rows import write_all, written_by
from cluster_process import ENGINES, ClusterProcess, own_names
from engine_fixtures import ENVIRON, EnginesOfTheRun
from prometheus_client import CollectorRegistry

from chassis.timeline_cql import open_cql_timeline
from chassis.timeline_cql_settings import CqlSettings
from parley.api.v1 import messaging_service_pb2 as api
from parley.api.v1.commands_pb2 import Command, SendMessage
from parley.api.v1.messaging_service_pb2_grpc import MessagingServiceStub
from parley_cli.bench_sync import _held
from parley_cli.connection import local_token
from parley_client import MemoryStore, open_client
from parley_protocol.digests import digests_of
from parley_protocol.ids import direct_conversation_id
from services.store.rows import TABLES
from services.store.schema import SCHEMA

_log = logging.getLogger(__name__)
pytestmark = pytest.mark.engines(*ENGINES)
NAMES = own_names()
EVENTS = int(ENVIRON.get("LARGE_EVENTS", "60000"))
FEW = 1_000
CONVERSATIONS = 5_000
PAGE, PAGES = 50, 40
TEST_SECONDS = 1_200.0  # a failing test waits for it, and who asks for a million events


@pytest.fixture(scope="module")
def cluster(engines: EnginesOfTheRun, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterProcess]:
    one_each = ("--gateways", "1", "--stores", "1", "--routers", "1")
    with ClusterProcess(tmp_path_factory.mktemp("large") / "data", engines, *one_each, **NAMES) as cluster:
        asyncio.run(fill(CqlSettings(hosts=engines.address("scylladb"), keyspace=NAMES["PARLEY_CQL_KEYSPACE"])))
        yield cluster


async def fill(settings: CqlSettings) -> None:
    now_ms, begin = int(time.time() * 1000), time.monotonic()
    opening = open_cql_timeline(settings, TABLES, schema_version=len(SCHEMA), metrics=CollectorRegistry())
    async with opening as timeline:
        await write_all(timeline, written_by("alice", "bob", EVENTS, now_ms))
        await write_all(timeline, written_by("alice", "carol", FEW, now_ms))
        friends = (written_by(f"friend-{number}", "dora", 1, now_ms - number) for number in range(CONVERSATIONS))
        await write_all(timeline, (row for rows in friends for row in rows))
    _log.info(f"filled in {time.monotonic() - begin:.1f} s")


class Asking:
    """A user's calls."""

    def __init__(self, cluster: ClusterProcess, channel: grpc.aio.Channel, user: str) -> None:
        self._stub = MessagingServiceStub(channel)
        self._metadata = (("authorization", f"Bearer {local_token(cluster.data, user, '')}"),)

    async def page(self, peer: str, **where: int) -> api.ListEventsResponse:
        request = api.ListEventsRequest(conversation_id=direct_conversation_id("alice", peer), page_size=PAGE, **where)
        return await self._stub.ListEvents(request, metadata=self._metadata)

    async def submit(self, to: str) -> int:
        command = Command(request_id=os.urandom(16), to_user_id=to, send_message=SendMessage(body=b"new"))
        request = api.SubmitRequest(device_id="bot", command=command)
        return (await self._stub.Submit(request, metadata=self._metadata)).accepted.seq

    async def sync(self, digests: list[int]) -> list[Any]:
        """Return all rows of a Sync."""
        request, found = api.SyncRequest(page_size=200, last_events_count=1, digests=digests), []
        while True:
            try:
                answer = await self._stub.Sync(request, metadata=self._metadata)
            except grpc.aio.AioRpcError as error:  # as the SDK does, where a crowded machine takes longer than a gateway waits
                if error.code() is not grpc.StatusCode.UNAVAILABLE:
                    raise
                continue
            found += answer.conversations
            request.page_token = answer.next_page_token
            if not answer.next_page_token:
                return found


def rows_read(cluster: ClusterProcess) -> float:
    """Return how many rows the store has read from the tables."""
    (store,) = cluster.processes("store").values()
    with urllib.request.urlopen(f"http://{store.addresses['metrics']}/metrics", timeout=10) as answer:
        found = re.search(r'^parley_timeline_rows_total\{[^}]*"read"\} (\S+)$', answer.read().decode(), re.MULTILINE)
    assert found
    return float(found[1])


def bounded(test: Coroutine[Any, Any, None]) -> None:
    """Run on a loop of its own: filling takes longer than an async test may."""

    async def run() -> None:
        async with asyncio.timeout(TEST_SECONDS):
            await test

    asyncio.run(run())


def test_a_page_of_a_huge_conversation_is_right_and_costs_what_one_of_a_small_one_does(cluster: ClusterProcess) -> None:
    async def pages(asking: Asking, peer: str, size: int) -> float:
        rng, seconds, before = random.Random(size), [], rows_read(cluster)
        for after in [0, size - PAGE, *(rng.randrange(size - PAGE) for _ in range(PAGES - 2))]:
            began = time.monotonic()
            found = await asking.page(peer, after_seq=after)
            seconds.append(time.monotonic() - began)
            assert [event.seq for event in found.events] == list(range(after + 1, after + PAGE + 1))
            assert (found.head_seq, found.more) == (size, after + PAGE < size)
        seconds.sort()
        _log.info(f"{size} events: p50 {seconds[PAGES // 2] * 1e3:.1f} ms, p99 {seconds[PAGES * 99 // 100] * 1e3:.1f} ms a page")
        return (rows_read(cluster) - before) / PAGES

    async def test() -> None:
        async with grpc.aio.insecure_channel(cluster.address) as channel:
            alice, bob = Asking(cluster, channel, "alice"), Asking(cluster, channel, "bob")
            large, small = await pages(alice, "bob", EVENTS), await pages(alice, "carol", FEW)
            assert large == pytest.approx(small, abs=2)
            assert small == pytest.approx(PAGE + 2, abs=2)  # the head, one's own row, the events
            assert [event.seq for event in (await bob.page("bob", before_seq=0)).events][-1] == EVENTS
            assert await alice.submit("bob") == EVENTS + 1
            (row,) = await bob.sync([])
            assert (row.head_seq, row.unread_count, row.last_events[-1].seq) == (EVENTS + 1, EVENTS + 1, EVENTS + 1)

            token, store = local_token(cluster.data, "bob", ""), MemoryStore()
            async with open_client(cluster.address, token=token, device_id="phone", store=store) as phone:
                await phone.caught_up()
                assert await alice.submit("bob") == EVENTS + 2
                async for event in phone.events():
                    if event.seq == EVENTS + 2:
                        break

    bounded(test())


def test_a_user_with_5_000_conversations_gets_all_of_them_and_then_what_changed(cluster: ClusterProcess) -> None:
    async def test() -> None:
        async with grpc.aio.insecure_channel(cluster.address) as channel:
            dora, friend = Asking(cluster, channel, "dora"), Asking(cluster, channel, "friend-7")
            before, began = rows_read(cluster), time.monotonic()
            found = await dora.sync([])
            _log.info(f"{len(found)} conversations in {time.monotonic() - began:.2f} s")
            assert {row.peer_user_id for row in found} == {f"friend-{number}" for number in range(CONVERSATIONS)}
            assert len(found) == CONVERSATIONS, "each once"
            times = [row.last_time.ToMilliseconds() for row in found]
            assert times[:200] == sorted(times, reverse=True)[:200], "the latest first"
            assert rows_read(cluster) - before < 8 * CONVERSATIONS, "the inbox twice; head, members and event of each"
            held = {row.conversation_id: _held(row) for row in found}
            began = time.monotonic()
            assert await dora.sync(digests_of(held.values())) == []
            _log.info(f"nothing changed: {(time.monotonic() - began) * 1e3:.0f} ms")

            assert await friend.submit("dora") == 2
            began = time.monotonic()
            found = await dora.sync(digests_of(held.values()))
            _log.info(f"one changed: {len(found)} rows in {(time.monotonic() - began) * 1e3:.0f} ms")
            assert 2 in [row.head_seq for row in found]
            assert len(found) < CONVERSATIONS / 20, "one bucket of 64"

            token = local_token(cluster.data, "dora", "")
            async with open_client(cluster.address, token=token, device_id="phone", store=MemoryStore()) as phone:
                began = time.monotonic()
                await phone.caught_up()
                _log.info(f"a device is caught up after {time.monotonic() - began:.1f} s")
                assert len(phone.conversations()) == CONVERSATIONS
                assert await friend.submit("dora") == 3
                async for event in phone.events():
                    if event.seq == 3:
                        break

    bounded(test())
