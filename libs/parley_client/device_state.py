"""All that a device knows and owes, in one place: outbox, timelines and acks, moved by what comes in. No I/O, no clock.

Each transition returns a Step. Its change is committed first, then its outcomes and notices are told: what an app, a server or
another device learns of was kept before.
"""

import random
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

import grpc
from google.rpc import status_pb2

from parley.api.v1 import commands_pb2, events_pb2, messaging_service_pb2
from parley_client import commands
from parley_client.ack_state import Ack, AckState
from parley_client.conversation_state import ConversationState
from parley_client.errors import RejectedError, StoreMismatchError, read_status
from parley_client.notices import CommandHeld, CommandRejected, Notice, ReceiptMoved
from parley_client.outbox_state import Cancel, OutboxState, Pending
from parley_client.store import Change, Kept, StoredCommand
from parley_client.tickets import Accepted
from parley_client.timelines import Counting, Timelines
from parley_protocol.digests import digests_of

_REFUSED_LONG_AGO: Final = status_pb2.Status(
    code=grpc.StatusCode.FAILED_PRECONDITION.value[0],
    message="refused, so long ago that the server does not know why: a later command of the conversation is stored",
)
NO_RETRY_DELAY_SECONDS: Final = 1.0  # where a server names none: it said "later", not "now"


@dataclass(slots=True)
class Step:
    """One transition's result."""

    change: Change = field(default_factory=Change)
    outcomes: list[tuple[bytes, Accepted | RejectedError]] = field(default_factory=list)
    notices: list[Notice] = field(default_factory=list)
    sends: bool = False  # the writer has something to do, now or at a new moment


