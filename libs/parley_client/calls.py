"""The unary calls of a client: token, timeout and typed errors in one place."""

import asyncio
from typing import TypeVar

import grpc

from parley.api.v1 import messaging_service_pb2 as api
from parley.api.v1.messaging_service_pb2_grpc import MessagingServiceStub
from parley_client.errors import CallError, call_error
from parley_client.token import TokenSource, TokenUnavailableError

_Request = TypeVar("_Request")
_Response = TypeVar("_Response")


class Calls:
    """MessagingService without Connect and Submit. Everything raises CallError; cancelling cancels the call."""

    def __init__(self, channel: grpc.aio.Channel, tokens: TokenSource, timeout_seconds: float) -> None:
        self._stub = MessagingServiceStub(channel)
        self._tokens = tokens
        self._timeout_seconds = timeout_seconds

    async def locate(self) -> str:
        """Ask where this device belongs; empty: where it was asked."""
        return (await self._call(self._stub.Locate, api.LocateRequest())).address

    async def sync(self, request: api.SyncRequest) -> api.SyncResponse:
        return await self._call(self._stub.Sync, request)

    async def list_events(self, request: api.ListEventsRequest) -> api.ListEventsResponse:
        return await self._call(self._stub.ListEvents, request)

    async def get_conversation(self, request: api.GetConversationRequest) -> api.GetConversationResponse:
        return await self._call(self._stub.GetConversation, request)

    async def list_members(self, request: api.ListMembersRequest) -> api.ListMembersResponse:
        return await self._call(self._stub.ListMembers, request)

    async def get_presence(self, request: api.GetPresenceRequest) -> api.GetPresenceResponse:
        return await self._call(self._stub.GetPresence, request)

    async def _call(self, method: "grpc.aio.UnaryUnaryMultiCallable[_Request, _Response]", request: _Request) -> _Response:
        """Call once; where the token was refused and can be renewed, once more."""
        try:
            return await self._call_once(method, request)
        except CallError as error:
            if error.code is not grpc.StatusCode.UNAUTHENTICATED or not self._tokens.is_renewable:
                raise
        self._tokens.expire()
        return await self._call_once(method, request)

    async def _call_once(self, method: "grpc.aio.UnaryUnaryMultiCallable[_Request, _Response]", request: _Request) -> _Response:
        try:
            metadata = await self._tokens.metadata()
            return await method(request, timeout=self._timeout_seconds, metadata=metadata)
        except grpc.aio.AioRpcError as error:
            raise call_error(error) from error
        except TokenUnavailableError as error:
            raise CallError(grpc.StatusCode.UNAVAILABLE, "", f"no token: {error}") from error
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            # The channel was closed, because the link goes elsewhere: the call was cancelled, not its caller.
            raise CallError(grpc.StatusCode.UNAVAILABLE, "", "the connection was closed") from error
