"""Channels to other services, with keepalive and limits that fit `server`."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc.aio

from chassis.transport import CHANNEL_MAX_RECEIVE_BYTES, TlsRoots, channel_credentials, channel_options


@asynccontextmanager
async def open_channel(
    address: str, tls: TlsRoots | None = None, *, max_receive_bytes: int = CHANNEL_MAX_RECEIVE_BYTES
) -> AsyncIterator[grpc.aio.Channel]:
    """Hold a channel to host:port, without TLS unless `tls` says whom to trust. It connects when it is first used.

    Leaving cancels its calls. Raises TlsError.
    """
    options = channel_options(max_receive_bytes)
    if tls is None:
        channel = grpc.aio.insecure_channel(address, options)
    else:
        channel = grpc.aio.secure_channel(address, channel_credentials(tls), options)
    try:
        yield channel
    finally:
        await channel.close()
