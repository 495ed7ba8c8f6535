"""The rules: what a record does to its conversation. Deterministic, and tested to exhaustion.

`decide` reads the record, the state, the record's position and log time, what became of the same request before (its fate), and
immutable facts of the timeline below the head. Nothing else: no clock, no randomness, no settings, no other conversation.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from google.protobuf.message import DecodeError

from chassis.errors import AlreadyExists, ServiceError, status_of
from parley.api.v1.events_pb2 import Ack, Event
from parley.log.v1.records_pb2 import CommandRecord, MembershipChange, RawCommand
from parley_protocol.frames import EVENT_TAG, INBOX_CHANGE_TAG, OUTCOME_TAG, RECEIPT_TAG
from parley_protocol.frames import field as encoded_field
from parley_protocol.limits import RULES, RULES_VERSION, Rules
from services.store import encoding, membership
from services.store.actions import Change, UndecidableError, send_message
from services.store.membership import is_creation_of
from services.store.state import DIRECT, GROUP, ConversationState, Member, Position

DEDUPE_MS = 14 * 24 * 3600 * 1000  # a request_id is remembered for 14 days of log time
AHEAD_MS = 7 * 24 * 3600 * 1000  # and where log time has jumped back, until it is further back than this
NAMED_RECIPIENTS_MAX = 32  # up to here an event names its recipients; beyond, routers look them up
RECEIPTS_MAX_MEMBERS = 32  # in larger groups receipts are not pushed

MESSAGE = "send_message"
CREATE_GROUP = "create_group"
_ACTIONS = {MESSAGE: send_message, **membership.ACTIONS}


class Fate(NamedTuple):
    """What became of a request: a dedupe row."""

    position: Position
    log_ms: int
    payload_hash: bytes
    seq: int  # 0: rejected
    message_count: int
    rejection: bytes  # an encoded google.rpc.Status


class Known(NamedTuple):
    """What `decide` may ask of the past. The caller has loaded every answer before."""

    fate: Fate | None  # of the same (user, device, request_id) in this conversation
    count_at: Callable[[int], int]  # message_count at a seq below the head
    event_at: Callable[[int], bytes]  # the encoded event at a seq up to the head


@dataclass(slots=True)
class Effect:
    """What a record causes: rows to write and what to tell whom. Encoded bytes are fields of a ServerBatch."""

    seq: int = 0
    event: bytes = b""  # a new timeline row
    fate: Fate | None = None  # a new dedupe row
    stamp: int = 0  # of both rows
    shared: bytes = b""
    own: bytes = b""
    actor: bytes = b""
    recipients: list[str] = field(default_factory=list)
    all_members: bool = False
    membership_changes: list[MembershipChange] = field(default_factory=list)
    wakes: bool = False


class NewerRulesError(Exception):
    """The record was made by newer rules: this store must stop the partition until it is upgraded."""


def decide(state: ConversationState, record: CommandRecord, position: Position, log_ms: int, known: Known) -> Effect | None:
    """Apply one record to the state and return what it causes, None for nothing.

    Raises UndecidableError (nothing changed), NewerRulesError and NewerEpochError (stop the partition).
    """
    if record.rules_version > RULES_VERSION:
        raise NewerRulesError(f"record {position} has rules_version {record.rules_version}, this store knows {RULES_VERSION}")
    rules = RULES.get(record.rules_version)
    if rules is None:
        raise UndecidableError(f"rules_version {record.rules_version} never existed")
    body = record.WhichOneof("body")
    if body == "command":
        return _decide_command(state, record, position, log_ms, known, rules)
    if body == "ack":
        return _decide_ack(state, record, position, log_ms, known)
    raise UndecidableError("the record has no body that this store knows")


def _decide_command(
    state: ConversationState, record: CommandRecord, position: Position, log_ms: int, known: Known, rules: Rules
) -> Effect | None:
    command = record.command
    action = command.WhichOneof("action")
    if action is None:
        raise UndecidableError("the command has no action that this store knows")
    payload: bytes = getattr(command, action)
    if len(payload) > rules.command_bytes:
        raise UndecidableError(f"the action has {len(payload)} bytes, over the limit of {rules.command_bytes}")
    digest = encoding.payload_hash(record.conversation_id, action, payload)

    applied = state.has_applied(position)
    fate = known.fate
    if fate is not None and fate.position == position and applied:
        return _again(state, record, fate, known)
    if fate is not None and fate.position < position and counts(fate.log_ms, log_ms):
        return _answer_as_before(record, fate, digest)
    if applied:
        return None  # the client asks again
    try:
        if action == CREATE_GROUP and state.exists:
            return _answer_from_first_event(state, record, known, rules)
        change = _ACTIONS[action](state, record, payload, rules)
    except DecodeError as error:
        raise UndecidableError(f"the {action} does not parse") from error
    except ServiceError as refusal:
        return _reject(state, record, position, log_ms, digest, refusal)
    return _accept(state, record, position, log_ms, known, digest, change)


def counts(fate_ms: int, log_ms: int) -> bool:
    """Tell whether what became of a request at one log time counts at another."""
    return -AHEAD_MS <= log_ms - fate_ms <= DEDUPE_MS


def _accept(
    state: ConversationState, record: CommandRecord, position: Position, log_ms: int, known: Known, digest: bytes, change: Change
) -> Effect:
    command, user = record.command, record.user_id
    is_message = change.content == "message"
    seen_seq = min(command.seen_seq, state.head_seq)
    seen_count = _count_at(state, known, seen_seq) if seen_seq > 0 else 0
    state.append(position, log_ms, message=is_message)
    changes = change.apply()
    seq, count, stamp = state.head_seq, state.message_count, state.stamp
    member, saw, pushed = state.members[user], False, False
    if member.active:
        saw = seen_seq > member.read_seq
        if saw:
            member.read_to(seen_seq, seen_count)
            member.delivered_seq = max(member.delivered_seq, seen_seq)
        if is_message:
            read_seq = member.read_seq
            member.sent(seq, count)
            pushed = member.read_seq > read_seq
        state.touch_member(user)
    if not state.large:
        state.touch_inboxes()

    time = encoding.timestamp(log_ms)
    event = encoding.event(
        state.conversation_id, seq, time, user, record.device_id, command.request_id, count, change.content, change.payload
    )
    effect = Effect(seq=seq, event=event, stamp=stamp, membership_changes=changes, wakes=is_message)
    effect.fate = Fate(position, log_ms, digest, seq, count, b"")
    effect.shared = encoded_field(EVENT_TAG, event)
    effect.own = encoded_field(
        OUTCOME_TAG, encoding.accepted(command.request_id, state.conversation_id, seq, count, time, duplicate=False)
    )
    _address(state, effect)
    if saw or pushed:
        _tell_watermarks(state, user, member, log_ms, effect)
    if pushed:  # this device did not say so: it has to be told as well
        effect.own += effect.actor
    return effect


def _address(state: ConversationState, effect: Effect) -> None:
    """Say who gets the event at the head: the present members, and who left by it."""
    leaving = [change.user_id for change in effect.membership_changes if not change.joined]
    if len(state.present) + len(leaving) <= NAMED_RECIPIENTS_MAX:
        effect.recipients = state.present + leaving
    else:
        effect.all_members = True


def _reject(
    state: ConversationState, record: CommandRecord, position: Position, log_ms: int, digest: bytes, refusal: ServiceError
) -> Effect:
    """Refuse for good: no seq is used and the state does not move, the dedupe row makes it sticky."""
    status = status_of(refusal).SerializeToString()
    effect = Effect(stamp=state.next_stamp(log_ms))
    effect.fate = Fate(position, log_ms, digest, 0, 0, status)
    effect.own = encoded_field(OUTCOME_TAG, encoding.rejected(record.command.request_id, status))
    return effect


def _answer_as_before(record: CommandRecord, fate: Fate, digest: bytes) -> Effect:
    """Answer a resend as the first time; another payload under the same request_id is refused."""
    request_id = record.command.request_id
    if fate.payload_hash != digest:
        reused = AlreadyExists("REQUEST_ID_REUSED", "this request_id was used for another command")
        outcome = encoding.rejected(request_id, status_of(reused).SerializeToString())
    elif fate.seq:
        outcome = encoding.accepted(
            request_id, record.conversation_id, fate.seq, fate.message_count, encoding.timestamp(fate.log_ms), duplicate=True
        )
    else:
        outcome = encoding.rejected(request_id, fate.rejection)
    return Effect(own=encoded_field(OUTCOME_TAG, outcome))


def _answer_from_first_event(state: ConversationState, record: CommandRecord, known: Known, rules: Rules) -> Effect:
    """Answer a CreateGroup that is repeated after its dedupe row is gone: the group itself remembers."""
    first = known.event_at(1)
    if not is_creation_of(first, record, rules):
        raise AlreadyExists("CONVERSATION_EXISTS", "this group was created with another title or other members")
    time_ms = Event.FromString(first).time.ToMilliseconds()
    outcome = encoding.accepted(record.command.request_id, state.conversation_id, 1, 0, encoding.timestamp(time_ms), duplicate=True)
    return Effect(own=encoded_field(OUTCOME_TAG, outcome))


def _again(state: ConversationState, record: CommandRecord, fate: Fate, known: Known) -> Effect:
    """Publish again what a record caused that was applied before, perhaps by a worker that died before it could tell."""
    request_id = record.command.request_id
    if not fate.seq:
        return Effect(own=encoded_field(OUTCOME_TAG, encoding.rejected(request_id, fate.rejection)))
    effect = Effect(seq=fate.seq, shared=encoded_field(EVENT_TAG, known.event_at(fate.seq)))
    effect.own = encoded_field(
        OUTCOME_TAG,
        encoding.accepted(
            request_id, state.conversation_id, fate.seq, fate.message_count, encoding.timestamp(fate.log_ms), duplicate=False
        ),
    )
    effect.wakes = record.command.WhichOneof("action") == MESSAGE
    recipients = [user for user, member in state.members.items() if member.sees(fate.seq)]
    if len(recipients) <= NAMED_RECIPIENTS_MAX:
        effect.recipients = recipients
    else:
        effect.all_members = True
    effect.membership_changes = [
        MembershipChange(user_id=user, joined=first == fate.seq)
        for user, member in state.members.items()
        for first, last in member.stays
        if fate.seq in (first, last) and state.kind == GROUP
    ]
    if record.command.seen_seq and all(state.members[user].active for user in recipients):  # who left must not learn of later ones
        _tell_watermarks(state, record.user_id, state.members[record.user_id], fate.log_ms, effect)
    return effect


def _decide_ack(state: ConversationState, record: CommandRecord, position: Position, log_ms: int, known: Known) -> Effect | None:
    """Move watermarks: up only, from below the first event of the stay, clamped to what the member may see."""
    ack: Ack = record.ack
    user = record.user_id
    member = state.members.get(user)
    if member is None:
        return None
    if state.has_applied(position):
        return _receipt(state, user, member, log_ms)
    visible_head = state.visible_head(member)[0]
    read_seq = min(ack.read_seq, visible_head)
    delivered_seq = max(min(ack.delivered_seq, visible_head), read_seq)
    reads, delivers = read_seq > member.read_seq, delivered_seq > member.delivered_seq
    if not reads and not delivers:
        return None
    state.advance(position, log_ms)
    if reads:  # all that a former member may see is counted in his row, and an ack may name more than that
        left_all = not member.active and read_seq == visible_head
        member.read_to(read_seq, member.left_count if left_all else _count_at(state, known, read_seq))
    if delivers:
        member.delivered_seq = delivered_seq
    state.touch_member(user)
    if state.kind == DIRECT:
        state.touch_inboxes()  # the peer's row holds these watermarks too
    return _receipt(state, user, member, log_ms)


def _receipt(state: ConversationState, user: str, member: Member, log_ms: int) -> Effect:
    """Tell the others of the watermarks where the group is small, and the reader's own devices always."""
    effect = Effect()
    _tell_watermarks(state, user, member, log_ms, effect)
    if effect.shared:
        effect.recipients = [name for name in state.present if name != user]
    return effect


