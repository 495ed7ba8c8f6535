"""`parley bench soak`: does the server's memory stay flat over many messages, and over many comings and goings?"""

import asyncio
import time
from dataclasses import dataclass
from typing import Any, TypeAlias

from parley_cli.bench_messages import DEVICE, MessageLoad, Tally, connect_load
from parley_cli.bench_meter import ProcessMeter
from parley_cli.bench_report import progress, slope
from parley_cli.bench_stream import open_fleet
from parley_cli.bench_target import Target
from parley_cli.failures import CommandError

_SAMPLE_SECONDS = 0.5
_SHOWN_SAMPLES = 12  # readings in the result
# Caches fill first, and they are bounded: what counts is the second half of each part. Both limits are far below what keeping
# anything of a message (100,000 x 32 bytes) or of a session (1,000 x 0.5 kB) would take, and above the noise of an allocator.
MESSAGES_KB_PER_100K = 3072
CONNECTIONS_KB_PER_1000 = 512
_REPORT_SECONDS = 5.0
_CYCLE = 100  # devices that connect and disconnect together
LEAST_MESSAGES, LEAST_CONNECTIONS = 100_000, 2_000  # fewer say nothing: their second half is still warming up
RULE = (
    f"flat: over the second half of each part the line fitted to the memory rises by at most {MESSAGES_KB_PER_100K} kB "
    f"in 100,000 messages and {CONNECTIONS_KB_PER_1000} kB in 1,000 connections; null: fewer than {LEAST_MESSAGES} messages "
    f"or {LEAST_CONNECTIONS} connections"
)

Series: TypeAlias = list[tuple[int, int]]  # (messages or connections so far, kB)


@dataclass(frozen=True)
class SoakLoad:
    """How many messages, over how many pairs; how many connections."""

    messages: int
    connections: int
    pairs: int = 100
    window: int = 8


async def measure_soak(target: Target, load: SoakLoad) -> dict[str, Any]:
    """Send the messages, then connect and disconnect; return the memory's course and whether it is flat."""
    if target.meter is None:
        raise CommandError("the server's memory can be read only on its own machine: no process holds that data folder")
    begin = time.monotonic()
    result: dict[str, Any] = {"rule": RULE, "flat": None}
    per_pair = -(-load.messages // load.pairs)
    async with open_fleet(target.address, target.token_for) as fleet:
        progress(f"{per_pair * load.pairs} messages between {load.pairs} pairs")
        messages = MessageLoad(pairs=load.pairs, window=load.window, seconds=0.0, most=per_pair)
        running = await connect_load(target, fleet, messages)
        series: Series = []
        sampling = fleet.spawn(_sample(series, target.meter, running.tally), "sample")
        await running.begin()
        await running.wait_all()
        sampling.cancel()
        series.append((running.tally.shown, target.meter.rss_kb()))
        result |= {"messages": running.tally.shown, "messages_seconds": round(time.monotonic() - begin, 1)}
        result["rss_mb_over_messages"] = _shown(series)
        result["kb_per_100k_messages"] = _rise(series, 100_000)
        await running.end()
        verdict = await running.verdict()
    if load.connections:
        progress(f"{load.connections} connects and disconnects")
        series = await _cycle(target, target.meter, load.connections)
        result |= {"connections": load.connections, "rss_mb_over_connections": _shown(series)}
        result["kb_per_1000_connections"] = _rise(series, 1000)
    rises = []
    if result["messages"] >= LEAST_MESSAGES:
        rises.append(result["kb_per_100k_messages"] <= MESSAGES_KB_PER_100K)
    if load.connections >= LEAST_CONNECTIONS:
        rises.append(result["kb_per_1000_connections"] <= CONNECTIONS_KB_PER_1000)
    result["flat"] = all(rises) if rises else None
    return result | verdict.counts() | {"stories": verdict.stories}


async def _sample(series: Series, meter: ProcessMeter, tally: Tally) -> None:
    while True:
        series.append((tally.shown, meter.rss_kb()))
        await asyncio.sleep(_SAMPLE_SECONDS)


async def _cycle(target: Target, meter: ProcessMeter, count: int) -> Series:
    """Have new devices of ever new users come, each by a connection of its own, and go; return the memory after each turn."""
    series: Series = [(0, meter.rss_kb())]
    told = time.monotonic()
    for done in range(0, count, _CYCLE):
        users = [target.user("c", index) for index in range(done, min(done + _CYCLE, count))]
        async with open_fleet(target.address, target.token_for, channel_count=len(users)) as fleet:
            await fleet.disconnect(await fleet.connect(users, DEVICE))
        series.append((done + len(users), meter.rss_kb()))
        if time.monotonic() - told > _REPORT_SECONDS:
            told = time.monotonic()
            progress(f"{series[-1][0]} of {count} connections, {series[-1][1] / 1024:.0f} MB")
    return series


def _rise(series: Series, unit: int) -> float:
    """Return the kB that memory rises by in so many, over the second half."""
    middle = series[-1][0] / 2
    return round(slope([point for point in series if point[0] >= middle]) * unit, 1)


def _shown(series: Series) -> list[float]:
    """Return some readings in MB, evenly spaced, the first and the last among them."""
    last = len(series) - 1
    picked = sorted({round(last * part / (_SHOWN_SAMPLES - 1)) for part in range(_SHOWN_SAMPLES)})
    return [round(series[index][1] / 1024, 1) for index in picked]
