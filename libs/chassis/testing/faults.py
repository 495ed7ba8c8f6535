"""Seeded faults: what goes wrong, when, and how often it did.

Every place that can fail draws from a stream of its own, so that turning one kind of fault off leaves the draws of the others as
they were: what shrinks a failing run.
"""

import asyncio
import hashlib
from collections import Counter, deque
from collections.abc import Callable, Coroutine, Mapping
from contextvars import Context
from random import Random
from typing import Any, Final, TypeVar

T = TypeVar("T")

WRITE_FAILS: Final = "write fails"  # any subset of its groups is applied
WRITE_LATE: Final = "write applied late"  # a group of a failed write, after the error came back
WRITE_LOST: Final = "write dropped"  # a group of a failed write
WRITE_SPLIT: Final = "write in pieces"  # succeeds, its groups seen one after the other
READ_FAILS: Final = "read fails"
READ_SPLIT: Final = "read in pieces"  # its partitions are read at different moments
APPEND_FAILS: Final = "append unknown"  # any prefix is in the log
APPEND_LATE: Final = "append late"  # the rest of a failed append, after the error came back
POLL_FAILS: Final = "poll fails"
REWIND: Final = "partition regained"  # a consumer gets everything since the last commit again
REJOIN: Final = "laggard thrown out"  # a consumer whose partition another took further finds itself there
COMMIT_LAGS: Final = "commit lags"  # what is done is not committed yet: a crash hands it out again
SLOW: Final = "slow"  # an operation takes up to two seconds
OUTAGE: Final = "engine away"  # every operation on it fails for a while
PAUSE: Final = "process paused"  # goes on minutes later, unaware: a zombie
CRASH: Final = "process crashed"
FREEZE: Final = "process frozen"  # all of it stands still for a while, as by SIGSTOP, while others think that it is gone
KILL: Final = "process killed"  # at any moment, not only between two steps
PARTITION_AWAY: Final = "partition away"  # one of the log's: nothing is appended to it or polled from it, for minutes
PRODUCER_LOST: Final = "producer lost"  # all appends of a process that are under way end unknown, at once
WALL_JUMP: Final = "wall clock jumped"
WEEKS_JUMP: Final = "weeks passed"  # of the log's time, or were taken back
CUT: Final = "connection cut"
REPLACED: Final = "session replaced"  # another stream of the same device comes, and the first is sent away for good
AWAY: Final = "away for weeks"  # a device comes back when log and answers have expired
HALF_OPEN: Final = "link half-open"  # nothing more arrives in one direction of a call, and nobody is told
SLOW_READER: Final = "reads slowly"  # a device takes nothing from the network for a while
CUT_OFF: Final = "cut off as slow"  # what came of it: GoAway{SLOW}
REGISTRY_FAILS: Final = "registry's answer lost"  # it did what it was asked
REGISTRY_SILENT: Final = "registry silent"  # to one process, for a while
SESSION_LOST: Final = "session lost"  # of one who lives
DATA_LOST: Final = "registry lost its data"

DRAIN: Final = "gateway drained"  # stopped in order, and started again
POWER_LOST: Final = "power lost"  # all processes die at once, and their engines' disk has what it had by then
REGISTRY_FAULTS: Final = (REGISTRY_FAILS, REGISTRY_SILENT, SESSION_LOST, DATA_LOST)

