"""What many runs add up to, and whether they were worth it: a fault that never struck proves nothing."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

from chassis.testing.faults import CRASH, CUT_OFF, PAUSE, RATES
from parley_checker.verdict import Verdict
from parley_protocol.topics import COMMANDS, DEAD_LETTERS, EVENTS, OFFLINE
from parley_simulation.plan import Plan
from parley_simulation.reports import Report
from services.store.rows import STATE

ENOUGH_SEEDS = 100  # from here on every kind of fault must have struck, and every step

# The steps of who must survive anything between any two of them, in their order.
STEPS = {
    "store": ("poll", "load", "phase 1", "dead letters", "phase 2", "publish", "commit"),
    "gateway": ("append",),
    "router": ("poll", "name the offline", "commit"),
}
_APPENDS = {
    ("store", DEAD_LETTERS): "dead letters",
    ("store", EVENTS): "publish",
    ("gateway", COMMANDS): "append",
    ("router", OFFLINE): "name the offline",
}


def step_of(role: str, where: str) -> str:
    """Return the step that a port's operation belongs to, with "before" or "after" where that is said."""
    when, _, what = where.partition(" ") if where.startswith(("before ", "after ")) else ("", "", where)
    verb, _, rest = what.partition(" ")
    name = rest.partition(" ")[2]  # "read of X", "write to X", "append to X", "poll of X", "commit of X"
    match verb:
        case "read":
            step = "load"
        case "write":
            step = "phase 2" if name == STATE else "phase 1"
        case "append":
            step = _APPENDS.get((role, name), what)
        case _:
            step = verb
    return f"{when} {step}".strip()


@dataclass
class Totals:
    """Reports, added up."""

    runs: int = 0
    seeds: set[int] = field(default_factory=set)
    verdict: Verdict = field(default_factory=Verdict)
    faults: Counter[str] = field(default_factory=Counter)
    commands: Counter[str] = field(default_factory=Counter)
    strikes: dict[tuple[str, str], Counter[str]] = field(default_factory=lambda: defaultdict(Counter))  # role, step -> kinds
    virtual_seconds: float = 0.0
    broken: list[tuple[Plan, Report]] = field(default_factory=list)
    _digests: dict[tuple[str, int], str] = field(default_factory=dict)

    def add(self, plan: Plan, report: Report) -> None:
        """Take in one run."""
        self.runs += 1
        self.seeds.add(plan.seed)
        self.verdict.add(report.verdict)
        self.faults.update(report.faults)
        self.commands.update(report.commands)
        for (role, where, kind), count in report.strikes.items():
            self.strikes[role, step_of(role, where)][kind] += count
        self.virtual_seconds += report.virtual_seconds
        self._digests[plan.scene.value, plan.seed] = report.digest
        if report.broken:
            self.broken.append((plan, report))

    def digest(self) -> str:
        """Return a hash over all traces, whatever the order in which they ended."""
        return hashlib.sha256(repr(sorted(self._digests.items())).encode()).hexdigest()

    def struck(self, role: str, step: str) -> Counter[str]:
        """Return what struck at a step, or just before or after it."""
        found: Counter[str] = Counter()
        for name in (f"before {step}", step, f"after {step}"):
            found.update(self.strikes.get((role, name), {}))
        return found

    def missing(self) -> Iterator[str]:
        """Yield what never happened and should have."""
        for kind in (*RATES, CUT_OFF):
            if not self.faults[kind]:
                yield f"no run had the fault '{kind}'"
        for role, steps in STEPS.items():
            for step in steps:
                struck = self.struck(role, step)
                for kind in (CRASH, PAUSE) if step != "commit" else ():  # a commit returns at once: nothing can come between
                    if not struck[kind]:
                        yield f"no {role} had '{kind}' at '{step}'"
                if not struck:
                    yield f"nothing went wrong at '{step}' of a {role}"
