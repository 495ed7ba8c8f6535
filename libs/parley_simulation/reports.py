"""What a run was: what struck where, what was asked, and what broke. Small enough to hand from process to process."""

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from chassis.eventlog import LogRecord
from chassis.testing.virtual_loop import VirtualLoop
from parley.log.v1.records_pb2 import CommandRecord
from parley_checker.guarantees import Guarantee
from parley_checker.verdict import Fault, Verdict
from parley_simulation.processes import BrokenError, ContractError, Simulation

Strike = tuple[str, str, str]  # which kind of process, at which step, by which kind of fault


@dataclass
class Report:
    """One run. `broken` is empty if the contract was kept."""

    digest: str = ""  # of the trace
    verdict: Verdict = field(default_factory=Verdict)
    faults: Counter[str] = field(default_factory=Counter)  # by kind
    strikes: Counter[Strike] = field(default_factory=Counter)  # those that struck at a step
    commands: Counter[str] = field(default_factory=Counter)  # by kind, as they came to the log
    virtual_seconds: float = 0.0
    turns: int = 0
    trace: Sequence[str] = ()
    positions: dict[str, list[tuple[int, int]]] = field(default_factory=dict)  # request id -> partition and offset, each time
    broken: Sequence[str] = ()  # stories, the first violation first

    def take(self, simulation: Simulation) -> None:
        """Take in what the simulation counted."""
        self.digest = simulation.trace.digest()
        self.trace = list(simulation.trace.lines)
        self.faults = simulation.faults.counts
        for (site, where, kind), count in simulation.faults.struck.items():
            self.strikes[site.partition("-")[0].partition(".")[0], where, kind] += count
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        self.virtual_seconds, self.turns = loop.time(), loop.turns

    def take_log(self, log: Sequence[tuple[int, LogRecord]]) -> None:
        """Take in what came to the log of commands."""
        for partition, raw in log:
            record = CommandRecord.FromString(raw.value)
            self.commands[kind_of(record)] += 1
            if record.command.request_id:
                self.positions.setdefault(record.command.request_id.hex(), []).append((partition, raw.offset))

    def blame(self, error: BaseException) -> None:
        """Take in what ended the run."""
        if isinstance(error, ContractError):
            self.verdict, self.broken = error.verdict, error.stories
            return
        told = str(error) if isinstance(error, BrokenError) else f"{type(error).__name__}: {error}".splitlines()[0]
        if (cause := error.__cause__) is not None:
            told += f" because of {type(cause).__name__}: {cause}"
        self.verdict.blame(Fault.STOPPED, Guarantee.RESUMES, told)
        self.broken = self.verdict.stories


def kind_of(record: CommandRecord) -> str:
    """Return what a record asks for."""
    return record.command.WhichOneof("action") or "nothing" if record.WhichOneof("body") == "command" else "ack"