# Chances a draw. High enough that a run of some hundred operations meets most kinds, low enough that it gets anywhere.
RATES: Final[Mapping[str, float]] = {
    WRITE_FAILS: 0.06,
    WRITE_LATE: 0.4,  # of the groups of failed writes
    WRITE_LOST: 0.5,  # of those that are not late
    WRITE_SPLIT: 0.1,
    READ_FAILS: 0.02,
    READ_SPLIT: 0.1,
    APPEND_FAILS: 0.05,
    APPEND_LATE: 0.5,  # of failed appends
    POLL_FAILS: 0.02,
    REWIND: 0.04,
    REJOIN: 0.5,  # of the polls of a consumer that is behind its group
    COMMIT_LAGS: 0.7,  # of finished batches
    SLOW: 0.03,
    OUTAGE: 0.002,
    PAUSE: 0.01,
    CRASH: 0.006,
    FREEZE: 0.3,  # of the occasions that a workload gives
    PARTITION_AWAY: 0.0005,
    PRODUCER_LOST: 0.01,
    KILL: 0.5,  # likewise
    WALL_JUMP: 0.3,  # likewise
    WEEKS_JUMP: 0.4,  # likewise; much of what is asked for hangs on what was asked for lately
    REPLACED: 0.02,  # of what a device does
    AWAY: 0.1,  # of devices
    CUT: 0.003,  # a message
    HALF_OPEN: 0.001,  # a message
    SLOW_READER: 0.01,  # a message
    REGISTRY_FAILS: 0.05,
    REGISTRY_SILENT: 0.02,
    SESSION_LOST: 0.02,  # of the looks that are taken at each session every 5 s
    DATA_LOST: 0.3,  # of the occasions that a workload gives
    DRAIN: 0.5,  # likewise
    POWER_LOST: 0.3,  # likewise
}

_SWARM: Final = (0.0, 0.5, 1.0, 1.0, 3.0)
_SHARES: Final = (WRITE_LATE, WRITE_LOST, APPEND_LATE, COMMIT_LAGS)  # of faults that have struck: not multiplied

LATE_SECONDS_MAX = 60.0  # longer than a restart takes: late writes meet the next worker
OUTAGE_SECONDS_MAX = 20.0
PARTITION_AWAY_SECONDS_MAX = 600.0
PAUSE_SECONDS_MAX = 120.0  # longer than a restart, and than anybody waits for an answer
TAIL_LINES = 200  # of the trace, shown when a run fails


def swarm(rates: Mapping[str, float], rng: Random) -> dict[str, float]:
    """Draw how much of each kind one run gets, some of none: what one fault hides (a reconnect repairs much) shows where it is
    missing. After A. Groce et al., "Swarm Testing" (2012).
    """
    return {kind: rate if kind in _SHARES else min(1.0, rate * rng.choice(_SWARM)) for kind, rate in rates.items()}


class Trace:
    """What happened, in order: a running hash to compare runs by, and the last lines (or all) to read."""

    def __init__(self, keep_all: bool = False) -> None:
        self._hash = hashlib.sha256()
        self.lines: deque[str] = deque(maxlen=None if keep_all else TAIL_LINES)

    def note(self, who: str, what: str) -> None:
        """Add a line. It must not name what differs between equal runs: addresses, real times, global counters."""
        line = f"{asyncio.get_running_loop().time():.6f} {who}: {what}"
        self._hash.update(line.encode())
        self.lines.append(line)

    def digest(self) -> str:
        """Return the hash of all lines so far."""
        return self._hash.hexdigest()


class Faults:
    """One run's faults. `heal()` ends them: from then on everything works, only what is late still comes."""

    def __init__(self, seed: int, trace: Trace, rates: Mapping[str, float] = RATES) -> None:
        self._seed = seed
        self.trace = trace
        self.rates = dict(rates)
        self.healed = False
        self.counts: Counter[str] = Counter()
        self.struck: Counter[tuple[str, str, str]] = Counter()  # site, step, kind

    def heal(self) -> None:
        """Let nothing new go wrong."""
        self.healed = True

    def stream(self, site: str) -> "FaultStream":
        """Return the draws of one place: equal for equal (seed, site), whatever is drawn elsewhere."""
        return FaultStream(self, site, Random(f"{self._seed}/{site}"))


