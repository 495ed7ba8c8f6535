"""One call to a server, for commands that ask once and end."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc

from chassis.addresses import is_loopback
from parley.api.v1.messaging_service_pb2_grpc import MessagingServiceStub
from parley_cli.connection import Connection
from parley_cli.failures import CommandError
from parley_cli.rendering import harmless
from parley_client import CallError, channels_to

Metadata = tuple[tuple[str, str], ...]

REACH_SECONDS = 5.0  # to connect: a server on this machine takes milliseconds, one far away a second


@asynccontextmanager
async def open_stub(connection: Connection, user: str, device: str) -> AsyncIterator[tuple[MessagingServiceStub, Metadata]]:
    """Connect as a user; yield the stub and the metadata for its calls. Raises CommandError if the server can't be reached.

    Of several addresses the first that answers serves, any gateway being good for single calls.
    """
    metadata = (("authorization", f"Bearer {connection.token_for(user, device)}"),)
    open_channel = channels_to(connection.trust())
    for address in connection.server.split(","):
        async with open_channel(address.strip()) as channel:
            try:
                async with asyncio.timeout(REACH_SECONDS):
                    await _connect(channel)
            except (ConnectionError, TimeoutError):
                continue
            yield MessagingServiceStub(channel), metadata
            return
    raise CommandError(unreachable(connection))


async def _connect(channel: grpc.aio.Channel) -> None:
    """Wait until the channel is connected. Raises ConnectionError on the first failure: gRPC would try for ever."""
    state = channel.get_state(try_to_connect=True)
    while state is not grpc.ChannelConnectivity.READY:
        if state is grpc.ChannelConnectivity.TRANSIENT_FAILURE:
            raise ConnectionError
        await channel.wait_for_state_change(state)
        state = channel.get_state()


def unreachable(connection: Connection) -> str:
    """Say that a server does not answer, and what may be the matter."""
    if connection.trust() is not False:
        return f"no server answers with TLS at {connection.server}, or its certificate is for another name or by another CA."
    beyond = "" if is_loopback(connection.server) else " One beyond this machine wants --tls or --tls-ca."
    return f"no server answers at {connection.server}: is `parley up` running there? Name another with --server.{beyond}"


def refusal(error: CallError) -> CommandError:
    """Say for a person what the server answered."""
    return CommandError(
        f"the server refused: {harmless(error.detail) or error.code.name.lower()} ({error.reason or error.code.name})"
    )
