"""The simulated network: addresses whose servers come and go, and wires that lag, cut and swallow."""

import asyncio
import math
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

from chassis.inprocess import InProcessChannel, InProcessServer
from chassis.testing.faults import CUT, HALF_OPEN, SLOW, FaultStream

# Below a router's patience with a gateway (10 s): beyond it devices miss receipts until they Sync, which is another scenario.
KEEPALIVE_SECONDS = 5.0


class Endpoint:
    """An address. Calls go to the server that has been there for the longest; nobody there: UNAVAILABLE."""

    def __init__(self) -> None:
        self._servers: dict[InProcessServer, None] = {}
        self._channels: dict[InProcessChannel, None] = {}

    @contextmanager
    def serving(self, server: InProcessServer) -> Iterator[None]:
        """Be reachable here until the block is left: then all calls are cut, as by a process that dies."""
        self._servers[server] = None
        self._point()
        try:
            yield
        finally:
            del self._servers[server]
            server.cut()
            self._point()

    @asynccontextmanager
    async def connect(self, name: str, stream: FaultStream, *, keepalive: bool) -> AsyncIterator[InProcessChannel]:
        """Open a channel to whoever is here now and later."""
        wire = FaultyWire(stream, keepalive=keepalive)
        channel = InProcessChannel(next(iter(self._servers), None), name=name, wire=wire)
        wire.cut = channel.cut
        self._channels[channel] = None
        try:
            yield channel
        finally:
            del self._channels[channel]
            await channel.close()

    @contextmanager
    def unreachable_from(self, channel: InProcessChannel) -> Iterator[None]:
        """Cut a channel, and let nothing through until the block is left."""
        del self._channels[channel]
        channel.server = None
        channel.cut("no network")
        try:
            yield
        finally:
            self._channels[channel] = None
            self._point()

    def _point(self) -> None:
        for channel in self._channels:
            channel.server = next(iter(self._servers), None)


class FaultyWire:
    """See `chassis.inprocess_rpc.Wire`. With keepalive, as between services, the transport itself finds out that a link is dead."""

    def __init__(self, stream: FaultStream, *, keepalive: bool) -> None:
        self._stream = stream
        self._keepalive = keepalive
        self.cut: Callable[[str], None] = lambda _details: None

    def lag(self, _method: str, _sent_by_client: bool, _message: bytes) -> float:
        stream = self._stream
        if stream.happens(CUT):
            raise ConnectionError("cut by the network")
        if stream.happens(HALF_OPEN):
            if self._keepalive:
                asyncio.get_running_loop().call_later(KEEPALIVE_SECONDS, self.cut, "keepalive timed out")
            return math.inf
        if stream.happens(SLOW):
            return stream.rng.uniform(0.1, 2.0)
        return stream.rng.uniform(0.0, 0.005)