class FaultStream:
    """The draws of one place."""

    def __init__(self, faults: Faults, site: str, rng: Random) -> None:
        self._faults = faults
        self.site = site
        self.rng = rng

    def happens(self, kind: str, step: str = "") -> bool:
        """Draw whether a fault of this kind strikes now; count it if so, and where, if the step has a name."""
        faults = self._faults
        strikes = self.rng.random() < faults.rates.get(kind, 0.0)
        if not strikes or faults.healed:
            return False
        faults.counts[kind] += 1
        if step:
            faults.struck[self.site, step, kind] += 1
        faults.trace.note(self.site, kind)
        return True

    @property
    def healed(self) -> bool:
        """Whether nothing new goes wrong, and what lasts should end."""
        return self._faults.healed

    def note(self, what: str) -> None:
        """Add a line to the trace."""
        self._faults.trace.note(self.site, what)

    async def latency(self, step: str = "") -> None:
        """Take a moment: mostly none, often some milliseconds, at times seconds."""
        if self.happens(SLOW, step):
            await asyncio.sleep(self.rng.uniform(0.1, 2.0))
        elif self.rng.random() < 0.3:
            await asyncio.sleep(self.rng.uniform(0.0, 0.02))
        else:
            await asyncio.sleep(0)


class Engine:
    """One engine (a database, a log) as clients meet it: what was asked for goes on when the asker is gone; it can be away."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.away_until = 0.0
        self._in_flight: dict[asyncio.Task[Any], None] = {}

    def spawn(self, operation: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run what is on its way already: it belongs to no process, and no crash takes it back."""
        task = asyncio.get_running_loop().create_task(operation, context=Context())
        self._in_flight[task] = None
        task.add_done_callback(self._in_flight.pop)
        return task

    async def ask(self, operation: Coroutine[Any, Any, T]) -> T:
        """Run an operation that goes on if the asker is cancelled; nobody hears then how it ended."""
        task = self.spawn(operation)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            task.add_done_callback(_ignore_outcome)
            raise

    def is_away(self, stream: FaultStream, step: str = "") -> bool:
        """Tell whether the engine is away now; it may go away with this question."""
        now = asyncio.get_running_loop().time()
        if now >= self.away_until and stream.happens(OUTAGE, step):
            self.away_until = now + stream.rng.uniform(0.1, OUTAGE_SECONDS_MAX)
        return now < self.away_until

    async def settle(self) -> None:
        """Wait until nothing is on its way any more."""
        while self._in_flight:
            await asyncio.wait(list(self._in_flight))


def _ignore_outcome(task: asyncio.Task[Any]) -> None:
    if not task.cancelled():
        task.exception()


class Life:
    """One incarnation of a process, as its ports see it. Between any two steps it may be paused, or die; the dead do nothing."""

    def __init__(
        self, name: str, stream: FaultStream, on_death: Callable[["Life"], None], *, immortal: bool = False, crash_at_step: int = 0
    ) -> None:
        self.name = name
        self.alive = True
        self.steps = 0
        self._immortal = immortal  # the test's own processes
        self._stream = stream
        self._on_death = on_death
        self._crash_at_step = crash_at_step  # 0: by chance only

    async def step(self, where: str) -> None:
        """Pass a point between two steps of the process."""
        self.require_alive()
        self.steps += 1
        if self._immortal:
            return
        if self.steps == self._crash_at_step or self._stream.happens(CRASH, where):
            self.die(where)
        elif self._stream.happens(PAUSE, where):
            await asyncio.sleep(PAUSE_SECONDS_MAX ** self._stream.rng.uniform(-0.1, 1.0))  # short ones are as likely as long ones
        self.require_alive()

    def die(self, where: str) -> None:
        """End this incarnation here and now: `on_death` cancels its tasks."""
        if self.alive:
            self.alive = False
            self._stream.note(f"dies at {where}")
            self._on_death(self)

    def require_alive(self) -> None:
        """Stop a dead process's code, its clean-up included, from touching anything."""
        if not self.alive:
            raise asyncio.CancelledError(f"{self.name} is dead")
