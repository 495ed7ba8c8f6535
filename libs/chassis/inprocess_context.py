"""The handler's end of a call in process: what grpc.aio's ServicerContext does."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from functools import partial
from typing import Any, Never

import grpc
import grpc.aio

from chassis.handlers import Handler
from chassis.inprocess_rpc import CallStatus, MetadataPairs, Rpc


class InProcessContext(grpc.aio.ServicerContext[Any, Any]):
    """A handler's view of its call."""

    def __init__(self, rpc: Rpc, handler: Handler) -> None:
        self._rpc = rpc
        self._decode = handler.request_deserializer
        self._encode = handler.response_serializer
        self._initial_sent = False
        self._code = grpc.StatusCode.OK
        self._details = ""
        self._trailing: MetadataPairs = ()

    async def read(self) -> Any:
        message = await self._rpc.requests.receive()
        if message is None:
            return grpc.aio.EOF
        return message if self._decode is None else self._decode(message)

    async def requests(self) -> AsyncIterator[Any]:
        """Iterate over what the client sends."""
        while (message := await self.read()) is not grpc.aio.EOF:
            yield message

    async def write(self, message: Any) -> None:
        rpc = self._rpc
        if rpc.server_done:
            await asyncio.sleep(0)  # who was cancelled meanwhile learns that here, before anything else
            raise grpc.aio.InternalError("the call has ended")
        encoded = message if self._encode is None else self._encode(message)
        if not self._initial_sent:
            await self.send_initial_metadata(())
        await rpc.responses.send(encoded)

    async def send_initial_metadata(self, initial_metadata: Any) -> None:
        if self._initial_sent:
            raise grpc.aio.UsageError("initial metadata was sent before")
        self._initial_sent = True
        metadata = checked_metadata(initial_metadata)
        self._rpc.responses.carry(b"", partial(self._rpc.arrive_initial_metadata, metadata))

    async def abort(self, code: grpc.StatusCode, details: str = "", trailing_metadata: Any = ()) -> Never:
        if code is grpc.StatusCode.OK:
            raise grpc.aio.UsageError("a call is not aborted with OK")
        self._rpc.end(CallStatus(code, details, checked_metadata(trailing_metadata) or self._trailing))
        raise grpc.aio.AbortError(f"aborted with {code.name}: {details}")

    async def abort_with_status(self, status: grpc.Status) -> Never:
        await self.abort(status.code, status.details, status.trailing_metadata)

    def end_status(self, task: asyncio.Task[Any]) -> CallStatus:
        """Return how the call ended when its handler did."""
        if task.cancelled():
            return CallStatus(grpc.StatusCode.UNAVAILABLE, "the handler was cancelled")
        error = task.exception()
        if error is not None and not isinstance(error, grpc.aio.AbortError):  # the guard leaves only what is no Exception
            return CallStatus(grpc.StatusCode.UNKNOWN, f"Unexpected {type(error)}: {error}")
        return CallStatus(self._code, self._details, self._trailing)

    def set_trailing_metadata(self, trailing_metadata: Any) -> None:
        self._trailing = checked_metadata(trailing_metadata)

    def trailing_metadata(self) -> Any:
        return self._trailing

    def invocation_metadata(self) -> Any:
        return self._rpc.metadata

    def set_code(self, code: grpc.StatusCode) -> None:
        self._code = code

    def code(self) -> grpc.StatusCode:
        return self._code

    def set_details(self, details: str) -> None:
        self._details = details

    def details(self) -> str:
        return self._details

    def set_compression(self, compression: grpc.Compression) -> None:
        """Compress nothing: nothing leaves the process."""

    def disable_next_message_compression(self) -> None:
        """Compress nothing."""

    def peer(self) -> str:
        return self._rpc.peer

    def peer_identities(self) -> Iterable[bytes] | None:
        return None

    def peer_identity_key(self) -> str | None:
        return None

    def auth_context(self) -> Mapping[str, Iterable[bytes]]:
        return {}

    def time_remaining(self) -> Any:
        deadline = self._rpc.deadline
        return None if deadline is None else max(0.0, deadline - asyncio.get_running_loop().time())

    def cancelled(self) -> bool:
        return self._rpc.server_done and self._rpc.server_status is None

    def done(self) -> bool:
        return self._rpc.server_done

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        if self._rpc.server_done:
            callback(self)
        else:
            self._rpc.server_done_callbacks.append(partial(callback, self))


def checked_metadata(metadata: Any) -> MetadataPairs:
    """Return metadata as a tuple; raise ValueError for what HTTP/2 would not carry."""
    pairs: MetadataPairs = tuple((key, value) for key, value in metadata or ())
    for key, value in pairs:
        if not key.isascii() or key != key.lower() or isinstance(value, bytes) != key.endswith("-bin"):
            raise ValueError(f"metadata key {key!r} must be lower case, and end in -bin if and only if its value is bytes")
    return pairs
