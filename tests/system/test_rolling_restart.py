"""Every service of a cluster is stopped as an operator stops it, one after the other, while users talk: none sees an error."""

import asyncio
import signal
from collections.abc import Iterator
from contextlib import AsyncExitStack

import pytest
from cluster_process import ENGINES, ClusterProcess
from engine_fixtures import EnginesOfTheRun

from parley_cli.connection import local_token
from parley_client import MemoryStore, open_client
from parley_client.client import Client

pytestmark = pytest.mark.engines(*ENGINES)
PAIRS = 6
PAUSE_SECONDS = 0.05  # between a sender's messages
LAST_SECONDS = 60.0  # for what was sent last to arrive


class Pair:
    """One who sends and waits for each outcome, and one who reads."""

    def __init__(self, number: int, sender: Client, reader: Client) -> None:
        self.reader_id = f"reader-{number}"
        self.accepted: list[int] = []
        self.read: list[tuple[int, bytes]] = []
        self._sender = sender
        self._reader = reader

    async def send_until(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            ticket = await self._sender.send(to_user=self.reader_id, body=b"%d" % len(self.accepted))
            self.accepted.append((await ticket.accepted()).seq)
            await asyncio.sleep(PAUSE_SECONDS)

    async def wake_reader(self) -> None:
        """Send one more: a reader who has read all looks for the end only when something comes."""
        await self._sender.send(to_user=self.reader_id, body=b"last")

    async def read_all(self, all_sent: asyncio.Event) -> None:
        async for event in self._reader.events():
            self.read.append((event.seq, event.event.message.body))
            if all_sent.is_set() and len(self.read) >= len(self.accepted):
                return


@pytest.fixture
def cluster(engines: EnginesOfTheRun, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterProcess]:
    options = ["--gateways", "2", "--stores", "2", "--routers", "2"]
    with ClusterProcess(tmp_path_factory.mktemp("rolling") / "data", engines, *options) as cluster:
        yield cluster


def test_no_user_sees_an_error_while_every_service_is_restarted(cluster: ClusterProcess) -> None:
    asyncio.run(roll(cluster))


async def roll(cluster: ClusterProcess) -> None:
    stop, all_sent = asyncio.Event(), asyncio.Event()
    async with AsyncExitStack() as stack:

        async def client(user: str) -> Client:
            token = local_token(cluster.data, user, "")
            return await stack.enter_async_context(
                open_client(cluster.address, token=token, device_id="phone", store=MemoryStore())
            )  # fmt: skip

        pairs = [Pair(number, await client(f"sender-{number}"), await client(f"reader-{number}")) for number in range(PAIRS)]
        reading = [asyncio.ensure_future(pair.read_all(all_sent)) for pair in pairs]
        sending = [asyncio.ensure_future(pair.send_until(stop)) for pair in pairs]
        try:
            for name in sorted(cluster.processes()):
                before = [len(pair.accepted) for pair in pairs]
                pid = cluster.send(name, signal.SIGTERM)
                await asyncio.to_thread(cluster.wait_back, name, pid)
                await talked_since(pairs, before)
            stop.set()
            await asyncio.gather(*sending)  # raises what a user saw
            all_sent.set()
            for pair in pairs:
                await pair.wake_reader()
            async with asyncio.timeout(LAST_SECONDS):
                await asyncio.gather(*reading)
        finally:
            for task in (*reading, *sending):
                task.cancel()
            await asyncio.wait([*reading, *sending])
    for pair in pairs:
        sent = len(pair.accepted)
        assert pair.accepted == list(range(1, sent + 1))
        assert pair.read[:sent] == [(seq, b"%d" % (seq - 1)) for seq in pair.accepted]


async def talked_since(pairs: list[Pair], before: list[int]) -> None:
    """Wait until every pair has had messages accepted since: it goes on, for all."""
    async with asyncio.timeout(LAST_SECONDS):
        while not all(len(pair.accepted) > count for pair, count in zip(pairs, before, strict=True)):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