class DeviceState:
    """The device's state, as loaded and as it moves on."""

    def __init__(self, kept: Kept, *, counting: Counting, rng: random.Random, window: int) -> None:
        self.user_id, self.device_id, self.synced = kept.user_id, kept.device_id, kept.synced
        self.timelines = Timelines(kept.conversations, kept.watermarks, counting=counting)
        self.timelines.me = kept.user_id
        self.timelines.find_behind()
        self.outbox = OutboxState((_pending(command) for command in kept.commands), window=window)
        self.acks = AckState(rng)
        if kept.user_id:
            self._resolve_targets()

    def on_welcome(self, user_id: str, device_id: str, wall_ms: int) -> Step:
        """Begin a stream. Raises StoreMismatchError where the server knows this device as somebody else's."""
        step = Step()
        if self.user_id and (user_id, device_id) != (self.user_id, self.device_id):
            raise StoreMismatchError(f"the store is {self.user_id}/{self.device_id}'s, the token is {user_id}/{device_id}'s")
        if not self.user_id:
            self.user_id, self.device_id = step.change.user_id, step.change.device_id = user_id, device_id
            self.timelines.me = user_id
            self._resolve_targets()
        self.outbox.start_stream(wall_ms)
        return step

    def add_command(self, command: commands_pb2.Command, wall_ms: int) -> Step:
        """Queue a command; its bytes stay as they are now."""
        pending = Pending(command.request_id, command.SerializeToString(), wall_ms)
        if self.user_id:
            pending.conversation_id = commands.target_of(command, self.user_id, self.device_id)
        self.outbox.add(pending)
        return Step(Change(commands_added=[StoredCommand(pending.request_id, pending.encoded, wall_ms)]), sends=True)

    def cancel_command(self, request_id: bytes) -> tuple[Cancel, Step]:
        """Give up a command that is not in flight."""
        result = self.outbox.cancel(request_id)
        return result, Step(Change(commands_removed=[request_id]), sends=True) if result is Cancel.REMOVED else Step()

    def on_batch(self, batch: messaging_service_pb2.ServerBatch, now: float) -> Step:
        """Take a frame as one set: what was accepted stands among the events, by (conversation, seq)."""
        step = Step()
        change = step.change
        events = list(batch.events)
        seen: list[tuple[str, int]] = []
        for outcome in batch.outcomes:
            self._take_outcome(outcome, events, seen, step, now)
        if len(events) > 1:
            events.sort(key=_place)
        if events:
            self.timelines.place_live(events, change)
        for conversation_id, seen_seq in seen:
            self.timelines.raise_own(conversation_id, seen_seq, seen_seq, change)
        self._after_placing(step, now)
        for receipt in batch.receipts:
            if self.timelines.take_receipt(receipt, change):
                step.notices.append(ReceiptMoved(receipt.conversation_id, receipt.user_id, receipt.delivered_seq, receipt.read_seq))
        for inbox in batch.inbox_changes:
            self.timelines.take_inbox_change(inbox, change)
        step.sends = step.sends or self.outbox.has_queued  # an outcome makes room in the window
        return step

    def on_rows(self, rows: Iterable[events_pb2.Conversation], now: float) -> Step:
        """Take rows of Sync or GetConversation; where our watermarks exceed the server's, tell it again."""
        step = Step()
        for row in rows:
            if self.timelines.take_row(row, new_device=not self.synced, change=step.change):
                state = self.timelines.conversations[row.conversation_id]
                self._ack(state, state.delivered_seq, state.read_seq, step, now)
        self._after_placing(step, now)
        return step

    def on_page(self, conversation_id: str, page: messaging_service_pb2.ListEventsResponse, now: float) -> Step:
        """Take a page that fills a gap. Raises ProtocolError; nothing of the page counts then."""
        step = Step()
        self.timelines.take_page(conversation_id, page, step.change)
        self._after_placing(step, now)
        return step

    def on_history(self, conversation_id: str, before_seq: int, page: messaging_service_pb2.ListEventsResponse) -> Step:
        """Take a page of older events: kept, but neither handed to the app as events nor acknowledged. Raises ProtocolError."""
        step = Step()
        self.timelines.take_history(conversation_id, before_seq, page, step.change)
        for event in step.change.prepended:
            self._settle_own(event, step)
        return step

    def end_fetch(self, conversation_id: str) -> Step:
        """Settle for what is held of a conversation."""
        step = Step()
        self.timelines.end_fetch(conversation_id, step.change)
        return step

    def on_synced(self) -> Step:
        """Note that a Sync came to its end: from now on this device sends digests."""
        step = Step(Change(synced=not self.synced))
        self.synced = True
        return step

    def on_caught_up(self) -> Step:
        """Nothing is missing: what is pending for long and was not found goes out again, or is known to have been refused."""
        step = Step(sends=True)
        for pending in self.outbox.on_caught_up():
            error = RejectedError(pending.request_id, _REFUSED_LONG_AGO)
            step.change.commands_removed.append(pending.request_id)
            step.outcomes.append((pending.request_id, error))
            step.notices.append(CommandRejected(pending.request_id, error))
        return step

    def mark_read(self, conversation_id: str, seq: int, now: float) -> Step:
        """Note what the user saw, at most what is held."""
        step = Step()
        state = self.timelines.conversations[conversation_id]
        seq = min(seq, state.held_seq)
        if seq > state.read_seq and self.timelines.raise_own(conversation_id, seq, seq, step.change):
            self._ack(state, seq, seq, step, now)
        return step

    def digests(self) -> list[int]:
        """Return the 64 digests of what is held; none for a device that never finished a Sync."""
        return digests_of(state.held() for state in self.timelines.conversations.values()) if self.synced else []

    def _take_outcome(
        self, outcome: commands_pb2.Outcome, events: list[events_pb2.Event], seen: list[tuple[str, int]], step: Step, now: float
    ) -> None:
        result = outcome.WhichOneof("result")
        request_id = outcome.request_id
        if result == "retry":
            self._hold(request_id, outcome.retry, step, now)
            return
        if result is None:
            return  # from the future: the command stays in flight and is sent again
        pending = self._settle(request_id, step, stored=result == "accepted")
        if pending is None:
            return  # answered before: this is the answer to a resend
        if result == "rejected":
            error = RejectedError(request_id, outcome.rejected)
            step.outcomes.append((request_id, error))
            step.notices.append(CommandRejected(request_id, error))
            return
        accepted = outcome.accepted
        conversation_id = accepted.conversation_id
        time_ms = accepted.time.seconds * 1000 + accepted.time.nanos // 1_000_000
        answer = Accepted(conversation_id, accepted.seq, accepted.message_count, time_ms, accepted.duplicate)
        step.outcomes.append((request_id, answer))
        command = commands_pb2.Command.FromString(pending.encoded)
        event = commands.event_of(command, accepted, self.user_id, self.device_id)
        if event is None:
            self.timelines.announce(conversation_id, accepted.seq, step.change)
        else:
            if command.to_user_id:
                self.timelines.meet(conversation_id, command.to_user_id)
            events.append(event)
        if command.seen_seq:
            seen.append((conversation_id, min(command.seen_seq, accepted.seq - 1)))

    def _hold(self, request_id: bytes, retry: commands_pb2.Retry, step: Step, now: float) -> None:
        delay = retry.delay.ToNanoseconds() / 1e9 or NO_RETRY_DELAY_SECONDS
        self.outbox.on_retry(request_id, retry.number, retry.conversation_id, now + delay)
        step.sends = True
        code, reason, _, _ = read_status(retry.reason)
        step.notices.append(CommandHeld(retry.conversation_id, request_id, reason or code.name, delay))

    def _after_placing(self, step: Step, now: float) -> None:
        """For events that are held now: acknowledge those of others; settle own commands whose outcome was lost."""
        arrived: dict[str, int] = {}
        for event in step.change.appended:
            if event.actor_user_id != self.user_id:
                arrived[event.conversation_id] = event.seq  # own messages need no tick
            else:
                self._settle_own(event, step)
        for conversation_id, seq in arrived.items():
            self.timelines.raise_own(conversation_id, seq, 0, step.change)
            self._ack(self.timelines.conversations[conversation_id], seq, 0, step, now)

    def _settle_own(self, event: events_pb2.Event, step: Step) -> None:
        """Give a pending command whose event was found its outcome."""
        if (event.actor_user_id, event.actor_device_id) != (self.user_id, self.device_id):
            return
        if self._settle(event.request_id, step, stored=True) is not None:
            place = Accepted(event.conversation_id, event.seq, event.message_count, event.time.ToMilliseconds(), True)
            step.outcomes.append((event.request_id, place))

    def _settle(self, request_id: bytes, step: Step, *, stored: bool) -> Pending | None:
        """Forget a command that has its outcome, and keep which earlier ones it overtook; None if it was not pending."""
        settled = self.outbox.settle(request_id, stored=stored)
        if settled is None:
            return None
        step.change.commands_removed.append(request_id)
        step.change.commands_overtaken += settled.overtaken
        return settled.command

    def _ack(self, state: ConversationState, delivered_seq: int, read_seq: int, step: Step, now: float) -> None:
        if self.acks.mark(Ack(state.conversation_id, delivered_seq, read_seq), state.member_count, now):
            step.sends = True

    def _resolve_targets(self) -> None:
        for pending in self.outbox.pending.values():
            command = commands_pb2.Command.FromString(pending.encoded)
            pending.conversation_id = commands.target_of(command, self.user_id, self.device_id)


def _pending(kept: StoredCommand) -> Pending:
    return Pending(kept.request_id, kept.encoded, kept.created_ms, overtaken=kept.overtaken)


def _place(event: events_pb2.Event) -> tuple[str, int]:
    return event.conversation_id, event.seq
