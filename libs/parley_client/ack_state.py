"""Which watermarks to send, and when: cumulative, merged, rarely. Pure: the caller passes `now` (monotonic seconds)."""

import random
from typing import Final, NamedTuple

SMALL_INTERVAL_SECONDS: Final = 0.1  # ten times a second: ticks look instant, a burst of messages costs one ack
LARGE_INTERVAL_SECONDS: Final = (2.0, 5.0)  # nobody waits for them; jitter parts 500 devices with the same event
LARGE_MEMBER_COUNT: Final = 32  # above it the server pushes no receipts
MAX_ACKS_PER_FRAME: Final = 500


class Ack(NamedTuple):
    """One conversation's watermarks."""

    conversation_id: str
    delivered_seq: int
    read_seq: int


class AckState:
    """Merges watermarks until they are due: small conversations all together, each large one at its own time."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._small: dict[str, Ack] = {}
        self._large: dict[str, Ack] = {}
        self._large_due: dict[str, float] = {}
        self._small_due = 0.0  # the earliest time of the next frame; 0: nothing was sent yet

    def mark(self, ack: Ack, member_count: int, now: float) -> bool:
        """Note watermarks to send, merged with those that wait; tell whether `next_due` moved."""
        waiting = self._large if member_count > LARGE_MEMBER_COUNT else self._small
        if waiting is self._large and ack.conversation_id not in waiting:
            self._large_due[ack.conversation_id] = now + self._rng.uniform(*LARGE_INTERVAL_SECONDS)
        known = waiting.get(ack.conversation_id)
        if known is not None:
            ack = Ack(ack.conversation_id, max(ack.delivered_seq, known.delivered_seq), max(ack.read_seq, known.read_seq))
        waiting[ack.conversation_id] = ack
        return known is None and (waiting is self._large or len(waiting) == 1)

    def take(self, now: float, *, everything: bool = False) -> list[Ack]:
        """Return what is due, at most a frame's worth; `everything` (at the end) whether due or not."""
        taken: list[Ack] = []
        if self._small and (everything or now >= self._small_due):
            taken = [self._small.pop(conversation) for conversation in list(self._small)[:MAX_ACKS_PER_FRAME]]
            self._small_due = now + SMALL_INTERVAL_SECONDS
        due = [conversation for conversation, at in self._large_due.items() if everything or at <= now]
        for conversation in due[: MAX_ACKS_PER_FRAME - len(taken)]:
            del self._large_due[conversation]
            taken.append(self._large.pop(conversation))
        return taken

    def next_due(self) -> float | None:
        """Return when `take` will have something, or None."""
        due = list(self._large_due.values())
        if self._small:
            due.append(self._small_due)
        return min(due, default=None)
