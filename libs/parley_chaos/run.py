"""One run: a cluster, its load, faults one after the other, then peace, and the verdict."""

import asyncio
import random
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from parley_chaos.hands import Hands, NotProvenError, open_hands
from parley_chaos.load import Load, LoadStoppedError, open_load
from parley_chaos.plan import Fault, Kind, draw, possible
from parley_chaos.proxy import Link, open_link
from parley_checker.judge import judge
from parley_checker.verdict import Verdict
from parley_cluster.cluster import open_cluster
from parley_cluster.topology import Topology
from parley_engines.native import NativeEngines
from parley_engines.ports import free_ports
from parley_engines.state import Started
from services.gateway.keys import KEY_FILE_NAME, load_or_create_key, mint_token

FLOW_SECONDS: Final = 90.0  # for traffic to flow again after a fault is healed: the bound of what counts as going on by itself
_SETTLE_SECONDS: Final = 120.0
_WARM_SECONDS: Final = 2.0
_TOKEN_SECONDS: Final = 24 * 3600.0
_HOST: Final = "127.0.0.1"
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
    modules: Mapping[str, str] = field(default_factory=dict)  # a broken build of a role, see Topology
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


@dataclass
class Report:
    """What happened and what the judge says; `problems` are what broke the run itself."""

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
            "longest_silence_seconds": max((done.flowed_after_seconds for done in self.done), default=0.0),
            **self.verdict.counts(),
            "problems": self.problems,
            "stories": self.verdict.stories,
            "done": [asdict(done) for done in self.done],
        }


async def run_chaos(
    options: Options, data: Path, environ: Mapping[str, str], engines: NativeEngines, started: Mapping[str, Started], tell: Tell
) -> Report:
    """Run a cluster in a folder on engines that are prepared, and break it; return what came of it.

    `environ` has the settings of all processes. Raises what a cluster that can't start raises.
    """
    rng = random.Random(options.seed)
    report = Report(options.seed, engines=[engine.title for engine in started.values()])
    begin = time.monotonic()
    async with AsyncExitStack() as stack:
        topology, links, gateways = await _with_links(options, environ, started, stack)
        logs = (data / "services.log").open("w", encoding="utf-8")
        stack.callback(logs.close)
        cluster = await stack.enter_async_context(
            open_cluster(topology, data, started, lambda name, line: print(f"{name:<10}| {line}", file=logs, flush=True))
        )
        key = load_or_create_key(data / KEY_FILE_NAME)

        def token_for(user: str) -> str:
            return mint_token(key, user, "", _TOKEN_SECONDS, time.time())

        load = await stack.enter_async_context(open_load(",".join(gateways), token_for))
        hands = await stack.enter_async_context(open_hands(cluster.supervisor, engines, links))
        tell(f"{len(load.devices)} devices write; logs in {data / 'services.log'}")
        load.begin(rng)
        await asyncio.sleep(_WARM_SECONDS)
        targets = possible(list(cluster.supervisor.children), list(links))
        if options.only:
            targets = {kind: targets[kind] for kind in options.only}
        await _break_all(draw(rng, targets, options.faults or _PLENTY), options, report, load, hands, begin, tell)
        tell("no more faults; waiting until all is answered and shown")
        try:
            # What has stopped does not get better by waiting; the judge tells what is missing.
            await (load.stop() if report.problems else load.settle(max(_SETTLE_SECONDS, options.flow_seconds)))
        except LoadStoppedError as error:
            report.problems.append(str(error))
        for number, gateway in enumerate(gateways, 1):
            load.history.readings[f"gateway-{number}"] = await load.read_back(gateway, token_for)
        report.verdict = judge(load.history)
    report.seconds = time.monotonic() - begin
    return report


async def _break_all(
    faults: Sequence[Fault], options: Options, report: Report, load: Load, hands: Hands, begin: float, tell: Tell
) -> None:
    """Do faults one after the other until time or faults are over, or one of them breaks the run."""
    end = time.monotonic() + options.seconds
    for fault in faults:
        if not options.faults and time.monotonic() >= end:
            return
        try:
            await _break(fault, options, report, load, hands, begin, tell)
            await hands.wait_whole()
        except (LoadStoppedError, NotProvenError) as error:
            report.problems.append(f"{fault.kind} {fault.target}: {error}")
            tell(f"FAILED: {error}")
            return


async def _break(fault: Fault, options: Options, report: Report, load: Load, hands: Hands, begin: float, tell: Tell) -> None:
    await asyncio.sleep(fault.pause_seconds)
    at = time.monotonic() - begin
    proof = await hands.do(fault)
    healed = time.monotonic()
    try:
        await load.wait_flowing(options.flow_seconds)
    finally:
        flowed = time.monotonic() - healed
        done = Done(fault.kind.value, fault.target, round(at, 1), round(fault.seconds, 1), proof, round(flowed, 1))
        report.done.append(done)
        told = f"{at:6.1f} s  {done.kind} {done.target} {done.seconds:g} s: {proof}"
        tell(f"{told}; flowed after {flowed:.1f} s, {load.answered} answered")


async def _with_links(
    options: Options, environ: Mapping[str, str], started: Mapping[str, Started], stack: AsyncExitStack
) -> tuple[Topology, dict[str, Link], list[str]]:
    """Lay a link before each server that others connect to; return the cluster that uses them, and where devices connect."""
    links: dict[str, Link] = {}

    async def link(name: str, upstream: str) -> str:
        links[name] = await stack.enter_async_context(open_link(name, upstream))
        return links[name].address

    names = [f"gateway-{n}" for n in range(1, options.gateways + 1)] + [f"store-{n}" for n in range(1, options.stores + 1)]
    ports = free_ports(_HOST, [f"{name}{what}" for name in names for what in ("", "/devices")], random.Random())
    own: dict[str, dict[str, str]] = {}
    gateways = []
    for name in names:
        internal = f"{_HOST}:{ports[name]}"
        own[name] = {"PARLEY_INTERNAL_LISTEN": internal, "PARLEY_INTERNAL_ADVERTISE_ADDRESS": await link(f"to-{name}", internal)}
        if name.startswith("gateway"):
            public = f"{_HOST}:{ports[f'{name}/devices']}"
            gateways.append(await link(f"devices-to-{name}", public))
            own[name] |= {"PARLEY_GATEWAY_LISTEN": public, "PARLEY_GATEWAY_ADVERTISE_ADDRESS": gateways[-1]}
    # Kafka's clients go where the brokers say that they are: what a link does to them, stopping a broker does.
    linked = {
        "PARLEY_CQL_HOSTS": await link("to-scylladb", started["scylladb"].address),
        "PARLEY_CONSUL_ADDRESS": await link("to-consul", started["consul"].address),
    }
    topology = Topology(
        f"{_HOST}:0", options.gateways, options.stores, options.routers, {**environ, **linked}, own, options.modules
    )
    return topology, links, gateways
