"""`parley bench recovery`: a process of a cluster is killed under its users, and how long they feel it.

The users are devices of the SDK, which reconnect and catch up as any app's do; only connections are shared by many, as that many
sockets would measure this machine's. A few of them write to all others, at a steady rate whatever happens.
"""

import asyncio
import os
import random
import signal
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from parley_cli.bench_report import percentiles_ms, progress
from parley_cli.bench_target import Target
from parley_cli.failures import CommandError
from parley_client import CaughtUp, Client, ConnectionChanged, ConnectionState, MemoryStore, open_client
from parley_client.tickets import Ticket
from parley_cluster.state_file import RunningProcess, read_state

_WRITERS = 8
_CONNECT_PARALLEL = 64  # devices that connect at a time, at first: gateways admit a bounded number a second
_BODY_BYTES = 100
_SHARED_BY = 50  # devices on one connection
_CALM_SECONDS = 2.0  # of traffic before the kill
_CHANNEL_OPTIONS = (
    ("grpc.use_local_subchannel_pool", 1),  # else all would share one connection
    # A shared connection is not thrown away by the device that sees it fail, so it tries again by itself, soon.
    ("grpc.initial_reconnect_backoff_ms", 100),
    (
        "grpc.min_reconnect_backoff_ms",
        5_000,
    ),  # what a connection may take to come about; a refused one is tried again after the others
    ("grpc.max_reconnect_backoff_ms", 500),
)


@dataclass(frozen=True)
class RecoveryLoad:
    """How many devices, what is killed, how many messages a second, and for how long after the kill at least and at most."""

    users: int
    role: str
    rate: float
    seconds: float
    patience_seconds: float


class _Message:
    """One message: when it was due, who answers for it, and when its recipient showed it. All times are monotonic."""

    def __init__(self, due: float, ticket: Ticket) -> None:
        self.due = due
        self.ticket = ticket
        self.shown_at = 0.0
        self.shown = asyncio.Event()


class _User:
    """A device and what happened to it."""

    def __init__(self, client: Client, messages: dict[bytes, _Message]) -> None:
        self.client = client
        self._messages = messages  # by body
        self.back = asyncio.Event()
        self.cut_at = 0.0  # 0: it was never cut
        self.back_at = 0.0

    async def follow(self) -> None:
        """Note when the connection is lost, and when all that was missed is there again."""
        with self.client.changes() as notices:
            async for notice in notices:
                if isinstance(notice, CaughtUp):
                    if self.cut_at and not self.back_at:  # moved on later, to a gateway that is back itself, it was not away again
                        self.back_at = time.monotonic()
                    self.back.set()
                elif isinstance(notice, ConnectionChanged) and notice.state is not ConnectionState.CONNECTED and self.back.is_set():
                    self.back.clear()
                    self.cut_at = self.cut_at or time.monotonic()

    async def read(self) -> None:
        """Take every event, as an app does."""
        async for event in self.client.events():
            if not event.own and (message := self._messages.get(event.body)) is not None:
                message.shown_at = time.monotonic()
                message.shown.set()


