"""Channels to gateways, one address at a time."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Final, TypeAlias

import grpc

ChannelFactory: TypeAlias = Callable[[str], AbstractAsyncContextManager[grpc.aio.Channel]]

# The most that RPCs may take to be connected, TLS included. Far above what a bad mobile line needs: a stream's Hello and each call
# have deadlines of their own, and less than that (gRPC takes its backoff for it, if that is longer) keeps slow lines out for ever.
_CONNECT_MS: Final = 20_000

_OPTIONS: Final = (
    # Only our own backoff decides when to try again, and a failed channel is thrown away (link.py). gRPC's would find a server that
    # is back in step with all other devices, and until its next try answer ours with the last one's "connection refused".
    ("grpc.initial_reconnect_backoff_ms", _CONNECT_MS),
    ("grpc.min_reconnect_backoff_ms", _CONNECT_MS),
    ("grpc.max_reconnect_backoff_ms", _CONNECT_MS),
    ("grpc.use_local_subchannel_pool", 1),  # else a new channel inherits an old one's backoff, and devices share a connection
    # A page of 200 events with bodies of 16 KiB, and a page of Sync with its last events.
    ("grpc.max_receive_message_length", 32 * 1024 * 1024),
)


def channels_to(tls: bool | bytes) -> ChannelFactory:
    """Return what opens a channel: plaintext (False), TLS by the machine's roots (True), or by the given PEM roots."""

    @asynccontextmanager
    async def open_channel(address: str) -> AsyncIterator[grpc.aio.Channel]:
        if tls is False:
            channel = grpc.aio.insecure_channel(address, options=_OPTIONS)
        else:
            credentials = grpc.ssl_channel_credentials(None if tls is True else tls)
            channel = grpc.aio.secure_channel(address, credentials, options=_OPTIONS)
        try:
            yield channel
        finally:
            await channel.close()

    return open_channel


def always(channel: grpc.aio.Channel) -> ChannelFactory:
    """Return what hands out one channel that belongs to somebody else."""

    @asynccontextmanager
    async def open_channel(address: str) -> AsyncIterator[grpc.aio.Channel]:
        del address  # the channel leads where it leads
        yield channel

    return open_channel
