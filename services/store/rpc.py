"""StoreService: reads for gateways, on behalf of a user, and for routers."""

from collections.abc import Awaitable
from typing import Any, TypeVar

import grpc

from chassis.clock import Clock
from chassis.errors import Unavailable
from chassis.tallies import Spread
from chassis.timeline import TimelineUnavailableError
from parley.store.v1 import store_service_pb2 as pb
from parley.store.v1.store_service_pb2_grpc import StoreServiceServicer
from services.store.metrics import StoreMetrics
from services.store.reads import Reader
from services.store.sync import Syncer

T = TypeVar("T")
Context = grpc.aio.ServicerContext[Any, Any]
_RETRY_SECONDS = 1.0  # an engine that is away: what a client waits before it asks again


class StoreRpc(StoreServiceServicer):
    """Unpacks questions and packs answers."""

    def __init__(self, reader: Reader, syncer: Syncer, clock: Clock, metrics: StoreMetrics) -> None:
        self._reader = reader
        self._syncer = syncer
        self._clock = clock
        self._metrics = metrics

    async def Sync(self, request: pb.SyncRequest, context: Context) -> pb.SyncResponse:
        answer = self._syncer.sync(request.user_id, request.request)
        return pb.SyncResponse(response=await self._timed(self._metrics.sync, answer))

    async def ListEvents(self, request: pb.ListEventsRequest, context: Context) -> pb.ListEventsResponse:
        answer = self._reader.list_events(request.user_id, request.request)
        return pb.ListEventsResponse(response=await self._timed(self._metrics.list_events, answer))

    async def GetConversation(self, request: pb.GetConversationRequest, context: Context) -> pb.GetConversationResponse:
        answer = self._reader.get_conversation(request.user_id, request.request)
        return pb.GetConversationResponse(response=await self._timed(self._metrics.get_conversation, answer))

    async def ListMembers(self, request: pb.ListMembersRequest, context: Context) -> pb.ListMembersResponse:
        answer = self._reader.list_members(request.user_id, request.request)
        return pb.ListMembersResponse(response=await self._timed(self._metrics.list_members, answer))

    async def GetDigests(self, request: pb.GetDigestsRequest, context: Context) -> pb.GetDigestsResponse:
        return pb.GetDigestsResponse(
            digests=await self._timed(self._metrics.get_digests, self._syncer.whole_digests(request.user_ids))
        )

    async def ListRecipients(self, request: pb.ListRecipientsRequest, context: Context) -> pb.ListRecipientsResponse:
        return await self._timed(self._metrics.list_recipients, self._reader.list_recipients(request.conversation_id))

    async def _timed(self, seconds: Spread, answer: Awaitable[T]) -> T:
        """Wait for an answer; an engine that fails becomes an error that says to come again."""
        started = self._clock.monotonic()
        try:
            return await answer
        except TimelineUnavailableError as error:
            raise Unavailable("UNAVAILABLE", f"the tables can't be read: {error}", retry_delay_seconds=_RETRY_SECONDS) from error
        finally:
            seconds.observe(self._clock.monotonic() - started)
