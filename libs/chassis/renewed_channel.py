"""A channel that shows its certificate to another service, and follows the certificate's renewal.

gRPC for Python reads a client's certificate once, for a channel's life. So when the files have changed, the next call is made on a
new connection; calls that run go on where they are, until the files change once more.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

import grpc
import grpc.aio

from chassis.certificates import Certificates, Pems
from chassis.tasks import Tasks, open_tasks

_LOOK_SECONDS: Final = 5.0  # between two looks at the files: certificates live for days, and a look costs some microseconds
OpenInner = Callable[[Pems], grpc.aio.Channel]


class RenewedChannel(grpc.aio.Channel):
    """See the module; made by `open_renewed_channel`."""

    def __init__(self, certificates: Certificates, open_inner: OpenInner, tasks: Tasks) -> None:
        self._certificates = certificates
        self._open_inner = open_inner
        self._tasks = tasks
        self._looked_at = asyncio.get_running_loop().time()
        self._pems = certificates.current()
        self._inner = open_inner(self._pems)
        self._methods: dict[tuple[Any, ...], Any] = {}  # the inner channel's multicallables
        self._retired: grpc.aio.Channel | None = None

    def _present(self) -> grpc.aio.Channel:
        now = asyncio.get_running_loop().time()
        if now - self._looked_at >= _LOOK_SECONDS:
            self._looked_at = now
            pems = self._certificates.current()
            if pems.version != self._pems.version:
                if self._retired is not None:
                    self._tasks.spawn(self._retired.close(), name="close")
                self._pems, self._retired, self._inner = pems, self._inner, self._open_inner(pems)
                self._methods.clear()
        return self._inner

    def _multicallable(self, kind: str, arguments: tuple[Any, ...]) -> Callable[..., Any]:
        key = (kind, *arguments)

        def call(*args: Any, **kwargs: Any) -> Any:
            inner = self._present()
            method = self._methods.get(key)
            if method is None:
                method = self._methods[key] = getattr(inner, kind)(*arguments)
            return method(*args, **kwargs)

        return call

    def unary_unary(self, *arguments: Any, **named: Any) -> Any:
        return self._multicallable("unary_unary", _positional(arguments, named))

    def unary_stream(self, *arguments: Any, **named: Any) -> Any:
        return self._multicallable("unary_stream", _positional(arguments, named))

    def stream_unary(self, *arguments: Any, **named: Any) -> Any:
        return self._multicallable("stream_unary", _positional(arguments, named))

    def stream_stream(self, *arguments: Any, **named: Any) -> Any:
        return self._multicallable("stream_stream", _positional(arguments, named))

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        return self._present().get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        await self._present().wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        await self._present().channel_ready()

    async def close(self, grace: float | None = None) -> None:
        for channel in (self._retired, self._inner):
            if channel is not None:
                await channel.close(grace)

    async def __aenter__(self) -> "RenewedChannel":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


def _positional(arguments: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, ...]:
    """Bring what a stub says by name into order: method, serializer, deserializer."""
    names = ("method", "request_serializer", "response_deserializer")
    return (*arguments, *(named.get(name) for name in names[len(arguments) :]))[: len(names)]


@asynccontextmanager
async def open_renewed_channel(certificates: Certificates, open_inner: OpenInner) -> AsyncIterator[RenewedChannel]:
    """Hold the channel; leaving cancels its calls."""
    async with open_tasks("renewed channel") as tasks:
        channel = RenewedChannel(certificates, open_inner, tasks)
        try:
            yield channel
        finally:
            await channel.close()