def _tell_watermarks(state: ConversationState, user: str, member: Member, log_ms: int, effect: Effect) -> None:
    receipt = encoded_field(
        RECEIPT_TAG,
        encoding.receipt(state.conversation_id, user, member.delivered_seq, member.read_seq, encoding.timestamp(log_ms)),
    )
    effect.actor = receipt + encoded_field(INBOX_CHANGE_TAG, _inbox_change(state, member))
    if member.active and len(state.present) <= RECEIPTS_MAX_MEMBERS:
        effect.shared += receipt


def _inbox_change(state: ConversationState, member: Member) -> bytes:
    head_seq, message_count, version, _ = state.visible_head(member)
    return encoding.inbox_change(
        state.conversation_id, head_seq, message_count, member.delivered_seq, member.read_seq, state.unread_count(member), version
    )


def _count_at(state: ConversationState, known: Known, seq: int) -> int:
    if seq >= state.head_seq:
        return state.message_count
    if state.message_count == state.head_seq:
        return seq  # nothing but messages so far, as in every 1-1
    return known.count_at(seq)


def needs_count(state: ConversationState, seq: int) -> bool:
    """Tell whether deciding a watermark at seq asks for the count of an event that lies below the head now."""
    return 0 < seq < state.head_seq and state.message_count != state.head_seq


def needs_first_event(command: RawCommand, state: ConversationState) -> bool:
    """Tell whether deciding the command may ask for the conversation's first event."""
    return command.WhichOneof("action") == CREATE_GROUP and state.exists
