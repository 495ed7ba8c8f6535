"""The outbox: which commands go out when, under which number. Pure: the caller passes `now` (monotonic seconds).

A command is pending from the app's call until its outcome. On one stream it is in one of these states:

    queued --take--> in flight --outcome--> gone
      ^                 |  |
      |                 |  +--Retry--> refused: its conversation is held, nothing of it goes out
      +--30 s, no word--+                  |
      +-----------the hold is over---------+

Numbers belong to a stream: `start_stream` forgets them, queues everything in the order of the app's calls, and holds those
conversations of which a command is so old that the server may have forgotten its request_id: catching up shows whether it was
stored; only then the rest goes out again.
"""

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final, NamedTuple

from parley_client.device_frames import COMMAND_OVERHEAD_BYTES

RESEND_SECONDS: Final = 30.0  # no outcome for that long: lost with a server, or slower than anybody waits
LOOK_AFTER_MS: Final = 7 * 24 * 3_600_000  # half of the 14 days for which the server knows a request_id: clocks may be wrong


@dataclass(slots=True, eq=False)
class Pending:
    """A command without an outcome. `encoded` is what is sent, byte for byte, each time."""

    request_id: bytes
    encoded: bytes
    created_ms: int
    conversation_id: str = ""  # resolved when the user is known, before the first stream
    number: int = 0  # on this stream; 0: not sent on it yet
    sent_at: float = 0.0
    queued: bool = False
    unanswered: int = 0  # how often it was sent, by any run, and not refused: one of these times the server may have taken it
    old: bool = False  # when the stream began: the server may have forgotten what it decided
    overtaken: bool = False  # a later command of the conversation is stored; kept, since nobody else remembers it for long


class Run(NamedTuple):
    """Commands with consecutive numbers: one frame."""

    first_number: int
    commands: list[Pending]


class Settled(NamedTuple):
    """A command that has its outcome now."""

    command: Pending
    overtaken: list[bytes]  # the request_ids of those that are overtaken by it, and were not before


class Cancel(Enum):
    """What cancelling a command did."""

    REMOVED = auto()
    MAYBE_STORED = auto()  # the server may have it: only its outcome can tell
    SETTLED = auto()  # it has its outcome already


@dataclass(slots=True)
class _Hold:
    number: int  # the first command to resend; 0: the hold waits for catching up, nothing was refused
    until: float
    skipped: bool = False  # the number was given up


