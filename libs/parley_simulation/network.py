"""The simulated network: addresses whose servers come and go, and wires that lag, cut and swallow."""

import asyncio
import math
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager

from chassis.inprocess import InProcessChannel, InProcessServer
from chassis.inprocess_rpc import MAX_BUFFERED_MESSAGES
from chassis.testing.faults import CUT, HALF_OPEN, SLOW, SLOW_READER, FaultStream

# Below a router's patience with a gateway (10 s): beyond it devices miss receipts until they Sync, which is another scenario.
KEEPALIVE_SECONDS = 5.0


DEVICE_MESSAGES = 4  # what the network holds of a stream to a device that does not read: little, so that its outbox fills
SLOW_SECONDS_MAX = 20.0  # beyond what a gateway waits for a write (10 s)


class Endpoint:
    """An address. Calls go to the server that has been there for the longest; nobody there: UNAVAILABLE."""

    def __init__(self) -> None:
        self._servers: dict[InProcessServer, None] = {}
        self._channels: dict[InProcessChannel, Radio | None] = {}

    @contextmanager
    def serving(self, server: InProcessServer) -> Iterator[None]:
        """Be reachable here until the block is left: then all calls are cut, as by a process that dies."""
        self._servers[server] = None
        self.point()
        try:
            yield
        finally:
            del self._servers[server]
            server.cut()
            self.point()

    @asynccontextmanager
    async def connect(
        self, name: str, stream: FaultStream, *, keepalive: bool, radio: "Radio | None" = None
    ) -> AsyncIterator[InProcessChannel]:
        """Open a channel to whoever is here now and later; while its radio is dark it leads nowhere."""
        wire = FaultyWire(stream, keepalive=keepalive)
        channel = InProcessChannel(None, name=name, wire=wire)
        wire.cut = channel.cut
        self._channels[channel] = radio
        self.point()
        try:
            yield channel
        finally:
            del self._channels[channel]
            await channel.close()

    def point(self) -> None:
        """Let each channel lead where it leads now."""
        server = next(iter(self._servers), None)
        for channel, radio in self._channels.items():
            channel.server = None if radio is not None and radio.is_dark else server


class Radio:
    """A device's way into the network: to any address, and all of it cut at once."""

    def __init__(self, endpoints: Mapping[str, Endpoint], name: str, stream: FaultStream) -> None:
        self._endpoints = endpoints
        self._name = name
        self._stream = stream
        self._channels: dict[InProcessChannel, None] = {}
        self.is_dark = False

    @asynccontextmanager
    async def open_channel(self, address: str) -> AsyncIterator[InProcessChannel]:
        """Open a channel to an address."""
        async with self._endpoints[address].connect(self._name, self._stream, keepalive=False, radio=self) as channel:
            self._channels[channel] = None
            try:
                yield channel
            finally:
                del self._channels[channel]

    def cut(self, details: str) -> None:
        """Cut all channels; new calls get through."""
        for channel in self._channels:
            channel.cut(details)

    @contextmanager
    def without_network(self) -> Iterator[None]:
        """Cut all channels, and let nothing through until the block is left."""
        self.is_dark = True
        self._point()
        self.cut("no network")
        try:
            yield
        finally:
            self.is_dark = False
            self._point()

    def _point(self) -> None:
        for endpoint in self._endpoints.values():
            endpoint.point()


class FaultyWire:
    """See `chassis.inprocess_rpc.Wire`. With keepalive, as between services, the transport itself finds out that a link is dead."""

    def __init__(self, stream: FaultStream, *, keepalive: bool) -> None:
        self._stream = stream
        self._keepalive = keepalive
        self.max_messages = MAX_BUFFERED_MESSAGES if keepalive else DEVICE_MESSAGES
        self._reads_again_at = 0.0
        self.cut: Callable[[str], None] = lambda _details: None

    def lag(self, _method: str, sent_by_client: bool, _message: bytes) -> float:
        stream = self._stream
        if not self._keepalive and not sent_by_client:
            now = asyncio.get_running_loop().time()
            if now >= self._reads_again_at and stream.happens(SLOW_READER):
                self._reads_again_at = now + stream.rng.uniform(1.0, SLOW_SECONDS_MAX)
            if now < self._reads_again_at:
                return self._reads_again_at - now
        if stream.happens(CUT):
            raise ConnectionError("cut by the network")
        if stream.happens(HALF_OPEN):
            if self._keepalive:
                asyncio.get_running_loop().call_later(KEEPALIVE_SECONDS, self.cut, "keepalive timed out")
            return math.inf
        if stream.happens(SLOW):
            return stream.rng.uniform(0.1, 2.0)
        return stream.rng.uniform(0.0, 0.005)
