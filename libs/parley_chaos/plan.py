"""Which faults, on what, for how long, and which of them together: drawn from a seed, and nothing else."""

from collections.abc import Mapping, Sequence
from enum import StrEnum
from random import Random
from typing import Final, NamedTuple


class Kind(StrEnum):
    """What can be done to a cluster."""

    KILL = "kill"  # SIGKILL of a service; its supervisor starts it again
    STOP = "stop"  # SIGSTOP of a service, then SIGCONT: a zombie that wakes up
    RESTART = "restart"  # SIGTERM of a store or router: a restart in order
    DRAIN = "drain"  # SIGTERM of a gateway: it hands over its users, then ends
    REBALANCE = "rebalance"  # another member joins a consumer group, takes partitions and does nothing with them, and leaves
    CLOCK_AHEAD = "clock_ahead"  # a process's wall clock jumps forth by an hour, and back again
    CLOCK_BEHIND = "clock_behind"  # and the other way round
    KILL_ENGINE = "kill_engine"  # SIGKILL of an engine, then its start
    STOP_ENGINE = "stop_engine"  # SIGSTOP of an engine, then SIGCONT: what a dead network looks like
    RESTART_ENGINE = "restart_engine"  # an engine's end in order, then its start
    FORGET = "forget"  # Consul comes back without its data
    DELAY = "delay"  # a link's bytes come late
    CUT = "cut"  # a link's connections are reset, and new ones at first
    HALF_OPEN = "half_open"  # a link swallows what goes one way
    BLACKHOLE = "blackhole"  # a link swallows everything, new connections included
    TRICKLE = "trickle"  # a link passes one byte at a time


class Fault(NamedTuple):
    """One fault: what is done to whom, `pause_seconds` after what was before, for how long."""

    kind: Kind
    target: str
    pause_seconds: float
    seconds: float


ENGINES: Final = ("kafka", "scylladb", "consul")
DEVICES: Final = "devices"  # all of them, as what a clock belongs to
# Seconds from, to: shorter and longer than the patience of those who wait (try 2 s, session ~5 s, request 5 s, unreachable 10 s).
_LONG: Final = (2.0, 9.0)
_SHORT: Final = (0.5, 3.0)
_SECONDS: Final[Mapping[Kind, tuple[float, float]]] = {
    Kind.KILL: (0.0, 0.0),
    Kind.STOP: _LONG,
    Kind.RESTART: (0.0, 0.0),
    Kind.DRAIN: (0.0, 0.0),
    Kind.REBALANCE: _SHORT,
    Kind.CLOCK_AHEAD: _LONG,
    Kind.CLOCK_BEHIND: _LONG,
    Kind.KILL_ENGINE: _SHORT,
    Kind.STOP_ENGINE: _LONG,
    Kind.RESTART_ENGINE: _SHORT,
    Kind.FORGET: _SHORT,
    Kind.DELAY: _LONG,
    Kind.CUT: _SHORT,
    Kind.HALF_OPEN: _LONG,
    Kind.BLACKHOLE: _LONG,
    Kind.TRICKLE: _SHORT,
}
_PAUSE: Final = (0.2, 1.5)
_TOGETHER: Final = 0.4  # of the faults that may, begin while another one lasts
_ENGINE_KINDS: Final = (Kind.KILL_ENGINE, Kind.STOP_ENGINE, Kind.RESTART_ENGINE)
_LINK_KINDS: Final = (Kind.DELAY, Kind.CUT, Kind.HALF_OPEN, Kind.BLACKHOLE, Kind.TRICKLE)


def possible(
    services: Sequence[str], links: Sequence[str], clocks: Sequence[str] = (), engines: Sequence[str] = ENGINES
) -> dict[Kind, list[str]]:
    """Return what each kind can be done to."""
    gateways = [name for name in services if name.startswith("gateway")]
    targets = {
        **dict.fromkeys((Kind.KILL, Kind.STOP), services),
        Kind.RESTART: [name for name in services if name not in gateways],
        Kind.DRAIN: gateways,
        **dict.fromkeys(_ENGINE_KINDS, engines),
        Kind.REBALANCE: ["store", "router"] if "kafka" in engines else [],
        Kind.FORGET: ["consul"] if "consul" in engines else [],
        **dict.fromkeys((Kind.CLOCK_AHEAD, Kind.CLOCK_BEHIND), clocks),
        **dict.fromkeys(_LINK_KINDS, links),
    }
    return {kind: list(names) for kind, names in targets.items() if names}


def draw(rng: Random, targets: Mapping[Kind, Sequence[str]], count: int) -> list[Fault]:
    """Draw faults. Every kind comes once before one comes again, and so do a kind's targets: a short run is a broad one."""
    faults: list[Fault] = []
    kinds: list[Kind] = []
    left: dict[Kind, list[str]] = {}
    while len(faults) < count:
        if not kinds:
            kinds = sorted(targets)
            rng.shuffle(kinds)
        kind = kinds.pop()
        if not left.get(kind):
            left[kind] = sorted(targets[kind])
            rng.shuffle(left[kind])
        faults.append(Fault(kind, left[kind].pop(), rng.uniform(*_PAUSE), rng.uniform(*_SECONDS[kind])))
    return faults


def overlap(rng: Random, faults: Sequence[Fault]) -> list[tuple[Fault, ...]]:
    """Draw which faults come alone, and which two at once: of different kinds, on what has nothing to do with each other.

    A link to what does not run is not met by anybody, which would prove nothing.
    """
    rounds: list[tuple[Fault, ...]] = []
    for fault in faults:
        together = rng.random() < _TOGETHER
        if together and rounds and len(rounds[-1]) == 1 and _are_apart(rounds[-1][0], fault):
            rounds[-1] = (*rounds[-1], fault)
        else:
            rounds.append((fault,))
    return rounds


def _are_apart(one: Fault, other: Fault) -> bool:
    return one.kind != other.kind and one.target not in other.target and other.target not in one.target
