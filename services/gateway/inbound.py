"""What a frame of a device means: Hello apart, everything that it asks for.

No I/O and no waiting: records go to the log writer's queues, answers to the session's outbox. What comes back is how long the
stream should pause before it reads on, so that a device that asks for too much slows itself and nobody else.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

import grpc
from google.protobuf.duration_pb2 import Duration

from chassis.errors import InvalidArgument, ResourceExhausted, ServiceError, build_status, status_of
from chassis.rate import TokenBucket
from parley.api.v1.commands_pb2 import Outcome, Retry
from parley.api.v1.events_pb2 import Ack
from parley.api.v1.messaging_service_pb2 import GoAwayReason, Skip
from parley.gateway.v1.frames_pb2 import RawDeviceBatch
from parley.log.v1.records_pb2 import RawCommand
from parley_protocol.frames import HEARTBEAT_FIELD, OUTCOME_TAG, field
from parley_protocol.ids import group_conversation_id, is_conversation_id
from parley_protocol.limits import RULES, RULES_VERSION
from services.gateway.acks import AckMerger
from services.gateway.checks import DigestChecks
from services.gateway.commands import check_command, check_request_id
from services.gateway.log_writer import Lane, LogWriter
from services.gateway.metrics import Metrics
from services.gateway.rates import DeviceRates
from services.gateway.records import command_record
from services.gateway.session import MAX_HOLDS, Session

_RULES: Final = RULES[RULES_VERSION]
_MAX_ITEMS: Final = 2000  # acks or skips in one frame: a device that comes back to 2,000 conversations
_ITEMS_PER_SECOND: Final = 1000.0  # frames, acks, skips and kB of one device: 100 times what an SDK sends
_ITEMS_BURST: Final = 2 * _MAX_ITEMS + 1  # a frame of acks and skips, of whatever size
_MAX_PAUSE_SECONDS: Final = 1.0  # a heartbeat must still be heard in time
_HELD_DELAY_SECONDS: Final = 0.25  # for a command that waits for another one of its conversation: about as long as that one


class Pressure(NamedTuple):
    """What the stream should wait for before its next read."""

    pause_seconds: float = 0.0
    lane: Lane | None = None  # wait until it has room


NO_PRESSURE: Final = Pressure()


class Inbound:
    """Takes the batches of all devices."""

    def __init__(
        self,
        writer: LogWriter,
        acks: AckMerger,
        rates: DeviceRates,
        checks: DigestChecks,
        metrics: Metrics,
        commands_per_frame: int,
    ) -> None:
        self._lane_of = writer.lane_of
        self._acks = acks
        self._rates = rates
        self._checks = checks
        self._metrics = metrics
        self._commands_per_frame = commands_per_frame

    def take(self, session: Session, batch: RawDeviceBatch, now: float, size_bytes: int) -> Pressure:
        """Do what a batch of that size asks. Raises InvalidArgument, then nothing of it was done."""
        commands, acks, skips = batch.commands, batch.acks, batch.skips  # reading an empty repeated field costs ~1 us a time
        if commands:
            self._check_commands(commands, batch.first_command_number)
        if acks or skips:
            _check_items(acks, skips)
        chatter = session.chatter
        if chatter is None:
            chatter = session.chatter = TokenBucket(_ITEMS_PER_SECOND, _ITEMS_BURST)
        # Bytes count, for what is pushed in here comes out at others, who have to read it.
        pause = chatter.take(now, min(1 + len(acks) + len(skips) + (size_bytes >> 10), _ITEMS_BURST))
        for skip in skips:
            session.skip(skip.conversation_id, skip.number)
        if pause:
            self._metrics.acks_dropped.inc(len(acks))
        elif acks:
            add, user_id, origin = self._acks.add, session.user_id, session.origin
            for ack in acks:
                add(user_id, origin, ack.conversation_id, ack.delivered_seq, ack.read_seq)
        if not commands:
            if batch.HasField("heartbeat") and not pause:
                session.put(HEARTBEAT_FIELD)
            if batch.HasField("digest") and not pause:
                self._checks.on_digest(session, batch.digest.value)
            return Pressure(min(pause, _MAX_PAUSE_SECONDS)) if pause else NO_PRESSURE
        wait, lane = self._take_commands(session, commands, batch.first_command_number, now)
        pause = min(max(pause, wait), _MAX_PAUSE_SECONDS)
        return Pressure(pause, lane) if pause or lane is not None else NO_PRESSURE

    def _check_commands(self, commands: Sequence[RawCommand], first_number: int) -> None:
        if len(commands) > self._commands_per_frame:
            raise InvalidArgument("TOO_MANY_COMMANDS", f"a frame takes {self._commands_per_frame} commands, not {len(commands)}")
        if first_number < 1:
            raise InvalidArgument("FIELD_INVALID", "first_command_number must be 1 or more")
        for command in commands:
            check_request_id(command.request_id)

    def _take_commands(
        self, session: Session, commands: Sequence[RawCommand], first_number: int, now: float
    ) -> tuple[float, Lane | None]:
        bucket = self._rates.bucket_of(session.user_id, session.device_id, now)
        # While something is held commands pay one by one: a held one must not take the token that the one it waits for needs.
        pause = 0.0 if session.holds else bucket.take(now, len(commands))
        granted = not session.holds and pause == 0.0
        origin = session.origin
        crowded: Lane | None = None
        taken = unpaid = 0
        for number, command in enumerate(commands, first_number):
            try:
                check_command(command, _RULES)
            except ServiceError as error:
                self._metrics.commands_rejected.inc()
                unpaid += 1
                outcome = Outcome(request_id=command.request_id, rejected=status_of(error))
                session.put(field(OUTCOME_TAG, outcome.SerializeToString()))
                continue
            conversation_id = command.conversation_id or self._resolve(session, command)
            held = session.holds.get(conversation_id) if session.holds else None
            if held is not None and number > held:
                self._metrics.commands_held.inc()
                unpaid += 1
                self._put_retry(session, command, held, conversation_id, "OVERLOADED", _HELD_DELAY_SECONDS)
                continue
            if not granted and (wait := bucket.take(now)):
                pause = max(pause, wait)
                self._metrics.commands_rate_limited.inc()
                self._hold(session, command, number, conversation_id, "RATE_LIMITED", wait)
                continue
            key = conversation_id.encode()
            lane = self._lane_of(key)
            if wait := lane.offer(key, command_record(origin, key, command.SerializeToString())):
                self._metrics.commands_overloaded.inc()
                self._hold(session, command, number, conversation_id, "OVERLOADED", wait)
                continue
            if number == held and session.holds:
                del session.holds[conversation_id]
            taken += 1
            if lane.crowded:
                crowded = lane
        self._metrics.counts.commands_taken += taken
        chatter = session.chatter
        if unpaid and chatter is not None:  # free of charge is not free of limits
            while unpaid and not chatter.take(now):
                unpaid -= 1
            if unpaid:
                pause = max(pause, chatter.take(now, min(unpaid, _MAX_ITEMS)))
        return pause, crowded

    def _resolve(self, session: Session, command: RawCommand) -> str:
        if command.to_user_id:
            return session.conversation_with(command.to_user_id)
        return group_conversation_id(session.user_id, session.device_id, command.request_id)

    def _hold(self, session: Session, command: RawCommand, number: int, conversation_id: str, reason: str, delay: float) -> None:
        """Refuse a command for now, and all later ones of its conversation until it comes again."""
        if not session.hold(conversation_id, number):
            session.say_goodbye(GoAwayReason.GO_AWAY_REASON_OVERLOADED, f"more than {MAX_HOLDS} conversations wait for a resend")
        self._put_retry(session, command, number, conversation_id, reason, delay)

    def _put_retry(
        self, session: Session, command: RawCommand, number: int, conversation_id: str, reason: str, delay_seconds: float
    ) -> None:
        delay = Duration()
        delay.FromNanoseconds(int(delay_seconds * 1e9))
        status = build_status(grpc.StatusCode.RESOURCE_EXHAUSTED, reason, _RETRY_DETAILS[reason], delay_seconds)
        retry = Retry(number=number, conversation_id=conversation_id, delay=delay, reason=status)
        session.put(field(OUTCOME_TAG, Outcome(request_id=command.request_id, retry=retry).SerializeToString()))


_RETRY_DETAILS: Final = {
    "RATE_LIMITED": "the device sends too much",
    "OVERLOADED": "nothing was promised: resend from this number after the delay",
}


def _check_items(acks: Sequence[Ack], skips: Sequence[Skip]) -> None:
    if len(acks) > _MAX_ITEMS or len(skips) > _MAX_ITEMS:
        raise InvalidArgument("FIELD_INVALID", f"a frame takes {_MAX_ITEMS} acks and {_MAX_ITEMS} skips")
    for ack in acks:
        if not is_conversation_id(ack.conversation_id):
            raise InvalidArgument("FIELD_INVALID", "acks.conversation_id must be d_ or g_ and 26 characters")
        if ack.delivered_seq < 0 or ack.read_seq < 0:
            raise InvalidArgument("FIELD_INVALID", "acks.delivered_seq and acks.read_seq must not be negative")


def refused(reason: str, delay_seconds: float) -> ResourceExhausted:
    """Return the same refusals as an error, for calls."""
    return ResourceExhausted(reason, _RETRY_DETAILS[reason], retry_delay_seconds=delay_seconds)
