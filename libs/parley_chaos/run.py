"""One run: a cluster, its load, faults one after the other or two at once, then peace, and the verdict."""

import asyncio
import random
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from parley_chaos.clocks import DeviceClock, Preload
from parley_chaos.hands import Hands, NotBackError, NotProvenError, open_engine_thread
from parley_chaos.layout import lay_out
from parley_chaos.load import Load, LoadStoppedError, open_load
from parley_chaos.plan import DEVICES, Fault, Kind, draw, overlap, possible
from parley_chaos.watch import Watch, is_own_error
from parley_checker.guarantees import Guarantee
from parley_checker.judge import judge
from parley_checker.verdict import Verdict
from parley_cluster.cluster import open_cluster
from parley_engines.native import NativeEngines
from parley_engines.state import Started
from services.gateway.keys import KEY_FILE_NAME, load_or_create_key, mint_token

FLOW_SECONDS: Final = 90.0  # for traffic to flow again after a fault is healed: the bound of what counts as going on by itself
_SETTLE_SECONDS: Final = 120.0
_WARM_SECONDS: Final = 2.0
_TOKEN_SECONDS: Final = 24 * 3600.0
_PLENTY: Final = 10_000  # faults to draw from; time ends a run sooner

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Options:
    """What to do: for how long, or how many faults (`faults` > 0); `only` kinds, if any are named."""

    seed: int
    seconds: float = 60.0
    faults: int = 0
    only: tuple[Kind, ...] = ()
    gateways: int = 2
    stores: int = 2
    routers: int = 2
    only_on: tuple[str, ...] = ()  # and only on these targets
    broken: str = ""  # one of `broken.BROKEN`
    certificates: Path | None = None  # a folder of `parley certs`: services trust nobody without
    flow_seconds: float = FLOW_SECONDS


@dataclass
class Done:
    """A fault that was done."""

    kind: str
    target: str
    at_seconds: float
    seconds: float
    proof: str
    flowed_after_seconds: float  # from the fault's end until each device had an answer to something new
    together_with: str = ""  # the other fault that lasted meanwhile


