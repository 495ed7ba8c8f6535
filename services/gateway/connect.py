"""A device's stream: Hello, frames in, frames out, and the goodbye.

Three coroutines a stream. The handler only waits: the call ends by its return, which works while a read and even a stuck write
are pending, whereas a cancelled read leaks and a cancelled handler leaves the client without an end. The reader takes one frame
at a time. The writer sends everything that is queued in one frame.
"""

import asyncio
import math
import random
from collections.abc import Mapping
from typing import Any, Final

import grpc
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError
from google.protobuf.timestamp_pb2 import Timestamp

from chassis.clock import Clock
from chassis.errors import FailedPrecondition, InvalidArgument, PermissionDenied, ServiceError, Unauthenticated, status_of
from chassis.tasks import Tasks
from parley.api.v1.messaging_service_pb2 import ConnectResponse, FrameError, GoAwayReason, Hello, Limits, Welcome
from parley.gateway.v1.frames_pb2 import RawConnectRequest
from parley_protocol.ids import is_app_id
from parley_protocol.limits import PAGE_CONVERSATIONS, PAGE_EVENTS, RULES, RULES_VERSION
from services.gateway.checks import DigestChecks
from services.gateway.config import GatewaySettings
from services.gateway.directory import Directory
from services.gateway.goodbyes import go_away
from services.gateway.inbound import NO_PRESSURE, Inbound, Pressure
from services.gateway.metrics import Metrics
from services.gateway.records import origin_fields
from services.gateway.session import Session
from services.gateway.slots import Slots
from services.gateway.streams import Streams
from services.gateway.tokens import TokenVerifier

_MAX_BAD_FRAMES: Final = 16  # in a row: a client that mends nothing
_CLIENT_CHARS: Final = 128

Context = grpc.aio.ServicerContext[Any, Any]


