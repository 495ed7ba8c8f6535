"""What the judge says: counts, and stories for a person."""

from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum

MAX_STORIES = 20  # a broken run repeats itself; the first stories say what it is


class Fault(StrEnum):
    """Ways to break the contract; the number is the guarantee's in docs/guarantees.md."""

    LOST = "lost"  # G1, G7: accepted and not stored, or stored and not shown by a device that should have
    DUPLICATED = "duplicated"  # G2, G8: stored twice, or shown twice by one process
    MISORDERED = "misordered"  # G5, G6: a sender's own order turned round, or shown out of order
    INVENTED = "invented"  # G3: nobody asked for it
    CORRUPTED = "corrupted"  # G3: another body or kind than was asked for
    GAPS = "gaps"  # G4: a seq that nothing was stored at
    DISAGREEING = "disagreeing"  # G5: two places tell one seq differently
    LEAKED = "leaked"  # G9: shown to somebody who was no member then
    CONTRADICTED = "contradicted"  # G1, G2: an outcome that another outcome or the tables contradict


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

    @property
    def kept(self) -> bool:
        """Whether nothing broke."""
        return not self.faults.total()

    def blame(self, fault: Fault, story: str, count: int = 1) -> None:
        """Count a violation and keep its story, if there is room."""
        self.faults[fault] += count
        if len(self.stories) < MAX_STORIES:
            self.stories.append(f"{fault.value}: {story}")

    def add(self, other: "Verdict") -> None:
        """Take in the verdict over another, separate history."""
        self.acked += other.acked
        self.stored += other.stored
        self.rejected += other.rejected
        self.unanswered += other.unanswered
        self.faults.update(other.faults)
        self.stories.extend(other.stories[: MAX_STORIES - len(self.stories)])

    def line(self) -> str:
        """Return the contract line; what usually is zero is named only if it is not."""
        parts = [f"acked {self.acked}", f"stored {self.stored}"]
        parts += [f"{fault.value} {self.faults[fault]}" for fault in _ALWAYS_TOLD]
        parts += [f"{fault.value} {self.faults[fault]}" for fault in Fault if fault not in _ALWAYS_TOLD and self.faults[fault]]
        parts += [f"{name} {count}" for name, count in (("rejected", self.rejected), ("unanswered", self.unanswered)) if count]
        return ", ".join(parts)

    def counts(self) -> dict[str, int]:
        """Return all counts by name, for JSON."""
        totals = {"acked": self.acked, "stored": self.stored, "rejected": self.rejected, "unanswered": self.unanswered}
        return totals | {fault.value: self.faults[fault] for fault in Fault}
