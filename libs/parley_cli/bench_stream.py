"""Devices as lean as they can be: raw gRPC streams with generated messages, many to a process.

They keep the protocol (numbered commands, Retry, heartbeats, gaps) and nothing else: no storage, no reconnect. What they cost is
not the server's, but the less they cost, the more of the machine is left to it.
"""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import grpc

from parley.api.v1.commands_pb2 import Command, Retry
from parley.api.v1.events_pb2 import Event
from parley.api.v1.messaging_service_pb2 import (
    ConnectRequest,
    ConnectResponse,
    GoAwayReason,
    LocateRequest,
    ServerBatch,
    Skip,
    Welcome,
)
from parley.api.v1.messaging_service_pb2_grpc import MessagingServiceStub
from parley_cli.failures import CommandError

CHANNEL_COUNT = 20  # connections that the streams share, as in the experiment that the figures are compared with
HELLO_SECONDS = 30.0
_CONNECT_PARALLEL = 64  # handshakes at a time: more only wait in the server's accept queue
_CONNECT_METHOD = "/parley.api.v1.MessagingService/Connect"
_CHANNEL_OPTIONS = (
    ("grpc.use_local_subchannel_pool", 1),  # else all channels would share one connection
    ("grpc.max_receive_message_length", 16 << 20),
)

BatchHandler = Callable[[ServerBatch], None]


class StreamError(CommandError):
    """The server said goodbye, refused a frame, or went away: nothing that a benchmark expects."""


class Stream:
    """One device's Connect stream. `on_batch` is called with every batch and must not block; Retry is handled here.

    Commands are numbered by the caller, from 1 without holes: the number is the low half of the request id, so that no table is
    needed to find a command by its outcome.
    """

    def __init__(self, channel: grpc.aio.Channel, user_id: str, device_id: str, token: str) -> None:
        self.user_id = user_id
        self.device_id = device_id
        self.on_batch: BatchHandler = _ignore
        self.retries = 0
        self.welcome = Welcome()
        self.written_at = 0.0
        self._metadata = (("authorization", f"Bearer {token}"),)
        self._channel = channel
        self._call: grpc.aio.StreamStreamCall[bytes, bytes]
        self._unresolved: dict[int, Command] = {}
        self._queue: deque[tuple[int, Command]] = deque()
        self._acks: dict[str, int] = {}
        self._skips: list[Skip] = []
        self._writing = self._closed = False
        self._resend: asyncio.TimerHandle | None = None
        self._flushes = set[asyncio.Task[None]]()

    async def open(self) -> None:
        """Say Hello and wait for Welcome."""
        connect: grpc.aio.StreamStreamMultiCallable[bytes, bytes] = self._channel.stream_stream(_CONNECT_METHOD)
        self._call = connect(metadata=self._metadata)
        hello = ConnectRequest()
        hello.hello.device_id = self.device_id
        hello.hello.client = "parley bench"
        try:
            async with asyncio.timeout(HELLO_SECONDS):
                await self._call.write(hello.SerializeToString())
                raw = await self._call.read()
        except grpc.aio.AioRpcError as error:
            raise StreamError(f"{self.user_id} was refused: {error.code().name} {error.details()}") from error
        except TimeoutError:
            self._call.cancel()
            raise StreamError(f"{self.user_id} got no Welcome within {HELLO_SECONDS:.0f} s") from None
        if not isinstance(raw, bytes):
            raise StreamError(f"{self.user_id}: the stream ended before Welcome ({await self._call.code()})")
        response = ConnectResponse.FromString(raw)
        if not response.HasField("welcome"):
            raise StreamError(f"{self.user_id} got {_describe(response)} instead of Welcome")
        self.welcome = response.welcome
        self.written_at = time.monotonic()

    async def run(self) -> None:
        """Read until the stream ends, which is an error; cancel to stop."""
        read, parse = self._call.read, ConnectResponse.FromString
        try:
            while isinstance(raw := await read(), bytes):
                response = parse(raw)
                if not response.HasField("batch"):
                    raise StreamError(f"{self.user_id}: {_describe(response)}")
                batch = response.batch
                if batch.outcomes:
                    self._resolve(batch)
                self.on_batch(batch)
                if self._queue and not self._writing:
                    await self.flush()
        except grpc.aio.AioRpcError as error:
            raise StreamError(f"{self.user_id}: the stream broke, {error.code().name} {error.details()}") from error
        raise StreamError(f"{self.user_id}: the stream ended, {(await self._call.code()).name} {await self._call.details()}")

    def send(self, number: int, command: Command) -> None:
        """Queue a command; `flush`, or the end of a read, writes it."""
        self._unresolved[number] = command
        self._queue.append((number, command))

    def ack(self, conversation_id: str, seq: int) -> None:
        """Queue an acknowledgement: all up to seq is delivered and read."""
        self._acks[conversation_id] = seq

    @property
    def has_acks(self) -> bool:
        return bool(self._acks)

    async def flush(self, *, heartbeat: bool = False) -> None:
        """Write what is queued. Whoever writes already takes along what is queued meanwhile: gRPC allows one write at a time."""
        if self._writing or self._closed:
            return
        self._writing = True
        try:
            while self._queue or self._acks or self._skips or heartbeat:
                heartbeat = False
                await self._call.write(self._next_frame().SerializeToString())
                self.written_at = time.monotonic()
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if not self._closed or (task is not None and task.cancelling()):
                raise  # else it was the call that was cancelled, by `close`, not we
        finally:
            self._writing = False

    def close(self) -> None:
        """Hang up at once."""
        self._closed = True
        if self._resend is not None:
            self._resend.cancel()
        self._call.cancel()

    def _next_frame(self) -> ConnectRequest:
        request = ConnectRequest()
        batch = request.batch
        if self._skips:
            batch.skips.extend(self._skips)
            self._skips.clear()
            return request  # alone: what a skip lets through comes after it
        if self._queue:
            number, command = self._queue.popleft()
            batch.first_command_number = number
            commands, limit = [command], self.welcome.limits.commands_per_frame or 1
            while self._queue and len(commands) < limit and self._queue[0][0] == number + len(commands):
                commands.append(self._queue.popleft()[1])
            batch.commands.extend(commands)
        for conversation_id, seq in self._acks.items():
            batch.acks.add(conversation_id=conversation_id, delivered_seq=seq, read_seq=seq)
        self._acks.clear()
        if not batch.commands and not batch.acks:
            batch.heartbeat.SetInParent()
        return request

    def _resolve(self, batch: ServerBatch) -> None:
        for outcome in batch.outcomes:
            if outcome.HasField("retry"):
                self._hold(outcome.retry)
            else:
                self._unresolved.pop(int.from_bytes(outcome.request_id[8:], "big"), None)

    def _hold(self, retry: Retry) -> None:
        """Send the refused command and all later ones again after the delay; what was taken meanwhile comes as a duplicate."""
        self.retries += 1
        if self._resend is None:
            delay = retry.delay.ToNanoseconds() / 1e9
            self._resend = asyncio.get_running_loop().call_later(delay, self._send_again, retry.number, retry.conversation_id)

    def _send_again(self, first: int, conversation_id: str) -> None:
        self._resend = None
        if first not in self._unresolved:  # a resend was refused whose first sending had been taken: do not wait for it again
            self._skips.append(Skip(number=first, conversation_id=conversation_id))
        queued = {number for number, _ in self._queue}
        again = [(number, command) for number, command in self._unresolved.items() if number >= first and number not in queued]
        self._queue.extendleft(sorted(again, key=lambda item: item[0], reverse=True))
        flush = asyncio.create_task(self.flush(), name=f"resend-{self.user_id}")
        self._flushes.add(flush)
        flush.add_done_callback(self._flushes.discard)


