"""Calls that are no stream: one command that waits for its outcome, and reads, which the store authorises and answers.

What the store or the router refuses passes on as it is: status, reason and details.
"""

import asyncio
import random
from typing import Any

import grpc
from grpc_status import rpc_status

from chassis.clock import Clock
from chassis.errors import DeadlineExceeded, InvalidArgument, ResourceExhausted, Unavailable
from parley.api.v1 import messaging_service_pb2 as api
from parley.gateway.v1.frames_pb2 import RawSubmitRequest
from parley.router.v1.router_service_pb2 import ListOnlineRequest
from parley.router.v1.router_service_pb2_grpc import RouterServiceStub
from parley.store.v1 import store_service_pb2 as store
from parley.store.v1.store_service_pb2_grpc import StoreServiceStub
from parley_protocol.ids import direct_conversation_id, group_conversation_id, is_app_id
from parley_protocol.limits import RULES, RULES_VERSION
from services.gateway.commands import check_command, check_request_id
from services.gateway.config import GatewaySettings
from services.gateway.connect import Context, metadata_of, pinned_device
from services.gateway.directory import Directory
from services.gateway.inbound import refused
from services.gateway.log_writer import LogWriter
from services.gateway.metrics import Metrics
from services.gateway.rates import DeviceRates
from services.gateway.records import CALL_PREFIX, command_record, origin_fields
from services.gateway.slots import UNSURE_DETAIL, UNSURE_SECONDS, Slots
from services.gateway.streams import Streams
from services.gateway.tokens import Claims, TokenVerifier

_MAX_PRESENCES = 100
_RETRY_SECONDS = 1.0
_BYTES_A_TURN = 32 * 1024  # a message with the largest body, and more


