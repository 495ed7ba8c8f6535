"""Channels to other services, with keepalive and limits that fit `server`."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import grpc.aio

from chassis.certificates import ROLE_DOMAIN, Pems
from chassis.renewed_channel import open_renewed_channel
from chassis.transport import CHANNEL_MAX_RECEIVE_BYTES, Options, Peer, TlsRoots, channel_credentials, channel_options


@asynccontextmanager
async def open_channel(
    address: str, tls: TlsRoots | Peer | None = None, *, max_receive_bytes: int = CHANNEL_MAX_RECEIVE_BYTES
) -> AsyncIterator[grpc.aio.Channel]:
    """Hold a channel to host:port, without TLS unless `tls` says whom to trust. It connects when it is first used.

    Leaving cancels its calls. Raises TlsError.
    """
    options = channel_options(max_receive_bytes)
    if isinstance(tls, Peer):
        peer = tls
        async with open_renewed_channel(tls.certificates, lambda pems: _mutual(address, peer, pems, options)) as renewed:
            yield renewed
        return
    if tls is None:
        channel = grpc.aio.insecure_channel(address, options)
    else:
        channel = grpc.aio.secure_channel(address, channel_credentials(tls), options)
    try:
        yield channel
    finally:
        await channel.close()


def _mutual(address: str, peer: Peer, pems: Pems, options: Options) -> grpc.aio.Channel:
    """Expect the role, not the address: services move, and what they are stays."""
    credentials = grpc.ssl_channel_credentials(pems.ca, pems.key, pems.certificate)
    return grpc.aio.secure_channel(address, credentials, [*options, ("grpc.ssl_target_name_override", peer.role + ROLE_DOMAIN)])