class Follower:
    """One device's place in one conversation: in order, each once, gaps noticed. Pure."""

    __slots__ = ("early", "have", "repeated")

    def __init__(self, have: int = 0) -> None:
        self.have = have
        self.repeated = 0  # came again: allowed on the wire, dropped by clients
        self.early: dict[int, Event | None] = {}  # beyond a gap; None: an own command's place

    def take(self, events: Iterable[Event], own_seqs: Iterable[int] = ()) -> list[Event]:
        """Take what came, and the places of own commands, which come as outcomes; return what can be shown now, in order."""
        ready: list[Event] = []
        for seq in own_seqs:
            self._place(seq, None, ready)
        for event in events:
            self._place(event.seq, event, ready)
        return ready

    def _place(self, seq: int, event: Event | None, ready: list[Event]) -> None:
        if seq <= self.have or seq in self.early:
            self.repeated += 1
            return
        if seq > self.have + 1:
            self.early[seq] = event
            return
        while True:
            self.have = seq
            if event is not None:
                ready.append(event)
            seq += 1
            if seq not in self.early:
                return
            event = self.early.pop(seq)


class Fleet:
    """Streams, channels and tasks of one benchmark; made by `open_fleet`."""

    def __init__(self, addresses: str, token_for: Callable[[str], str], channel_count: int, group: asyncio.TaskGroup) -> None:
        self._addresses = addresses.split(",")  # of all gateways of a cluster
        self._channels: dict[str, list[grpc.aio.Channel]] = {}
        self._channel_count = channel_count
        self.errors: list[str] = []
        self._token_for = token_for
        self._group = group
        self._readers: dict[Stream, asyncio.Task[None]] = {}
        self._tasks = set[asyncio.Task[None]]()
        self._beating = False
        self._next = 0

    def spawn(self, coroutine: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        """Start a task that ends with the fleet; its failure ends the fleet."""
        task = self._group.create_task(coroutine, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    @property
    def channels(self) -> list[grpc.aio.Channel]:
        """Return the channels to the first gateway."""
        return self._channels_to(self._addresses[0])

    def _channels_to(self, address: str) -> list[grpc.aio.Channel]:
        if address not in self._channels:
            self._channels[address] = [
                grpc.aio.insecure_channel(address, options=_CHANNEL_OPTIONS) for _ in range(self._channel_count)
            ]
        return self._channels[address]

    @property
    def connected(self) -> int:
        """How many streams are open."""
        return len(self._readers)

    async def connect(self, users: Sequence[str], device_id: str, *, tolerate: bool = False) -> list[Stream]:
        """Open a stream for each user, some at a time, and begin to read them.

        The first that fails, now or later, ends all; `tolerate` counts it among `errors` instead.
        """
        opened: list[Stream] = []
        for start in range(0, len(users), _CONNECT_PARALLEL):
            some = users[start : start + _CONNECT_PARALLEL]
            homes = await asyncio.gather(*map(self._locate, some))
            streams = [self._stream(user, device_id, home) for user, home in zip(some, homes, strict=True)]
            failures = await asyncio.gather(*(stream.open() for stream in streams), return_exceptions=True)
            for stream, failure in zip(streams, failures, strict=True):
                if failure is None:
                    self._readers[stream] = self._group.create_task(self._read(stream, tolerate), name=f"read-{stream.user_id}")
                    opened.append(stream)
                elif tolerate and isinstance(failure, StreamError):
                    self.errors.append(failure.message)
                else:
                    raise failure
        if not self._beating and opened:
            self._beating = True
            self.spawn(self._beat(opened[0].welcome.heartbeat_interval.ToNanoseconds() / 1e9), "heartbeats")
        return opened

    async def _read(self, stream: Stream, tolerate: bool) -> None:
        try:
            await stream.run()
        except StreamError as error:
            if not tolerate:
                raise
            self.errors.append(error.message)

    async def _locate(self, user_id: str) -> str:
        """Ask a cluster which of its gateways serves a user; the only gateway there is needs no question."""
        if len(self._addresses) == 1:
            return self._addresses[0]
        metadata = (("authorization", f"Bearer {self._token_for(user_id)}"),)
        try:
            located = await MessagingServiceStub(self.channels[0]).Locate(LocateRequest(), metadata=metadata, timeout=HELLO_SECONDS)
        except grpc.aio.AioRpcError as error:
            raise StreamError(f"{user_id} has no gateway: {error.code().name} {error.details()}") from error
        return located.address or self._addresses[0]

    def _stream(self, user_id: str, device_id: str, address: str) -> Stream:
        channels = self._channels_to(address)
        self._next += 1
        return Stream(channels[self._next % len(channels)], user_id, device_id, self._token_for(user_id))

    async def disconnect(self, streams: Sequence[Stream]) -> None:
        """Hang up these streams and forget them."""
        readers = [self._readers.pop(stream) for stream in streams]
        for reader in readers:
            reader.cancel()
        for stream in streams:
            stream.close()
        if readers:
            await asyncio.wait(readers)

    async def close(self) -> None:
        """Hang up everything."""
        for task in self._tasks:
            task.cancel()
        await self.disconnect(list(self._readers))
        for channels in self._channels.values():
            for channel in channels:
                await channel.close()

    async def _beat(self, interval: float) -> None:
        """Keep silent streams alive: each is visited four times an interval, spread so that no burst disturbs the measuring."""
        while True:
            streams = list(self._readers)
            parts = range(0, max(1, len(streams)), _CONNECT_PARALLEL)
            for start in parts:
                await asyncio.sleep(interval / 4 / len(parts))
                silent_since = time.monotonic() - interval / 2
                for stream in streams[start : start + _CONNECT_PARALLEL]:
                    if stream.written_at < silent_since:
                        await stream.flush(heartbeat=True)


@asynccontextmanager
async def open_fleet(
    addresses: str, token_for: Callable[[str], str], *, channel_count: int = CHANNEL_COUNT
) -> AsyncIterator[Fleet]:
    """Own streams; a stream that ends unasked ends the block with its StreamError."""
    try:
        async with asyncio.TaskGroup() as group:
            fleet = Fleet(addresses, token_for, channel_count, group)
            try:
                yield fleet
            finally:
                await fleet.close()
    except BaseExceptionGroup as errors:
        found: BaseException = errors
        while isinstance(found, BaseExceptionGroup):
            found = found.exceptions[0]  # the first: the others are what it caused
        raise found from None


def _ignore(batch: ServerBatch) -> None:
    """Take no notice."""


def _describe(response: ConnectResponse) -> str:
    match response.WhichOneof("frame"):
        case "go_away":
            return f"GoAway {GoAwayReason.Name(response.go_away.reason)} {response.go_away.detail}"
        case "frame_error":
            return f"a refused frame: {response.frame_error.status.message}"
        case other:
            return f"an unexpected frame ({other})"
