"""One call in process: two pipes and the states of its two ends."""

import asyncio
import math
from collections import deque
from collections.abc import Callable
from contextvars import Context
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

import grpc
import grpc.aio

if TYPE_CHECKING:
    from chassis.inprocess import InProcessServer

# Messages a direction on their way or waiting for their reader: enough that both ends run in bursts, little against what sockets
# buffer (64 kB) at the hundreds of bytes that a batch usually has.
MAX_BUFFERED_MESSAGES: Final = 64
_NETWORK: Final = Context()  # what is on its way belongs to no process any more, and arrives whatever becomes of its sender
MetadataPairs = tuple[tuple[str, str | bytes], ...]


class Wire(Protocol):
    """What lies between two ends, for simulations: lag, loss and cuts. Without one there is nothing."""

    max_messages: int  # a direction, on their way or waiting for their reader: then who writes waits

    def lag(self, method: str, sent_by_client: bool, message: bytes) -> float:
        """Return the seconds until what is sent arrives; `math.inf`: it and all that follows never does.

        Called for each message, and with b"" for what has none: the call's begin without a request, half-close, cancellation,
        status. Order within a call and direction is kept. Raise ConnectionError to cut the channel's connection: all of its calls
        end at both ends, at once.
        """


class CallStatus(NamedTuple):
    """How a call ended."""

    code: grpc.StatusCode
    details: str = ""
    trailing_metadata: MetadataPairs = ()


class Pipe:
    """One direction of a call: messages in order, bounded, then an end. One sender, one receiver at a time."""

    __slots__ = (
        "_arrives_at", "_ended", "_in_transit", "_lag", "_loop", "_max_bytes", "_max_messages", "_messages", "_on_cut",
        "_on_drained", "_on_too_big", "_reader", "_receiver_gone", "_sender_gone", "_writer",
    )  # fmt: skip

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        lag: Callable[[bytes], float] | None,
        max_bytes: int,
        on_too_big: Callable[[int], None],
        on_drained: Callable[[], None],
        on_cut: Callable[[ConnectionError], None],
        max_messages: int,
    ) -> None:
        self._loop = loop
        self._lag = lag
        self._max_messages = max_messages
        self._max_bytes = max_bytes
        self._on_too_big = on_too_big
        self._on_drained = on_drained
        self._on_cut = on_cut
        self._messages: deque[bytes] = deque()
        self._in_transit: deque[Callable[[], None]] = deque()
        self._arrives_at = 0.0
        self._reader: asyncio.Future[None] | None = None
        self._writer: asyncio.Future[None] | None = None
        self._ended = False
        self._sender_gone = False
        self._receiver_gone = False

    async def send(self, message: bytes) -> bool:
        """Send a message, waiting while the reader lags. Return whether it was sent: not if the sender left meanwhile."""
        if type(message) is not bytes:
            raise TypeError(f"a call carries bytes, not {type(message).__name__}: give it a serializer")
        while len(self._messages) + len(self._in_transit) >= self._max_messages and not self._sender_gone:
            if self._writer is not None:
                raise grpc.aio.UsageError("one write at a time")
            self._writer = self._loop.create_future()
            try:
                await self._writer
            finally:
                self._writer = None
        if self._sender_gone:
            return False
        if self._lag is None:
            self.arrive(message)
        else:
            self.carry(message, partial(self.arrive, message))
        return True

    def carry(self, message: bytes, action: Callable[[], None]) -> None:
        """Do something at the other end, after all that was sent before."""
        if self._lag is None:
            action()
            return
        try:
            lag_seconds = self._lag(message)
        except ConnectionError as error:
            self._on_cut(error)
            return
        self._arrives_at = max(self._arrives_at, self._loop.time() + lag_seconds)
        self._in_transit.append(action)
        if self._arrives_at != math.inf:
            # Each timer takes whatever is first: timers of one moment fire in any order.
            self._loop.call_at(self._arrives_at, self._arrive_next, context=_NETWORK)

    def _arrive_next(self) -> None:
        if self._in_transit:
            self._in_transit.popleft()()
            self._wake_writer()

    def arrive(self, message: bytes) -> None:
        if self._receiver_gone:
            return
        if len(message) > self._max_bytes:
            self._on_too_big(len(message))
            return
        self._messages.append(message)
        reader = self._reader
        if reader is not None and not reader.done():
            reader.set_result(None)

    def arrive_end(self) -> None:
        """Take the end: the reader gets None after the last message."""
        self._ended = True
        if not self._messages:
            self._on_drained()
        _wake(self._reader)

    async def receive(self) -> bytes | None:
        """Wait for the next message; None: there is none any more. Cancelling loses nothing."""
        while not self._messages:
            if self._ended or self._receiver_gone:
                return None
            if self._reader is not None:
                raise grpc.aio.UsageError("one read at a time")
            self._reader = self._loop.create_future()
            try:
                await self._reader
            finally:
                self._reader = None
        message = self._messages.popleft()
        if self._writer is not None:
            self._wake_writer()
        if self._ended and not self._messages:
            self._on_drained()
        return message

    def take(self) -> bytes | None:
        """Return the next message if it is there."""
        return self._messages.popleft() if self._messages else None

    def leave_sender(self) -> None:
        """Let nobody wait for room any more."""
        self._sender_gone = True
        _wake(self._writer)

    def leave_receiver(self, *, keep: bool = False) -> None:
        """Drop what comes (and, unless kept, what came) from now on."""
        self._receiver_gone = True
        if not keep:
            self._messages.clear()
        _wake(self._reader)
        self._wake_writer()

    def _wake_writer(self) -> None:
        # Not at once, so that writer and reader do not take turns a message.
        if len(self._messages) + len(self._in_transit) <= self._max_messages // 2:
            _wake(self._writer)