class OutboxState:
    """All pending commands of a device, oldest first."""

    def __init__(self, kept: Iterable[Pending] = (), *, window: int = 256) -> None:
        self._window = window  # commands in flight at most: what a reconnect must send again
        self.pending: dict[bytes, Pending] = {command.request_id: command for command in kept}
        for command in self.pending.values():
            command.unanswered = 1  # nobody kept whether the run before sent it
        self._queue: deque[Pending] = deque()
        self._in_flight: dict[bytes, Pending] = {}  # by sent_at
        self._holds: dict[str, _Hold] = {}
        self._skips: list[tuple[int, str]] = []
        self._next_number = 1

    @property
    def has_queued(self) -> bool:
        """Whether something may go out now."""
        return bool(self._queue)

    def add(self, command: Pending) -> None:
        """Queue a new command behind all others."""
        self.pending[command.request_id] = command
        self._enqueue(command)

    def start_stream(self, wall_ms: int) -> None:
        """Begin a stream: count from 1, queue everything in order, hold what must be looked for first."""
        self._queue.clear()
        self._in_flight.clear()
        self._holds.clear()
        self._skips.clear()
        self._next_number = 1
        for command in self.pending.values():
            command.number = 0
            self._enqueue(command)
            command.old = wall_ms - command.created_ms > LOOK_AFTER_MS
            if command.old:
                self._holds[command.conversation_id] = _Hold(0, math.inf)

    def looked_for(self) -> dict[str, int]:
        """Return the conversations that wait for catching up, with the time of the oldest command to look for in each."""
        oldest: dict[str, int] = {}
        for command in self.pending.values():
            hold = self._holds.get(command.conversation_id)
            if hold is not None and hold.number == 0:
                oldest[command.conversation_id] = min(oldest.get(command.conversation_id, command.created_ms), command.created_ms)
        return oldest

    def on_caught_up(self) -> list[Pending]:
        """End the holds that waited for catching up: what the timelines showed is settled, the rest was never stored.

        Return what was refused, settled now: a command is decided before a later one of its conversation, so where that is stored
        and it is not, it was refused, and nobody remembers why. Asked again it could be stored behind the later one.
        """
        refused = [command for command in self.pending.values() if command.old and command.overtaken]
        for command in refused:
            self.settle(command.request_id)
        for conversation in [conversation for conversation, hold in self._holds.items() if hold.number == 0]:
            self._release(conversation)
        return refused

    def take(self, now: float, max_commands: int, max_bytes: int) -> Run | None:
        """Return the next frame's commands, now in flight; None where nothing can go out."""
        commands: list[Pending] = []
        first = size = 0
        while self._queue and len(self._in_flight) < self._window and len(commands) < max_commands:
            command = self._queue[0]
            if not command.queued or command.conversation_id in self._holds:
                self._queue.popleft()  # settled meanwhile, or held: the end of the hold finds it in `pending`
                command.queued = False
                continue
            number = command.number or self._next_number
            size += len(command.encoded) + COMMAND_OVERHEAD_BYTES
            if commands and (number != first + len(commands) or size > max_bytes):
                break
            first = first or number
            self._next_number = max(self._next_number, number + 1)
            self._queue.popleft()
            command.queued, command.number, command.sent_at = False, number, now
            command.unanswered += 1
            self._in_flight[command.request_id] = command
            commands.append(command)
        return Run(first, commands) if commands else None

    def take_skips(self) -> list[tuple[int, str]]:
        """Return the numbers to give up, with their conversations."""
        skips, self._skips = self._skips, []
        return skips

    def settle(self, request_id: bytes, *, stored: bool = False) -> Settled | None:
        """Forget a command that has its outcome; None if it was not pending."""
        command = self.pending.get(request_id)
        if command is None:
            return None
        overtaken = []
        if stored:
            for earlier in self.pending.values():  # mostly none: outcomes come in the order of the calls
                if earlier is command:
                    break
                if earlier.conversation_id == command.conversation_id and not earlier.overtaken:
                    earlier.overtaken = True
                    overtaken.append(earlier.request_id)
        del self.pending[request_id]
        command.queued = False
        self._in_flight.pop(request_id, None)
        return Settled(command, overtaken)

    def on_retry(self, request_id: bytes, number: int, conversation_id: str, until: float) -> None:
        """Hold a conversation: the server takes nothing of it before `number` comes again."""
        self._in_flight.pop(request_id, None)
        command = self.pending.get(request_id)
        if command is not None:
            command.unanswered = max(command.unanswered - 1, 0)
            if number < 1:
                number = command.number  # a server that does not say from where: from here
        if number < 1:
            return  # cancelled meanwhile
        hold = self._holds.get(conversation_id)
        if hold is None:
            self._holds[conversation_id] = _Hold(number, until)
        elif number < hold.number:  # sent again after 30 s, and refused behind a later one: now the server waits for this one
            self._holds[conversation_id] = _Hold(number, max(hold.until, until))
        else:
            hold.until = max(hold.until, until)

    def cancel(self, request_id: bytes) -> Cancel:
        """Give up a command that was never sent, or refused each time. Later ones of its conversation go on."""
        command = self.pending.get(request_id)
        if command is None:
            return Cancel.SETTLED
        if command.unanswered:
            return Cancel.MAYBE_STORED
        self.settle(request_id)
        hold = self._holds.get(command.conversation_id)
        if hold is not None and command.number and hold.number == command.number:
            self._skip(hold, command.conversation_id)
        return Cancel.REMOVED

    def on_time(self, now: float) -> None:
        """End the holds whose delay is over; queue again what has been without an outcome for too long."""
        for conversation in [conversation for conversation, hold in self._holds.items() if hold.until <= now]:
            self._release(conversation)
        late: dict[str, int] = {}
        for command in self._in_flight.values():
            if command.sent_at + RESEND_SECONDS > now:
                break
            late.setdefault(command.conversation_id, command.number)  # the lowest: they went out in order
        for conversation, number in late.items():
            self._requeue(conversation, number)

    def next_due(self) -> float | None:
        """Return when `on_time` will have something to do, or None."""
        due = [hold.until for hold in self._holds.values() if hold.number]
        for command in self._in_flight.values():
            due.append(command.sent_at + RESEND_SECONDS)
            break  # the oldest
        return min(due, default=None)

    def _enqueue(self, command: Pending) -> None:
        command.queued = True
        self._queue.append(command)

    def _release(self, conversation_id: str) -> None:
        hold = self._holds.pop(conversation_id)
        if hold.number and not hold.skipped and not self._is_pending(hold.number):
            self._skip(hold, conversation_id)  # its outcome came after all: the server still waits for the number
        self._requeue(conversation_id, hold.number)

    def _requeue(self, conversation_id: str, number: int) -> None:
        """Queue a conversation's commands from a number on, and all that is not in flight, in order, before everything else.

        That may be an earlier one, too: it went without an outcome for too long while the conversation was held.
        """
        again = [
            command
            for command in self.pending.values()
            if command.conversation_id == conversation_id
            and not command.queued
            and (command.number >= number or command.request_id not in self._in_flight)
        ]
        for command in reversed(again):
            self._in_flight.pop(command.request_id, None)
            command.queued = True
            self._queue.appendleft(command)

    def _is_pending(self, number: int) -> bool:
        return any(command.number == number for command in self.pending.values())

    def _skip(self, hold: _Hold, conversation_id: str) -> None:
        hold.skipped = True
        self._skips.append((hold.number, conversation_id))
