"""Which faults, on what, and for how long: drawn from a seed, and nothing else."""

from collections.abc import Mapping, Sequence
from enum import StrEnum
from random import Random
from typing import Final, NamedTuple


class Kind(StrEnum):
    """What can be done to a cluster."""

    KILL = "kill"  # SIGKILL of a service; its supervisor starts it again
    STOP = "stop"  # SIGSTOP of a service, then SIGCONT: a zombie that wakes up
    DRAIN = "drain"  # SIGTERM of a service: a restart in order
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
    """One fault: what is done to whom, `pause_seconds` after the last one was healed, for how long."""

    kind: Kind
    target: str
    pause_seconds: float
    seconds: float


ENGINES: Final = ("kafka", "scylladb", "consul")
# Seconds from, to: shorter and longer than the patience of those who wait (try 2 s, session ~5 s, request 5 s, unreachable 10 s).
_LONG: Final = (2.0, 9.0)
_SHORT: Final = (0.5, 3.0)
_SECONDS: Final[Mapping[Kind, tuple[float, float]]] = {
    Kind.KILL: (0.0, 0.0),
    Kind.STOP: _LONG,
    Kind.DRAIN: (0.0, 0.0),
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
_SERVICE_KINDS: Final = (Kind.KILL, Kind.STOP, Kind.DRAIN)
_ENGINE_KINDS: Final = (Kind.KILL_ENGINE, Kind.STOP_ENGINE, Kind.RESTART_ENGINE)
_LINK_KINDS: Final = (Kind.DELAY, Kind.CUT, Kind.HALF_OPEN, Kind.BLACKHOLE, Kind.TRICKLE)


def possible(services: Sequence[str], links: Sequence[str], engines: Sequence[str] = ENGINES) -> dict[Kind, list[str]]:
    """Return what each kind can be done to."""
    return {
        **{kind: list(services) for kind in _SERVICE_KINDS},
        **{kind: list(engines) for kind in _ENGINE_KINDS},
        **({Kind.FORGET: ["consul"]} if "consul" in engines else {}),
        **{kind: list(links) for kind in _LINK_KINDS if links},
    }


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
