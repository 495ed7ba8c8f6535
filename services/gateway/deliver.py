"""What routers ask: put this into the outboxes of those devices."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from typing import Any, Final

import grpc

from chassis.errors import FailedPrecondition, InvalidArgument
from chassis.registry import Epoch, Holder
from parley.gateway.v1.gateway_service_pb2 import (
    DeliverRequest,
    DeliverResponse,
    ListSessionsRequest,
    ListSessionsResponse,
    NoteOwnersRequest,
    NoteOwnersResponse,
    SlotEpochs,
    Unreached,
)
from parley.gateway.v1.gateway_service_pb2_grpc import GatewayServiceServicer
from parley.log.v1.records_pb2 import EventRecord
from services.gateway.directory import Directory
from services.gateway.grace import Grace
from services.gateway.metrics import Metrics
from services.gateway.records import CALL_PREFIX
from services.gateway.session import Session
from services.gateway.slots import Ended, Slots

_MAX_USERS: Final = 1000
_MAX_MOVES: Final = 1000
_PATIENCE_SECONDS: Final = 0.03  # watermarks wait that long for a frame to go with: a write costs more than all they say

Context = grpc.aio.ServicerContext[Any, Any]


class GatewayRpc(GatewayServiceServicer):
    """Serves GatewayService: one loop over outboxes, which never wait for a device."""

    def __init__(
        self, directory: Directory, slots: Slots, grace: Grace, on_ended: Callable[[Sequence[Ended]], None], metrics: Metrics
    ) -> None:
        self._directory = directory
        self._slots = slots
        self._grace = grace
        self._on_ended = on_ended
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
            if request.slot_count and request.slot_count != self._slots.count:
                detail = f"{request.slot_count} slots there, {self._slots.count} here: set SLOT_COUNT alike"
                raise FailedPrecondition("SLOT_COUNT_DIFFERS", detail)
            yield self.deliver(request)

    async def ListSessions(self, request: ListSessionsRequest, context: Context) -> ListSessionsResponse:
        if len(request.user_ids) > _MAX_USERS:
            raise InvalidArgument("FIELD_INVALID", f"user_ids must be at most {_MAX_USERS}")
        by_user = self._directory.by_user
        return ListSessionsResponse(user_ids=[user_id for user_id in request.user_ids if user_id in by_user])

    async def NoteOwners(self, request: NoteOwnersRequest, context: Context) -> NoteOwnersResponse:
        if len(request.moves) > _MAX_MOVES:
            raise InvalidArgument("FIELD_INVALID", f"moves must be at most {_MAX_MOVES}")
        ended = []
        for move in request.moves:
            owner = Holder(move.owner_id, Epoch(move.owner_session_id, move.owner_lock_index))
            end = self._slots.on_told(move.slot, Epoch(move.session_id, move.lock_index), owner, move.owner_address)
            if end is not None:
                ended.append(end)
        if ended:
            self._on_ended(ended)
        return NoteOwnersResponse()

    def deliver(self, request: DeliverRequest) -> DeliverResponse:
        """Queue everything for those who are here under the epochs that the router names, and say who was not reached."""
        if request.all_slots:
            refused = set() if request.all_slots == self._slots.fingerprint else set(range(self._slots.count))
        else:
            refused = self._refused(request.epochs)
        events: Iterable[EventRecord] = request.events
        if refused:
            events = [self._without(event, refused) for event in events]
        unreached: list[Unreached] = []
        for event in events:
            self._deliver_one(event, unreached.append)
        if self._patient and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_PATIENCE_SECONDS, self._wake_patient)
        self._metrics.counts.deliveries += len(request.events)
        if unreached:
            self._metrics.unreached.inc(len(unreached))
            unreached = self._grace.defer(unreached)
        response = DeliverResponse(number=request.number, unreached=unreached)
        if refused:
            self._metrics.refused_slots.inc(len(refused))
            response.refused_slots.extend(sorted(refused))
            response.owners.extend(self._owners(sorted(refused)))
        return response

    def _refused(self, stamps: Iterable[SlotEpochs]) -> set[int]:
        """Return the stamped slots that are not here, or not under that epoch."""
        epochs, refused = self._slots.epochs, set()
        for stamp in stamps:
            session_id = stamp.session_id
            for slot, lock_index in zip(stamp.slots, stamp.lock_indexes, strict=False):
                epoch = epochs.get(slot)
                if epoch is None or epoch.lock_index != lock_index or epoch.session_id != session_id:
                    refused.add(slot)
        return refused

    def _owners(self, slots: Iterable[int]) -> Iterable[SlotEpochs]:
        by_session: dict[str, SlotEpochs] = {}
        for slot in slots:
            owner = self._slots.owner_of(slot)
            if owner is not None:
                name, (session_id, lock_index) = owner
                stamp = by_session.setdefault(session_id, SlotEpochs(session_id=session_id, owner_id=name))
                stamp.slots.append(slot)
                stamp.lock_indexes.append(lock_index)
        return by_session.values()

    def _without(self, event: EventRecord, refused: set[int]) -> EventRecord:
        """Return what is left of an event without the users of refused slots. `own` may be for somebody who waits here."""
        slot_of = self._slots.slot_of
        left = EventRecord()
        left.CopyFrom(event)
        del left.recipients[:]
        left.recipients.extend(user_id for user_id in event.recipients if slot_of(user_id) not in refused)
        if slot_of(event.user_id) in refused:
            left.actor = b""
        return left

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
            elif event.session_id.startswith(CALL_PREFIX):
                device_id = ""  # it waits at another gateway, or no more
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
