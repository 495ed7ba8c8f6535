"""Ticks of one conversation: how far one's own messages have got. Pure.

One tick: stored. Two: every other member has it on a device. Read: every other member has seen it.
"""

from collections import deque
from collections.abc import Iterable
from enum import IntEnum
from typing import NamedTuple

# What stays visible while one types; older messages are covered by watermarks that only grow.
_REMEMBERED_MESSAGES = 50


class Tick(IntEnum):
    """How far a message has got."""

    SENT = 1
    DELIVERED = 2
    READ = 3


SIGNS = {Tick.SENT: "✓", Tick.DELIVERED: "✓✓", Tick.READ: "✓✓"}
WORDS = {Tick.SENT: "sent", Tick.DELIVERED: "delivered", Tick.READ: "read"}


class Turn(NamedTuple):
    """Own messages up to `seq` have got to `tick`."""

    seq: int
    tick: Tick


class OwnMessage(NamedTuple):
    """One of the last messages that the user sent."""

    seq: int
    text: str


class Ticks:
    """Follows the watermarks of the other members of one conversation."""

    def __init__(self) -> None:
        self._watermarks: dict[str, tuple[int, int]] = {}  # user: (delivered, read)
        self._own: deque[OwnMessage] = deque(maxlen=_REMEMBERED_MESSAGES)
        self._told = Turn(0, Tick.SENT), Turn(0, Tick.SENT)  # the last delivered and read turn that was told

    def set_others(self, user_ids: Iterable[str]) -> None:
        """Say who the other members are; watermarks of those who stay are kept."""
        self._watermarks = {user: self._watermarks.get(user, (0, 0)) for user in user_ids}

    def move(self, user_id: str, delivered_seq: int, read_seq: int) -> None:
        """Raise a member's watermarks; those of others, and lower numbers, are ignored."""
        if (held := self._watermarks.get(user_id)) is not None:
            read = max(held[1], read_seq)
            self._watermarks[user_id] = max(held[0], delivered_seq, read), read

    def sent(self, seq: int, text: str) -> None:
        """Add an own message that is stored; one that is older than the newest is no news."""
        if not self._own or seq > self._own[-1].seq:
            self._own.append(OwnMessage(seq, text))

    def of(self, seq: int) -> Tick:
        """Return how far an own message has got."""
        if not self._watermarks:
            return Tick.SENT
        if seq <= min(read for _, read in self._watermarks.values()):
            return Tick.READ
        return Tick.DELIVERED if seq <= min(delivered for delivered, _ in self._watermarks.values()) else Tick.SENT

    def last(self, count: int) -> list[tuple[OwnMessage, Tick]]:
        """Return the newest own messages, oldest first."""
        return [(message, self.of(message.seq)) for message in list(self._own)[-count:]]

    def turns(self) -> list[Turn]:
        """Return what has turned since the last call: at most a turn to read and one to delivered that goes further."""
        newest = {
            tick: max((m.seq for m in self._own if self.of(m.seq) >= tick), default=0) for tick in (Tick.DELIVERED, Tick.READ)
        }
        told_delivered, told_read = self._told
        self._told = Turn(newest[Tick.DELIVERED], Tick.DELIVERED), Turn(newest[Tick.READ], Tick.READ)
        turned = []
        if newest[Tick.READ] > told_read.seq:
            turned.append(self._told[1])
        if newest[Tick.DELIVERED] > max(told_delivered.seq, newest[Tick.READ]):
            turned.append(self._told[0])
        return turned
