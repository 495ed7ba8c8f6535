"""The SDK's single calls when the connection under them goes away."""

import asyncio
from typing import Any

import grpc
import pytest

from chassis.errors import Unavailable
from chassis.server import open_server
from parley.api.v1.messaging_service_pb2 import GetConversationRequest, GetConversationResponse
from parley.api.v1.messaging_service_pb2_grpc import MessagingServiceServicer, add_MessagingServiceServicer_to_server
from parley_client import CallError
from parley_client.calls import Calls
from parley_client.token import TokenSource


class Silent(MessagingServiceServicer):
    """Tells that it was asked, and says nothing."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()

    async def GetConversation(
        self, request: GetConversationRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> GetConversationResponse:
        self.asked.set()
        await asyncio.Event().wait()
        raise Unavailable("UNAVAILABLE", "never said")


async def test_a_call_whose_channel_is_closed_is_an_error_and_no_cancellation() -> None:
    """A cancellation would end the app's task without a word; the link closes channels whenever it goes elsewhere."""
    silent = Silent()
    async with open_server(
        bind="127.0.0.1:0", register=lambda server: add_MessagingServiceServicer_to_server(silent, server), stop_grace_seconds=0
    ) as server:
        channel = grpc.aio.insecure_channel(server.address)
        asking = asyncio.ensure_future(Calls(channel, TokenSource("t", 5), 10).get_conversation(GetConversationRequest()))
        await silent.asked.wait()
        await channel.close()
        with pytest.raises(CallError, match="closed"):
            await asking


async def test_a_caller_who_is_cancelled_is_cancelled() -> None:
    silent = Silent()
    async with (
        open_server(
            bind="127.0.0.1:0", register=lambda server: add_MessagingServiceServicer_to_server(silent, server), stop_grace_seconds=0
        ) as server,
        grpc.aio.insecure_channel(server.address) as channel,
    ):
        asking = asyncio.ensure_future(Calls(channel, TokenSource("t", 5), 10).get_conversation(GetConversationRequest()))
        await silent.asked.wait()
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
