"""What routers ask: put this into the outboxes of those devices."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any, Final

import grpc

from chassis.errors import InvalidArgument
from parley.gateway.v1.gateway_service_pb2 import (
    DeliverRequest,
    DeliverResponse,
    ListSessionsRequest,
    ListSessionsResponse,
    Unreached,
)
from parley.gateway.v1.gateway_service_pb2_grpc import GatewayServiceServicer
from parley.log.v1.records_pb2 import EventRecord
from services.gateway.directory import Directory
from services.gateway.metrics import Metrics
from services.gateway.session import Session

_MAX_USERS: Final = 1000
_PATIENCE_SECONDS: Final = 0.03  # watermarks wait that long for a frame to go with: a write costs more than all they say

Context = grpc.aio.ServicerContext[Any, Any]


class GatewayRpc(GatewayServiceServicer):
    """Serves GatewayService: one loop over outboxes, which never wait for a device."""

    def __init__(self, directory: Directory, metrics: Metrics) -> None:
        self._directory = directory
        self._metrics = metrics
        self._patient: dict[Session, None] = {}  # have watermarks queued, and nothing that woke their writers
        self._timer: asyncio.TimerHandle | None = None

    def close(self) -> None:
        """Let go of the timer; what is still queued goes out with the goodbyes."""
        if self._timer is not None:
            self._timer.cancel()
            self._wake_patient()

    async def Deliver(self, requests: AsyncIterator[DeliverRequest], context: Context) -> AsyncIterator[DeliverResponse]:
        async for request in requests:
            yield self.deliver(request)

    async def ListSessions(self, request: ListSessionsRequest, context: Context) -> ListSessionsResponse:
        if len(request.user_ids) > _MAX_USERS:
            raise InvalidArgument("FIELD_INVALID", f"user_ids must be at most {_MAX_USERS}")
        by_user = self._directory.by_user
        return ListSessionsResponse(user_ids=[user_id for user_id in request.user_ids if user_id in by_user])

    def deliver(self, request: DeliverRequest) -> DeliverResponse:
        """Queue everything and say who was not reached."""
        unreached: list[Unreached] = []
        for event in request.events:
            self._deliver_one(event, unreached.append)
        if self._patient and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_PATIENCE_SECONDS, self._wake_patient)
        self._metrics.counts.deliveries += len(request.events)
        if unreached:
            self._metrics.unreached.inc(len(unreached))
        return DeliverResponse(number=request.number, unreached=unreached)

    def _deliver_one(self, event: EventRecord, report: Callable[[Unreached], None]) -> None:
        by_user = self._directory.by_user
        actor, device_id, own, shared = event.user_id, event.device_id, event.own, event.shared
        if own:
            waiting = self._directory.waiting.get(event.session_id)
            if waiting is not None:
                # A call got the outcome, so the device's stream, if it has one, learns of it like any other device.
                device_id = ""
                if not waiting.done():
                    waiting.set_result(own)
            else:
                for session in by_user.get(actor, ()):
                    if session.device_id == device_id:
                        session.put(own)
        prompt = bool(own or event.seq)
        if shared:
            wakes = event.wakes
            for user_id in event.recipients:
                reached = user_id == actor  # nobody is woken for what he did himself
                for session in by_user.get(user_id, ()):
                    if (user_id != actor or session.device_id != device_id) and session.put(shared, wake=prompt):
                        reached = True
                        if not prompt:
                            self._patient[session] = None
                if not reached and wakes:
                    report(Unreached(conversation_id=event.conversation_id, seq=event.seq, user_id=user_id))
        if event.actor:
            for session in by_user.get(actor, ()):
                if session.device_id != device_id and session.put(event.actor, wake=prompt) and not prompt:
                    self._patient[session] = None

    def _wake_patient(self) -> None:
        """Let the watermarks go that no frame has taken along meanwhile."""
        self._timer = None
        for session in self._patient:
            session.wake()
        self._patient.clear()
