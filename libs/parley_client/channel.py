"""Channels to gateways, one address at a time."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Final, TypeAlias

import grpc

ChannelFactory: TypeAlias = Callable[[str], AbstractAsyncContextManager[grpc.aio.Channel]]

_OPTIONS: Final = (
    # Our own backoff decides when to try again; a channel that sulks for minutes would overrule it.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
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