@dataclass
class Report:
    """What happened and what the judge says; `problems` are what makes the run prove nothing."""

    seed: int
    done: list[Done] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    verdict: Verdict = field(default_factory=Verdict)
    seconds: float = 0.0
    engines: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether all faults happened, all went on by itself, and the contract was kept."""
        return (
            bool(self.done) and not self.problems and self.verdict.kept and not (self.verdict.unanswered or self.verdict.rejected)
        )

    def as_json(self) -> dict[str, Any]:
        """Return the report as one object."""
        return {
            "seed": self.seed,
            "seconds": round(self.seconds, 1),
            "passed": self.passed,
            "engines": self.engines,
            "faults": len(self.done),
            "kinds": len({done.kind for done in self.done}),
            "overlapping": sum(bool(done.together_with) for done in self.done),
            "longest_silence_seconds": max((done.flowed_after_seconds for done in self.done), default=0.0),
            **self.verdict.counts(),
            "guarantees": {
                f"G{guarantee.value}": {"judged": self.verdict.judged[guarantee], "broken": self.verdict.broken[guarantee]}
                for guarantee in Guarantee
                if self.verdict.judged[guarantee] or self.verdict.broken[guarantee]
            },
            "problems": self.problems,
            "stories": self.verdict.stories,
            "done": [asdict(done) for done in self.done],
        }


async def run_chaos(
    options: Options,
    data: Path,
    environ: Mapping[str, str],
    engines: NativeEngines,
    started: Mapping[str, Started],
    preload: Preload,
    tell: Tell,
) -> Report:
    """Run a cluster in a folder on engines that are prepared, and break it; return what came of it.

    `environ` has the settings of all processes. Raises what a cluster that can't start raises.
    """
    rng = random.Random(options.seed)
    report = Report(options.seed, engines=[engine.title for engine in started.values()])
    begin = time.monotonic()
    notes = data / "notes"
    notes.mkdir(exist_ok=True)
    async with AsyncExitStack() as stack:
        executor = stack.enter_context(open_engine_thread())
        plan = await lay_out(options, environ, started, preload, notes, stack)
        logs = (data / "services.log").open("w", encoding="utf-8")
        stack.callback(logs.close)
        failures: list[str] = []

        def say(name: str, line: str) -> None:
            print(f"{name:<10}| {line}", file=logs, flush=True)
            if is_own_error(line):
                failures.append(f"{name} logged an error: {' '.join(line.split())}")

        cluster = await stack.enter_async_context(open_cluster(plan.topology, data, started, say))
        key = load_or_create_key(data / KEY_FILE_NAME)

        def token_for(user: str) -> str:
            return mint_token(key, user, "", _TOKEN_SECONDS, time.time())

        clock = DeviceClock()
        load = await stack.enter_async_context(open_load(",".join(plan.gateways), token_for, clock=clock))
        clocks = {**plan.clocks, DEVICES: clock}
        children = cluster.supervisor.children
        hands = Hands(cluster.supervisor, engines, plan.links, clocks, environ, executor)
        run = _Run(options, report, load, hands, Watch(load, children, notes), begin, tell)
        tell(f"{len(load.devices)} devices write; logs in {data / 'services.log'}")
        load.begin(rng)
        await asyncio.sleep(_WARM_SECONDS)
        await run.break_all(_rounds(rng, options, possible(list(children), list(plan.links), list(clocks))))
        tell("no more faults; waiting until all is answered and shown")
        await run.end()
        for number, gateway in enumerate(plan.gateways, 1):
            load.history.readings[f"gateway-{number}"] = await load.read_back(gateway, token_for)
        report.verdict = judge(load.history)
    for failure in failures:  # no fault is a reason: an error is a bug of ours
        run.watch.stopped(failure)
    report.verdict.add(run.watch.judge())  # now that no gateway notes anything more
    report.seconds = time.monotonic() - begin
    return report


def _rounds(rng: random.Random, options: Options, targets: dict[Kind, list[str]]) -> list[tuple[Fault, ...]]:
    if options.only:
        targets = {kind: targets[kind] for kind in options.only if kind in targets}
    if options.only_on:
        targets = {kind: [name for name in names if name in options.only_on] for kind, names in targets.items()}
    targets = {kind: names for kind, names in targets.items() if names}
    return overlap(rng, draw(rng, targets, options.faults or _PLENTY)) if targets else []


class _Run:
    """Faults until time or they are over, or something does not go on."""

    def __init__(self, options: Options, report: Report, load: Load, hands: Hands, watch: Watch, begin: float, tell: Tell) -> None:
        self._options = options
        self._report = report
        self._load = load
        self._hands = hands
        self.watch = watch
        self._begin = begin
        self._tell = tell
        self._stopped = False

    async def break_all(self, rounds: Sequence[tuple[Fault, ...]]) -> None:
        """Do round after round."""
        end = time.monotonic() + self._options.seconds
        for faults in rounds:
            if not self._options.faults and time.monotonic() >= end:
                return
            try:
                await self._break(faults)
                await self._hands.wait_whole()
                self.watch.resumed()
            except (LoadStoppedError, NotBackError) as error:
                self._stopped = True
                self.watch.stopped(f"after {_named(faults)}: {error}")
                self._tell(f"STOPPED: {error}")
                return
            except NotProvenError as error:
                self._report.problems.append(f"{_named(faults)}: {error}")
                self._tell(f"FAILED: {error}")
                return

    async def _break(self, faults: tuple[Fault, ...]) -> None:
        """Do one fault, or several at once, until all devices have their answers again."""
        await asyncio.sleep(faults[0].pause_seconds)
        is_outage = await self.watch.begin(faults)
        meanwhile = self.watch.flow_meanwhile if is_outage else _nothing
        at = time.monotonic() - self._begin

        async def do(number: int, fault: Fault) -> str:
            if number:
                await asyncio.sleep(fault.pause_seconds)
            return await self._hands.do(fault, meanwhile)

        # Each is healed, whatever becomes of the other.
        proofs = await asyncio.gather(*(do(number, fault) for number, fault in enumerate(faults)), return_exceptions=True)
        for proof in proofs:
            if isinstance(proof, BaseException):
                raise proof
        healed = time.monotonic()
        try:
            await self._load.wait_flowing(self._options.flow_seconds)
        finally:
            flowed = time.monotonic() - healed
            for fault, proof in zip(faults, proofs, strict=True):
                others = _named([other for other in faults if other is not fault])
                done = Done(
                    fault.kind.value, fault.target, round(at, 1), round(fault.seconds, 1), str(proof), round(flowed, 1), others
                )
                self._report.done.append(done)
                together = f", with {others}" if others else ""
                self._tell(f"{at:6.1f} s  {done.kind} {done.target} {done.seconds:g} s{together}: {proof}")
                if fault.kind in (Kind.CLOCK_AHEAD, Kind.CLOCK_BEHIND):
                    self.watch.jumped()
            self._tell(f"          flowed after {flowed:.1f} s, {self._load.answered} answered")
        await self.watch.end()

    async def end(self) -> None:
        """Let all be answered and shown; what has stopped does not get better by waiting: the judge tells what is missing."""
        if self._stopped:
            await self._load.stop()
            return
        try:
            await self._load.settle(max(_SETTLE_SECONDS, self._options.flow_seconds))
        except LoadStoppedError as error:
            self.watch.stopped(f"at the end: {error}")


def _named(faults: Sequence[Fault]) -> str:
    return " and ".join(f"{fault.kind} {fault.target}" for fault in faults)


async def _nothing() -> None:
    """Let a fault last for its time."""
