"""Reading back through the public API: whole timelines, patiently."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import TypeAlias, TypeVar

import grpc
from google.rpc import status_pb2

from chassis.errors import retry_delay_of
from parley.api.v1.events_pb2 import Event
from parley.api.v1.messaging_service_pb2 import ListEventsRequest, ListEventsResponse
from parley.api.v1.messaging_service_pb2_grpc import MessagingServiceStub
from parley_cli.failures import CommandError
from parley_protocol.limits import PAGE_EVENTS

CALL_SECONDS = 30.0
_STATUS_KEY = "grpc-status-details-bin"
_PATIENCE_SECONDS = 60.0  # with a server that says it is overloaded

T = TypeVar("T")
Metadata: TypeAlias = tuple[tuple[str, str], ...]


def bearer(token: str) -> Metadata:
    """Return call metadata that carries a token."""
    return (("authorization", f"Bearer {token}"),)


async def patiently(call: Callable[[], Awaitable[T]]) -> T:
    """Make a call, again after the delay that the server asks for, if it does. Raises CommandError."""
    deadline = asyncio.get_running_loop().time() + _PATIENCE_SECONDS
    while True:
        try:
            return await call()
        except grpc.aio.AioRpcError as error:
            delay = _asked_delay(error)
            if delay is None or asyncio.get_running_loop().time() + delay > deadline:
                raise CommandError(f"the server refused a read: {error.code().name} {error.details()}") from error
            await asyncio.sleep(delay)


def _asked_delay(error: grpc.aio.AioRpcError) -> float | None:
    details = (value for key, value in error.trailing_metadata() or () if key == _STATUS_KEY)
    return next((retry_delay_of(status_pb2.Status.FromString(value)) for value in details if isinstance(value, bytes)), None)


async def _list_events(stub: MessagingServiceStub, request: ListEventsRequest, metadata: Metadata) -> ListEventsResponse:
    return await stub.ListEvents(request, metadata=metadata, timeout=CALL_SECONDS)


async def read_timeline(stub: MessagingServiceStub, token: str, conversation_id: str, after_seq: int = 0) -> AsyncIterator[Event]:
    """Yield all events of a conversation after a seq, as the server gives them."""
    metadata = bearer(token)
    while True:
        request = ListEventsRequest(conversation_id=conversation_id, after_seq=after_seq, page_size=PAGE_EVENTS)
        page = await patiently(partial(_list_events, stub, request, metadata))
        for event in page.events:
            yield event
        if not page.more or not page.events:
            return
        after_seq = page.events[-1].seq
