"""What the judge says: counts, and stories for a person."""

from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum

from parley_checker.guarantees import TITLES, Guarantee

MAX_STORIES = 20  # a broken run repeats itself; the first stories say what it is


class Fault(StrEnum):
    """Ways to break the contract, as a sender or a reader would say it."""

    LOST = "lost"  # accepted and not stored, or stored and not shown by a device that should have
    DUPLICATED = "duplicated"  # stored twice, or shown twice by one process
    MISORDERED = "misordered"  # a sender's own order turned round, or shown out of order
    INVENTED = "invented"  # nobody asked for it
    CORRUPTED = "corrupted"  # another body or kind than was asked for
    GAPS = "gaps"  # a seq that nothing was stored at
    DISAGREEING = "disagreeing"  # two places tell one seq differently
    LEAKED = "leaked"  # shown to somebody who was no member then
    CONTRADICTED = "contradicted"  # an outcome that another outcome or the tables contradict
    STALE = "stale"  # a read that missed what was there before it began
    BACKWARD = "backward"  # a watermark below what it was
    MISCOUNTED = "miscounted"  # an unread count that counting contradicts
    STOPPED = "stopped"  # a service or a device that did not go on
    MISPLACED = "misplaced"  # a gateway served whom it did not own, or left whom it did
    DIFFERENT = "different"  # tables that the log does not give when it is replayed


_NOTHING = "nothing was recorded that it speaks of"
_SEEN_INSIDE = "it shows inside a server, not in what devices see"
_NOT_THERE = "its service is not there yet"
_WHY_NOT = dict.fromkeys(Guarantee, _NOTHING) | {
    Guarantee.PRESENCE: _NOT_THERE,
    Guarantee.EPOCHS: _SEEN_INSIDE,
    Guarantee.REGISTRY: _SEEN_INSIDE,
    Guarantee.PUSH: _NOT_THERE,
    Guarantee.MEMORY: _SEEN_INSIDE,
    Guarantee.ABUSE: "its own tests judge it, by queues and virtual time",
    Guarantee.BAD_INPUT: _SEEN_INSIDE,
    Guarantee.CLOCKS: "a record does not say how wrong clocks were",
    Guarantee.RESUMES: "a record does not say what was restarted",
    Guarantee.REPLAY: _SEEN_INSIDE,
}
_ALWAYS_TOLD = (Fault.LOST, Fault.DUPLICATED, Fault.MISORDERED)


@dataclass
class Verdict:
    """The contract judged over one history, or over several that were added up."""

    acked: int = 0  # commands with Accepted
    stored: int = 0  # events in the tables
    rejected: int = 0
    unanswered: int = 0  # commands whose outcome the device never learned: they may be stored or not
    faults: Counter[Fault] = field(default_factory=Counter)
    stories: list[str] = field(default_factory=list)
    judged: Counter[Guarantee] = field(default_factory=Counter)  # how often each was looked at
    broken: Counter[Guarantee] = field(default_factory=Counter)

    @property
    def kept(self) -> bool:
        """Whether nothing broke."""
        return not self.faults.total()

    def blame(self, fault: Fault, guarantee: Guarantee, story: str, count: int = 1) -> None:
        """Count a violation and keep its story, if there is room."""
        self.faults[fault] += count
        self.broken[guarantee] += count
        if len(self.stories) < MAX_STORIES:
            self.stories.append(f"G{guarantee.value} {fault.value}: {story}")

    def add(self, other: "Verdict") -> None:
        """Take in the verdict over another, separate history."""
        self.acked += other.acked
        self.stored += other.stored
        self.rejected += other.rejected
        self.unanswered += other.unanswered
        self.faults.update(other.faults)
        self.judged.update(other.judged)
        self.broken.update(other.broken)
        self.stories.extend(other.stories[: MAX_STORIES - len(self.stories)])

    def line(self) -> str:
        """Return the contract line; what usually is zero is named only if it is not."""
        parts = [f"acked {self.acked}", f"stored {self.stored}"]
        parts += [f"{fault.value} {self.faults[fault]}" for fault in _ALWAYS_TOLD]
        parts += [f"{fault.value} {self.faults[fault]}" for fault in Fault if fault not in _ALWAYS_TOLD and self.faults[fault]]
        parts += [f"{name} {count}" for name, count in (("rejected", self.rejected), ("unanswered", self.unanswered)) if count]
        return ", ".join(parts)

    def by_guarantee(self) -> list[str]:
        """Return a line for each guarantee: how often it was judged and how often it was broken."""
        lines = []
        for guarantee, title in TITLES.items():
            judged, broken = self.judged[guarantee], self.broken[guarantee]
            said = f"judged {judged} times, broken {broken} times" if judged or broken else f"not judged: {_WHY_NOT[guarantee]}"
            lines.append(f"{f'G{guarantee.value}':<4} {title:<42} {said}")
        return lines

    def counts(self) -> dict[str, int]:
        """Return all counts by name, for JSON."""
        totals = {"acked": self.acked, "stored": self.stored, "rejected": self.rejected, "unanswered": self.unanswered}
        return totals | {fault.value: self.faults[fault] for fault in Fault}
