"""The running device: its state, its store and who listens, joined so that nothing is told before it is kept."""

import asyncio
import random
from collections.abc import Callable
from typing import Final

from parley.api.v1 import commands_pb2
from parley_client.device_state import DeviceState, Step
from parley_client.errors import ClientError, CommandCancelledError, OutboxFullError
from parley_client.notices import Board, CaughtUp, ConnectionChanged, ConnectionState, ConversationChanged
from parley_client.options import ClientOptions
from parley_client.outbox_state import Cancel
from parley_client.recording import Recorder
from parley_client.store import Change, Store
from parley_client.tickets import Ticket

CONSUMED_LAG: Final = 256  # events handed to the app before the store is told; more would come twice after a crash


class Device:
    """Owns state and store. `writer_wake` is set when there may be something to send, `events_wake` when there is an event."""

    def __init__(self, store: Store, options: ClientOptions, rng: random.Random, recorder: Recorder | None = None) -> None:
        kept = store.load()
        self.store = store
        self.options = options
        self.recorder = recorder
        self.state = DeviceState(kept, counting=store, rng=rng, window=options.in_flight_commands)
        self.board = Board(options.notices)
        self.writer_wake = asyncio.Event()
        self.events_wake = asyncio.Event()
        self.caught_up = asyncio.Event()  # also set at the end, to wake who waits
        self.connection = ConnectionState.CONNECTING
        self.ended: ClientError | None = None
        self.store_is_open = True
        self.on_behind: Callable[[], None] | None = None  # the running session's: start fetching
        self.handed = kept.consumed  # the ordinal of the last event that the app got
        self._consumed = self._consumed_kept = kept.consumed
        self._tickets: dict[bytes, Ticket] = {request_id: self._ticket(request_id) for request_id in self.state.outbox.pending}

    def keep(self, step: Step) -> None:
        """Commit a step, then tell who waits for it."""
        change = step.change
        if self.options.keep_events:
            for conversation_id in {event.conversation_id for event in change.appended}:
                self.state.timelines.trim(conversation_id, self.options.keep_events, change)
        if change:
            if self._consumed > self._consumed_kept:
                self._consumed_kept = change.consumed = self._consumed
            self.store.commit(change)
        if change.appended:
            self.events_wake.set()
        for request_id, outcome in step.outcomes:
            if self.recorder is not None:
                self.recorder.answered(request_id, outcome)
            ticket = self._tickets.pop(request_id, None)
            if ticket is not None:
                ticket.settle(outcome)
        if self.recorder is not None:
            for conversation_id in dict.fromkeys(event.conversation_id for event in change.prepended):
                self.recorder.scrolled(conversation_id)
            for notice in step.notices:
                self.recorder.told(notice)
        if self.board.has_readers:
            for notice in step.notices:
                self.board.put(notice)
            for conversation_id in change.conversations:
                self.board.put(ConversationChanged(conversation_id))
        if self.state.timelines.behind and self.on_behind is not None:
            self.on_behind()
        if step.sends:
            self.writer_wake.set()

    def send(self, command: commands_pb2.Command, wall_ms: int) -> Ticket:
        """Keep a command and queue it."""
        if self.ended is not None:
            raise self.ended
        if len(self.state.outbox.pending) >= self.options.pending_commands:
            raise OutboxFullError(f"{self.options.pending_commands} commands wait for their outcome")
        ticket = self._ticket(command.request_id)
        if self.recorder is not None:  # first: what is kept and not recorded would look invented, the other way round it is unknown
            self.recorder.asked(command)
        try:
            self.keep(self.state.add_command(command, wall_ms))
        except BaseException:  # not kept: nor may it be sent
            self.state.cancel_command(command.request_id)
            raise
        self._tickets[command.request_id] = ticket
        return ticket

    def pending(self) -> list[Ticket]:
        """Return the tickets of all commands without an outcome, oldest first."""
        return list(self._tickets.values())

    def consume(self, ordinal: int) -> None:
        """Note that the app is done with events up to an ordinal; kept with the next change, or before it lags far behind."""
        self._consumed = ordinal
        if self.store_is_open and ordinal - self._consumed_kept >= CONSUMED_LAG:
            self.flush()

    def flush(self) -> None:
        """Keep what the app is done with."""
        if self._consumed > self._consumed_kept:
            self._consumed_kept = self._consumed
            self.store.commit(Change(consumed=self._consumed))

    def set_connection(self, state: ConnectionState, detail: str = "", retry_in_seconds: float = 0.0) -> None:
        """Note where the client stands, and tell."""
        self.connection = state
        if state is not ConnectionState.STOPPED:
            self.caught_up.clear()
        self.board.put(ConnectionChanged(state, detail, retry_in_seconds))

    def set_caught_up(self) -> None:
        """Note that nothing is missing."""
        self.keep(self.state.on_caught_up())
        self.caught_up.set()
        self.board.put(CaughtUp())

    def end(self, error: ClientError) -> None:
        """Stop for good: wake everybody who waits. Commands stay in the store."""
        if self.ended is not None:
            return
        self.ended = error
        self.set_connection(ConnectionState.STOPPED, str(error))
        for request_id, ticket in self._tickets.items():
            if self.recorder is not None:
                self.recorder.answered(request_id, error)
            ticket.settle(error)
        self._tickets.clear()
        self.caught_up.set()
        self.events_wake.set()
        self.board.end()

    def close(self) -> None:
        """Keep what the app is done with and let go of the store; what it did not read comes again from the next client."""
        self.flush()
        self.store_is_open = False

    def _ticket(self, request_id: bytes) -> Ticket:
        return Ticket(request_id, self._cancel)

    def _cancel(self, request_id: bytes) -> Cancel:
        result, step = self.state.cancel_command(request_id)
        if result is Cancel.REMOVED:
            self.keep(step)
            self._tickets.pop(request_id).settle(CommandCancelledError("the app gave the command up"))
        return result
