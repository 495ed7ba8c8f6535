"""The client's end of a call in process: what grpc.aio's call objects do."""

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Callable, Generator, Iterable
from functools import partial
from typing import Any, Generic, TypeVar

import grpc
import grpc.aio
import structlog

from chassis.inprocess_rpc import Rpc

TRequest = TypeVar("TRequest")
TResponse = TypeVar("TResponse")
Serializer = Callable[[Any], bytes] | None
Deserializer = Callable[[bytes], Any] | None
log = structlog.get_logger()


class _Call:
    """What all calls have. One that is abandoned stays until its channel closes, as it may with grpc.aio: cancel calls."""

    def __init__(self, rpc: Rpc, serialize: Serializer, deserialize: Deserializer, requests: Any = None) -> None:
        self._rpc = rpc
        self._serialize = serialize
        self._deserialize = deserialize
        self._style = ""
        self._half_closed = False
        self._loop = asyncio.get_running_loop()
        self._sender = None if requests is None else self._loop.create_task(_send_all(rpc, serialize, requests))
        if self._sender is not None:
            rpc.done_callbacks.append(partial(_cancel, self._sender))

    def cancel(self) -> bool:
        return self._rpc.cancel("Locally cancelled by application!")

    def cancelled(self) -> bool:
        status = self._rpc.status
        return status is not None and status.code is grpc.StatusCode.CANCELLED

    def done(self) -> bool:
        return self._rpc.status is not None

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        if self._rpc.status is not None:
            callback(self)
        else:
            self._rpc.done_callbacks.append(partial(callback, self))

    def time_remaining(self) -> float | None:
        return None if self._rpc.deadline is None else max(0.0, self._rpc.deadline - self._loop.time())

    async def initial_metadata(self) -> grpc.aio.Metadata:
        return grpc.aio.Metadata.from_tuple(await self._rpc.wait_initial_metadata())

    async def trailing_metadata(self) -> grpc.aio.Metadata:
        return grpc.aio.Metadata.from_tuple((await self._rpc.wait_finished()).trailing_metadata)

    async def code(self) -> grpc.StatusCode:
        return (await self._rpc.wait_finished()).code

    async def details(self) -> str:
        return (await self._rpc.wait_finished()).details

    async def debug_error_string(self) -> str:
        status = await self._rpc.wait_finished()
        return f"{status.code.name}:{status.details}"

    async def wait_for_connection(self) -> None:
        if self._rpc.status is not None:
            self._raise_for_status()

    def _raise_for_status(self) -> None:
        assert self._rpc.status is not None
        if self._rpc.locally_cancelled:
            raise asyncio.CancelledError
        if self._rpc.status.code is not grpc.StatusCode.OK:
            raise self._rpc.error()


class _UnaryResponse(_Call, Generic[TResponse]):
    """A call whose response is awaited."""

    _response: Any = None

    def __await__(self) -> Generator[Any, None, TResponse]:
        return self._wait_response().__await__()

    async def _wait_response(self) -> TResponse:
        try:
            await self._rpc.wait_finished()
        except asyncio.CancelledError:
            self.cancel()
            raise
        self._raise_for_status()
        message = self._rpc.responses.take()
        if message is not None:
            self._response = message if self._deserialize is None else self._deserialize(message)
        response: TResponse = self._response
        return response


class _StreamResponse(_Call, Generic[TResponse]):
    """A call whose responses are read, or iterated over; not both."""

    def _use(self, style: str) -> None:
        if self._style not in ("", style):
            raise grpc.aio.UsageError("The iterator and read/write APIs may not be mixed on a single RPC.")
        self._style = style

    def __aiter__(self) -> AsyncIterator[TResponse]:
        self._use("iterate")
        return self._iterate()

    async def _iterate(self) -> AsyncIterator[TResponse]:
        while (message := await self._read()) is not grpc.aio.EOF:
            yield message

    async def read(self) -> Any:
        self._use("read")
        return await self._read()

    async def _read(self) -> Any:
        if self._rpc.status is None:
            try:
                message = await self._rpc.responses.receive()
            except asyncio.CancelledError:
                self.cancel()
                raise
            if message is not None:
                return message if self._deserialize is None else self._deserialize(message)
        self._raise_for_status()
        return grpc.aio.EOF


class _StreamRequest(_Call, Generic[TRequest]):
    """A call whose requests are written, unless they come from an iterator."""

    async def write(self, request: TRequest) -> None:
        self._check_style()
        if self._rpc.status is not None:
            raise asyncio.InvalidStateError("RPC already finished.")
        if self._half_closed:
            raise asyncio.InvalidStateError('RPC is half closed after calling "done_writing".')
        message: Any = request if self._serialize is None else self._serialize(request)
        try:
            sent = await self._rpc.requests.send(message)
        except asyncio.CancelledError:
            self.cancel()
            raise
        if not sent:
            self._raise_for_status()

    async def done_writing(self) -> None:
        self._check_style()
        if self._rpc.status is None and not self._half_closed:
            self._half_closed = True
            self._rpc.requests.carry(b"", self._rpc.requests.arrive_end)

    def _check_style(self) -> None:
        if self._sender is not None:
            raise grpc.aio.UsageError("The iterator and read/write APIs may not be mixed on a single RPC.")


async def _send_all(rpc: Rpc, serialize: Serializer, requests: AsyncIterable[Any] | Iterable[Any]) -> None:
    """Send what an iterator gives, then half-close. An iterator that fails cancels the call, as grpc.aio does."""
    try:
        async for request in _each(requests):
            await rpc.requests.send(request if serialize is None else serialize(request))
        rpc.requests.carry(b"", rpc.requests.arrive_end)
    except Exception as error:
        log.warning("the iterator of a call's requests failed", method=rpc.method, exc_info=error)
        rpc.cancel("Locally cancelled by application!")


def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()


async def _each(requests: AsyncIterable[Any] | Iterable[Any]) -> AsyncIterator[Any]:
    if isinstance(requests, AsyncIterable):
        async for request in requests:
            yield request
    else:
        for request in requests:
            yield request


class UnaryUnaryCall(_UnaryResponse[TResponse], grpc.aio.UnaryUnaryCall[TRequest, TResponse]):
    """One request, one response."""


class UnaryStreamCall(_StreamResponse[TResponse], grpc.aio.UnaryStreamCall[TRequest, TResponse]):
    """One request, many responses."""


class StreamUnaryCall(_StreamRequest[TRequest], _UnaryResponse[TResponse], grpc.aio.StreamUnaryCall[TRequest, TResponse]):
    """Many requests, one response."""


class StreamStreamCall(_StreamRequest[TRequest], _StreamResponse[TResponse], grpc.aio.StreamStreamCall[TRequest, TResponse]):
    """Many of both."""