class Calls:
    """Serves the unary methods of MessagingService."""

    def __init__(
        self,
        settings: GatewaySettings,
        instance_id: str,
        *,
        verifier: TokenVerifier,
        streams: Streams,
        directory: Directory,
        slots: Slots,
        writer: LogWriter,
        rates: DeviceRates,
        store_channel: grpc.aio.Channel,
        router_channel: grpc.aio.Channel,
        clock: Clock,
        metrics: Metrics,
        rng: random.Random,
    ) -> None:
        self._settings = settings
        self._instance_id = instance_id
        self._verifier = verifier
        self._streams = streams
        self._directory = directory
        self._slots = slots
        self._writer = writer
        self._rates = rates
        self._store = StoreServiceStub(store_channel)
        self._router = RouterServiceStub(router_channel)
        self._clock = clock
        self._metrics = metrics
        self._rng = rng

    async def locate(self, request: api.LocateRequest, context: Context) -> api.LocateResponse:
        """Say which gateway serves the caller's devices."""
        address = self._slots.address_of(self._slots.slot_of(self._caller(context).user_id))
        if address is None:
            raise Unavailable("UNAVAILABLE", UNSURE_DETAIL, retry_delay_seconds=UNSURE_SECONDS)
        return api.LocateResponse(address=address)

    async def submit(self, request: RawSubmitRequest, context: Context) -> api.SubmitResponse:
        """Append one command and wait for its outcome."""
        claims = self._verifier.authenticate(metadata_of(context))
        device_id = pinned_device(claims.device_id, request.device_id)
        # Large commands cost more: what is pushed in here comes out at others, who have to read it.
        self._take_turn(claims.user_id, device_id, min(1 + request.ByteSize() // _BYTES_A_TURN, self._settings.commands_burst))
        if not request.HasField("command"):
            raise InvalidArgument("FIELD_MISSING", "command is missing")
        command = request.command
        check_request_id(command.request_id)
        check_command(command, RULES[RULES_VERSION])
        if command.to_user_id:
            conversation_id = direct_conversation_id(claims.user_id, command.to_user_id)
        else:
            conversation_id = command.conversation_id or group_conversation_id(claims.user_id, device_id, command.request_id)
        if self._streams.draining:
            raise Unavailable("UNAVAILABLE", "the server stops: ask again", retry_delay_seconds=_RETRY_SECONDS)
        waiting = self._directory.waiting
        if len(waiting) >= self._settings.max_waiting_submits:
            raise ResourceExhausted("OVERLOADED", "too many calls wait for an outcome", retry_delay_seconds=_RETRY_SECONDS)
        call_id = f"{CALL_PREFIX}{self._rng.getrandbits(64):016x}"
        origin = origin_fields(
            user_id=claims.user_id,
            device_id=device_id,
            gateway_id=self._instance_id,
            session_id=call_id,
            member_cap=self._settings.group_members,
        )
        outcome: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        waiting[call_id] = outcome
        self._metrics.waiting_submits.inc()
        try:
            key = conversation_id.encode()
            if wait := self._writer.lane_of(key).offer(key, command_record(origin, key, command.SerializeToString())):
                self._metrics.commands_overloaded.inc()
                raise refused("OVERLOADED", wait)
            self._metrics.counts.commands_taken += 1
            async with asyncio.timeout(self._deadline(context, self._settings.submit_seconds)):
                fields = await outcome
        except TimeoutError as error:
            raise DeadlineExceeded("OUTCOME_UNKNOWN", "no outcome in time: repeat it with the same request_id") from error
        finally:
            del waiting[call_id]
            self._metrics.waiting_submits.dec()
        answer = api.ServerBatch.FromString(fields).outcomes[0]
        if answer.HasField("rejected"):
            await context.abort_with_status(rpc_status.to_status(answer.rejected))
        return api.SubmitResponse(accepted=answer.accepted)

    async def sync(self, request: api.SyncRequest, context: Context) -> api.SyncResponse:
        """Ask the store what changed."""
        claims = self._caller(context)
        asked = store.SyncRequest(user_id=claims.user_id, request=request)
        return (await self._store.Sync(asked, timeout=self._deadline(context, self._settings.read_seconds))).response

    async def list_events(self, request: api.ListEventsRequest, context: Context) -> bytes:
        """Ask the store for a page of a timeline, encoded."""
        claims = self._caller(context)
        asked = store.ListEventsRequest(user_id=claims.user_id, request=request)
        return (await self._store.ListEvents(asked, timeout=self._deadline(context, self._settings.read_seconds))).response

    async def get_conversation(self, request: api.GetConversationRequest, context: Context) -> api.GetConversationResponse:
        """Ask the store for one conversation."""
        claims = self._caller(context)
        asked = store.GetConversationRequest(user_id=claims.user_id, request=request)
        return (await self._store.GetConversation(asked, timeout=self._deadline(context, self._settings.read_seconds))).response

    async def list_members(self, request: api.ListMembersRequest, context: Context) -> api.ListMembersResponse:
        """Ask the store for members."""
        claims = self._caller(context)
        asked = store.ListMembersRequest(user_id=claims.user_id, request=request)
        return (await self._store.ListMembers(asked, timeout=self._deadline(context, self._settings.read_seconds))).response

    async def get_presence(self, request: api.GetPresenceRequest, context: Context) -> api.GetPresenceResponse:
        """Ask the router who is connected, here or elsewhere."""
        self._caller(context)
        user_ids = list(request.user_ids)
        if not 1 <= len(user_ids) <= _MAX_PRESENCES:
            raise InvalidArgument("FIELD_INVALID", f"user_ids must be 1 to {_MAX_PRESENCES}")
        if not all(map(is_app_id, user_ids)):
            raise InvalidArgument("FIELD_INVALID", "user_ids must be 1 to 128 characters of printable ASCII without space")
        timeout = self._deadline(context, self._settings.read_seconds)
        online = frozenset((await self._router.ListOnline(ListOnlineRequest(user_ids=user_ids), timeout=timeout)).user_ids)
        states = api.PresenceState
        return api.GetPresenceResponse(
            presences=[
                api.Presence(
                    user_id=user_id, state=states.PRESENCE_STATE_ONLINE if user_id in online else states.PRESENCE_STATE_OFFLINE
                )
                for user_id in user_ids
            ]
        )

    def _caller(self, context: Context) -> Claims:
        claims = self._verifier.authenticate(metadata_of(context))
        self._take_turn(claims.user_id, claims.device_id)
        return claims

    def _take_turn(self, user_id: str, device_id: str, turns: int = 1) -> None:
        """Count a call against its device's rate; reads with a token that pins no device share one of their user's."""
        now = self._clock.monotonic()
        if wait := self._rates.bucket_of(user_id, device_id, now).take(now, turns):
            self._metrics.commands_rate_limited.inc()
            raise refused("RATE_LIMITED", wait)

    def _deadline(self, context: Context, seconds: float) -> float:
        left = context.time_remaining()
        return seconds if left is None else min(seconds, left)


def method_handlers(calls: Calls) -> "dict[str, grpc.RpcMethodHandler[Any, Any]]":
    """Return the unary methods by name."""

    def unary(function: Any, request: Any, response: Any) -> "grpc.RpcMethodHandler[Any, Any]":
        encode = response.SerializeToString if response is not None else None  # None: encoded already
        return grpc.unary_unary_rpc_method_handler(function, request.FromString, encode)

    return {
        "Locate": unary(calls.locate, api.LocateRequest, api.LocateResponse),
        "Submit": unary(calls.submit, RawSubmitRequest, api.SubmitResponse),
        "Sync": unary(calls.sync, api.SyncRequest, api.SyncResponse),
        "ListEvents": unary(calls.list_events, api.ListEventsRequest, None),
        "GetConversation": unary(calls.get_conversation, api.GetConversationRequest, api.GetConversationResponse),
        "ListMembers": unary(calls.list_members, api.ListMembersRequest, api.ListMembersResponse),
        "GetPresence": unary(calls.get_presence, api.GetPresenceRequest, api.GetPresenceResponse),
    }