class Rpc:
    """One call. `status` is what the client knows of its end, `server_done` that the server is through with it."""

    __slots__ = (
        "_deadline_timer", "_finish_waiters", "_initial_metadata", "_initial_waiters", "_loop", "_on_finish", "deadline",
        "done_callbacks", "locally_cancelled", "metadata", "method", "peer", "requests", "responses", "server_done",
        "server_done_callbacks", "server_status", "status", "task", "unary_response",
    )  # fmt: skip

    def __init__(
        self,
        method: str,
        *,
        unary_response: bool,
        metadata: MetadataPairs,
        timeout: float | None,
        peer: str,
        wire: Wire | None,
        max_request_bytes: int,
        max_response_bytes: int,
        on_finish: Callable[["Rpc"], None],
        on_cut: Callable[[ConnectionError], None],
    ) -> None:
        loop = self._loop = asyncio.get_running_loop()
        self.method = method
        self.metadata = metadata
        self.peer = peer
        self.unary_response = unary_response
        self._on_finish = on_finish
        request_lag = None if wire is None else partial(wire.lag, method, True)
        response_lag = None if wire is None else partial(wire.lag, method, False)
        room = MAX_BUFFERED_MESSAGES if wire is None else wire.max_messages
        too_big_request = partial(self._too_big_request, max_request_bytes)
        too_big_response = partial(self._too_big_response, max_response_bytes)
        self.requests = Pipe(loop, request_lag, max_request_bytes, too_big_request, _nothing, on_cut, room)
        self.responses = Pipe(loop, response_lag, max_response_bytes, too_big_response, self._drained, on_cut, room)
        self.status: CallStatus | None = None
        self.locally_cancelled = False
        self.done_callbacks: list[Callable[[], None]] = []
        self._finish_waiters: list[asyncio.Future[None]] = []
        self._initial_metadata: MetadataPairs | None = None
        self._initial_waiters: list[asyncio.Future[None]] = []
        self.server_status: CallStatus | None = None  # on its way, or behind messages that were not read yet
        self.server_done = False
        self.server_done_callbacks: list[Callable[[], None]] = []
        self.task: asyncio.Task[Any] | None = None
        self.deadline = None if timeout is None else loop.time() + timeout
        # One timer for both ends: each would have its own, and they would fire together.
        self._deadline_timer = None if timeout is None else loop.call_later(max(timeout, 0), self._exceed_deadline)

    # The client's end

    def finish(self, status: CallStatus) -> None:
        """End the call for the client. The first status stays."""
        if self.status is not None:
            return
        self.status = status
        if self._deadline_timer is not None:
            self._deadline_timer.cancel()
        self.requests.leave_sender()
        self.responses.leave_receiver(keep=self.unary_response and status.code is grpc.StatusCode.OK)
        for waiter in (*self._finish_waiters, *self._initial_waiters):
            _wake(waiter)
        self._on_finish(self)
        callbacks, self.done_callbacks = self.done_callbacks, []
        for callback in callbacks:
            callback()

    def cancel(self, details: str) -> bool:
        """End the call from the client's side: its handler is cancelled once it hears of it."""
        if self.status is not None:
            return False
        self.locally_cancelled = True
        self.finish(CallStatus(grpc.StatusCode.CANCELLED, details))
        self.requests.carry(b"", self.cancel_handler)
        return True

    def cut(self, details: str) -> None:
        """End the call at both ends: the connection is gone."""
        self.finish(CallStatus(grpc.StatusCode.UNAVAILABLE, details))
        self.cancel_handler()

    async def wait_finished(self) -> CallStatus:
        while self.status is None:
            await self._wait_in(self._finish_waiters)
        return self.status

    async def wait_initial_metadata(self) -> MetadataPairs:
        while self._initial_metadata is None and self.status is None:
            await self._wait_in(self._initial_waiters)
        return self._initial_metadata or ()

    def arrive_initial_metadata(self, metadata: MetadataPairs) -> None:
        self._initial_metadata = metadata
        for waiter in self._initial_waiters:
            _wake(waiter)

    def error(self) -> grpc.aio.AioRpcError:
        """Make the exception of a call that failed."""
        assert self.status is not None
        return grpc.aio.AioRpcError(
            self.status.code,
            initial_metadata=grpc.aio.Metadata.from_tuple(self._initial_metadata or ()),
            trailing_metadata=grpc.aio.Metadata.from_tuple(self.status.trailing_metadata),
            details=self.status.details,
            debug_error_string=f"{self.status.code.name}:{self.status.details}",
        )

    async def _wait_in(self, waiters: list[asyncio.Future[None]]) -> None:
        waiter = self._loop.create_future()
        waiters.append(waiter)
        try:
            await waiter
        finally:
            waiters.remove(waiter)

    def _drained(self) -> None:
        assert self.server_status is not None
        self.finish(self.server_status)

    def _arrive_status(self) -> None:
        if self.unary_response:
            self._drained()
        else:
            self.responses.arrive_end()

    def _exceed_deadline(self) -> None:
        self.finish(CallStatus(grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded"))
        self.cancel_handler()

    def _too_big_response(self, limit: int, size: int) -> None:
        self.finish(CallStatus(grpc.StatusCode.RESOURCE_EXHAUSTED, _too_big("CLIENT", size, limit)))
        self.requests.carry(b"", self.cancel_handler)

    # The server's end

    def start(self, server: "InProcessServer", request: bytes | None) -> None:
        """Take the call, with its whole request if that is one message, into a server. It may end right here."""
        if request is not None:
            self.requests.arrive(request)
            self.requests.arrive_end()
        if not self.server_done:
            server.serve(self)

    def end(self, status: CallStatus) -> None:
        """End the call from the server's side, after what it wrote. The first status stays."""
        if self.server_done:
            return
        self._leave_server()
        self.requests.leave_receiver()  # a task of the handler's that still reads gets the end
        self.server_status = status
        self.responses.carry(b"", self._arrive_status)

    def cancel_handler(self) -> None:
        """End the call at the server: the client is gone."""
        self._leave_server()
        # As over the network: a handler that reads gets the end first and is cancelled where it waits next, so that it can't tell
        # a client that is gone from one that has nothing more to send.
        self.requests.leave_receiver()
        if self.task is not None:
            self._loop.call_soon(self.task.cancel)

    def _leave_server(self) -> None:
        self.server_done = True
        self.responses.leave_sender()
        callbacks, self.server_done_callbacks = self.server_done_callbacks, []
        for callback in callbacks:
            callback()

    def _too_big_request(self, limit: int, size: int) -> None:
        self.end(CallStatus(grpc.StatusCode.RESOURCE_EXHAUSTED, _too_big("SERVER", size, limit)))
        self.cancel_handler()


def _too_big(end: str, size: int, limit: int) -> str:
    return f"{end}: Received message larger than max ({size} vs. {limit})"


def _wake(waiter: asyncio.Future[None] | None) -> None:
    if waiter is not None and not waiter.done():
        waiter.set_result(None)


def _nothing() -> None:
    """Do nothing: a server learns of the client's half-close by reading."""