class _Crowd:
    """All devices and their connections; made by `_open_crowd`."""

    def __init__(self, target: Target, count: int, group: asyncio.TaskGroup) -> None:
        self._target = target
        self._group = group
        self._channels: dict[str, list[grpc.aio.Channel]] = {}
        self._count = -(-count // _SHARED_BY)
        self._next = 0
        self._gate = asyncio.Semaphore(_CONNECT_PARALLEL)
        self._holding: list[asyncio.Task[None]] = []
        self.messages: dict[bytes, _Message] = {}

    @asynccontextmanager
    async def _channel_to(self, address: str) -> AsyncIterator[grpc.aio.Channel]:
        """Hand out a connection that others use, too; all are closed at the end."""
        if address not in self._channels:
            self._channels[address] = [grpc.aio.insecure_channel(address, options=_CHANNEL_OPTIONS) for _ in range(self._count)]
        self._next += 1
        yield self._channels[address][self._next % self._count]

    async def connect(self, names: Sequence[str]) -> list[_User]:
        """Connect devices of users and wait until all have caught up."""
        return list(await asyncio.gather(*map(self._connect, names)))

    async def _connect(self, name: str) -> _User:
        async with self._gate:
            opened: asyncio.Future[Client] = asyncio.get_running_loop().create_future()
            self._holding.append(self._group.create_task(self._hold(name, opened)))
            user = _User(await opened, self.messages)
            self._holding += [self._group.create_task(user.follow()), self._group.create_task(user.read())]
            await user.client.caught_up()
            user.back.set()  # it may have been before `follow` looked
            return user

    async def _hold(self, name: str, opened: asyncio.Future[Client]) -> None:
        async with open_client(
            self._target.address, token=self._target.token_for(name), device_id="d1", store=MemoryStore(),
            open_channel=self._channel_to, rng=self._target.rng,
        ) as client:  # fmt: skip
            opened.set_result(client)
            await asyncio.Event().wait()

    async def close(self) -> None:
        """Let all devices go, then their connections."""
        for task in self._holding:
            task.cancel()
        if self._holding:
            await asyncio.wait(self._holding)
        for channels in self._channels.values():
            for channel in channels:
                await channel.close()


@asynccontextmanager
async def _open_crowd(target: Target, count: int) -> AsyncIterator[_Crowd]:
    async with asyncio.TaskGroup() as group:
        crowd = _Crowd(target, count, group)
        try:
            yield crowd
        finally:
            await crowd.close()


async def measure_recovery(target: Target, data_dir: Path, load: RecoveryLoad) -> dict[str, Any]:
    """Kill a process of the cluster of a data folder, and return how long it was felt."""
    victim = _victim(data_dir, load.role)
    async with _open_crowd(target, load.users + _WRITERS) as crowd:
        progress(f"{load.users} users connect")
        names = [target.user("u", index) for index in range(load.users)]
        users = await crowd.connect([*names, *(target.user("w", index) for index in range(_WRITERS))])
        progress(f"{load.rate:g} messages a second; in {_CALM_SECONDS:g} s {victim.name} is killed")
        sending = asyncio.create_task(_send(users[load.users :], names, load.rate, crowd.messages, target.rng))
        try:
            await asyncio.sleep(_CALM_SECONDS)
            os.kill(victim.pid, signal.SIGKILL)
            killed_at = time.monotonic()
            try:
                async with asyncio.timeout(load.patience_seconds):
                    await _wait_recovered(users, sending, crowd.messages, load.seconds)
            except TimeoutError:
                progress(f"not all is as before after {load.patience_seconds:g} s")
            return _result(victim, killed_at, users, list(crowd.messages.values()))
        finally:
            sending.cancel()
            await asyncio.wait([sending])


async def _wait_recovered(
    users: Sequence[_User], sending: asyncio.Task[None], messages: Mapping[bytes, _Message], seconds: float
) -> None:
    """Go on for a while, until everybody is back; then send no more, and wait until all that was sent is shown."""
    await asyncio.wait([sending], timeout=seconds)
    for user in users:
        await user.back.wait()
    sending.cancel()
    await asyncio.wait([sending])
    for message in messages.values():
        await message.ticket.accepted()
        await message.shown.wait()


async def _send(writers: list[_User], names: list[str], rate: float, messages: dict[bytes, _Message], rng: random.Random) -> None:
    """Send to all users in turn until cancelled. When a message is due does not depend on what became of those before."""
    due = time.monotonic()
    while True:
        body, index = rng.randbytes(_BODY_BYTES), len(messages)
        ticket = await writers[index % len(writers)].client.send(to_user=names[index % len(names)], body=body)
        messages[body] = _Message(due, ticket)
        due += 1 / rate
        await asyncio.sleep(max(0.0, due - time.monotonic()))


def _victim(data_dir: Path, role: str) -> RunningProcess:
    for process in read_state(data_dir):
        if process.role == role:
            return process
    raise CommandError(f"no {role} of a cluster has that data folder: measure a running `parley up --distributed`.")


def _result(victim: RunningProcess, killed_at: float, users: Sequence[_User], messages: Sequence[_Message]) -> dict[str, Any]:
    cut = [user for user in users if user.cut_at]
    away = [user.back_at - killed_at for user in cut if user.back_at]
    return {
        "killed": victim.name,
        "users": len(users),
        "cut": len(cut),
        "not_back": sum(not user.back.is_set() for user in users),
        "back_ms": percentiles_ms(away),
        "messages": len(messages),
        "unanswered": sum(not message.ticket.done for message in messages),
        "lost": sum(message.ticket.done and not message.shown.is_set() for message in messages),
        "delivery_latency_ms": percentiles_ms([message.shown_at - message.due for message in messages if message.shown.is_set()]),
    }