class DeviceStreams:
    """Serves MessagingService.Connect."""

    def __init__(
        self,
        settings: GatewaySettings,
        instance_id: str,
        *,
        verifier: TokenVerifier,
        streams: Streams,
        directory: Directory,
        slots: Slots,
        inbound: Inbound,
        checks: DigestChecks,
        tasks: Tasks,
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
        self._inbound = inbound
        self._checks = checks
        self._tasks = tasks
        self._monotonic = clock.monotonic
        self._clock = clock
        self._metrics = metrics
        self._counts = metrics.counts
        self._rng = rng
        heartbeat = Duration()
        heartbeat.FromNanoseconds(int(settings.heartbeat_seconds * 1e9))
        self._welcome = Welcome(
            heartbeat_interval=heartbeat,
            limits=Limits(
                body_bytes=RULES[RULES_VERSION].body_bytes,
                frame_bytes=settings.frame_bytes,
                commands_per_frame=settings.commands_per_frame,
                group_members=settings.group_members,
                commands_per_second=settings.commands_per_second,
                page_events=PAGE_EVENTS,
                page_conversations=PAGE_CONVERSATIONS,
            ),
        )

    async def connect(self, _requests: object, context: Context) -> None:
        """Serve one stream until the device leaves or is told to. A call without a valid token gets a GoAway and the status too."""
        try:
            claims = self._verifier.authenticate(metadata_of(context))
        except Unauthenticated as error:
            expired = error.reason == "TOKEN_EXPIRED"
            reason = GoAwayReason.GO_AWAY_REASON_EXPIRED if expired else GoAwayReason.GO_AWAY_REASON_UNAUTHENTICATED
            await self._turn_away(context, reason, error.detail)
            raise
        now = self._monotonic()
        refusal = self._slots.misplaced(claims.user_id) or self._streams.refusal(now)
        if refusal is not None:
            await self._turn_away(context, *refusal)
            return
        session = Session(claims, now, self._settings.outbox_fields, self._settings.outbox_bytes)
        self._streams.add(session)
        try:
            self._tasks.spawn(self._read(context, session), name="read")
            self._tasks.spawn(self._write(context, session), name="write")
            await session.ended
        finally:
            self._leave(session)
            if session.stuck:
                context.add_done_callback(self._streams.abandon())  # type: ignore[arg-type]  # the stub declares a class for a callable
        if session.failure is not None:
            raise session.failure

    async def _turn_away(
        self, context: Context, reason: GoAwayReason.ValueType, detail: str, address: str = "", delay_seconds: float | None = None
    ) -> None:
        self._metrics.goaways[reason].inc()
        await context.write(go_away(reason, detail, address, delay_seconds))

    def _leave(self, session: Session) -> None:
        session.close()
        self._streams.remove(session)
        if session.goodbye_reason:
            self._metrics.goaways[session.goodbye_reason].inc()
        if self._directory.remove(session):
            self._metrics.sessions.dec()

    async def _read(self, context: Context, session: Session) -> None:
        read, monotonic = context.read, self._monotonic
        try:
            while not session.ending:
                raw = await read()
                if raw is grpc.aio.EOF:
                    session.finish()
                    break
                pressure = self._take(session, raw, monotonic())
                if pressure is not NO_PRESSURE:
                    session.heard_at = math.inf  # it is not the device that is silent
                    await asyncio.sleep(pressure.pause_seconds)
                    if pressure.lane is not None:
                        await pressure.lane.wait_room()
                    session.heard_at = monotonic()
        except grpc.aio.BaseError:
            session.close()  # the stream is broken, or the handler returned meanwhile
        except Exception as error:
            session.close(error)

    async def _write(self, context: Context, session: Session) -> None:
        write, monotonic, counts = context.write, self._monotonic, self._counts
        try:
            while not session.closed:
                frame = session.take_frame()
                if frame is not None:
                    session.writing_since = monotonic()
                    await write(frame)
                    session.writing_since = math.inf
                    counts.frames_out += 1
                elif not session.closed:
                    await session.wait()
        except grpc.aio.BaseError:
            session.close()
        except Exception as error:
            session.close(error)

    def _take(self, session: Session, raw: bytes, now: float) -> Pressure:
        self._counts.frames_in += 1
        pressure = NO_PRESSURE
        try:
            request = RawConnectRequest.FromString(raw)
            if request.HasField("batch"):
                if not session.device_id:
                    raise FailedPrecondition("HELLO_EXPECTED", "the first frame must be Hello")
                pressure = self._inbound.take(session, request.batch, now, len(raw))
            elif request.HasField("hello"):
                self._greet(session, request.hello)
            else:
                raise InvalidArgument("FIELD_MISSING", "the frame holds nothing that this server knows")
        except DecodeError:
            self._refuse(session, InvalidArgument("MALFORMED", "the frame can't be parsed"))
        except ServiceError as error:
            self._refuse(session, error)
        else:
            session.bad_frames = 0
        if session.device_id:
            session.heard_at = now
        return pressure

    def _refuse(self, session: Session, error: ServiceError) -> None:
        self._metrics.bad_frames.inc()
        session.bad_frames += 1
        session.put_control(ConnectResponse(frame_error=FrameError(status=status_of(error))).SerializeToString())
        if session.bad_frames >= _MAX_BAD_FRAMES:
            session.say_goodbye(GoAwayReason.GO_AWAY_REASON_PROTOCOL_ERROR, f"{_MAX_BAD_FRAMES} bad frames in a row")

    def _greet(self, session: Session, hello: Hello) -> None:
        """Open the session: registered before Welcome is queued, so that nothing that happens after Welcome is missed."""
        if session.device_id:
            raise FailedPrecondition("HELLO_REPEATED", "Hello comes once")
        device_id = pinned_device(session.pinned_device_id, hello.device_id)
        if len(hello.client) > _CLIENT_CHARS:
            raise InvalidArgument("FIELD_INVALID", f"client must be at most {_CLIENT_CHARS} characters")
        misplaced = self._slots.misplaced(session.user_id)  # again: the slot may have gone since the stream began
        if misplaced is not None:
            session.say_goodbye(*misplaced)
            return
        session.device_id = device_id
        session.session_id = f"{self._rng.getrandbits(64):016x}"
        session.origin = origin_fields(
            user_id=session.user_id,
            device_id=device_id,
            gateway_id=self._instance_id,
            session_id=session.session_id,
            member_cap=self._settings.group_members,
        )
        replaced = self._directory.add(session)
        if replaced is not None:
            replaced.say_goodbye(GoAwayReason.GO_AWAY_REASON_REPLACED, "the same device connected again")
        else:
            self._metrics.sessions.inc()
        if self._directory.count_of(session.user_id) > self._settings.max_streams_per_user:
            session.say_goodbye(GoAwayReason.GO_AWAY_REASON_OVERLOADED, "the user has too many devices here")
            return
        self._checks.begin(session, self._monotonic())
        server_time = Timestamp()
        server_time.FromMilliseconds(self._clock.wall_ms())
        welcome = Welcome(session_id=session.session_id, server_time=server_time, user_id=session.user_id, device_id=device_id)
        welcome.MergeFrom(self._welcome)
        session.put_control(ConnectResponse(welcome=welcome).SerializeToString())


def pinned_device(pinned: str, named: str) -> str:
    """Return the device that a call speaks for. Raises if it names none, a malformed one, or another than its token pins."""
    if pinned:
        if named and named != pinned:
            raise PermissionDenied("DEVICE_MISMATCH", "the token pins another device")
        return pinned
    if not named:
        raise InvalidArgument("FIELD_MISSING", "device_id is missing and the token pins none")
    if not is_app_id(named):
        raise InvalidArgument("FIELD_INVALID", "device_id must be 1 to 128 characters of printable ASCII without space")
    return named


def metadata_of(context: Context) -> Mapping[str, str | bytes]:
    """Return a call's metadata by key, the last value of each."""
    return dict(context.invocation_metadata() or ())
