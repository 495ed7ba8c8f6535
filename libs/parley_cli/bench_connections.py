"""`parley bench connections`: what an idle device costs the server, and whether messages flow when there are many."""

import asyncio
import time
from dataclasses import dataclass
from typing import Any

from parley_cli.bench_messages import DEVICE, MessageLoad, connect_load
from parley_cli.bench_report import percentiles_ms, progress
from parley_cli.bench_stream import open_fleet
from parley_cli.bench_target import Target
from parley_cli.failures import CommandError

_WARM_COUNT = 20  # devices connected before the first reading, so that code and pools are there
_SETTLE_SECONDS = 2.0
_PROGRESS_COUNT = 1000


@dataclass(frozen=True)
class ConnectionLoad:
    """How many devices, and how many of them chat at the end."""

    count: int
    devices_per_connection: int
    idle_seconds: float
    pairs: int
    flow_seconds: float


async def measure_connections(target: Target, load: ConnectionLoad) -> dict[str, Any]:
    """Connect idle devices and watch the server's memory; then have some pairs of them chat; return the figures."""
    meter = target.meter
    if meter is None:
        raise CommandError("the server's memory can be read only on its own machine: no process holds that data folder")
    pairs = MessageLoad(pairs=min(load.pairs, load.count // 2), window=1, seconds=load.flow_seconds)
    async with open_fleet(target.address, target.token_for) as warm:
        await warm.connect([target.user("w", index) for index in range(_WARM_COUNT)], DEVICE)
        await asyncio.sleep(_SETTLE_SECONDS)
    channels = -(-load.count // load.devices_per_connection)
    async with open_fleet(target.address, target.token_for, channel_count=channels) as fleet:
        rss_before, begin = meter.rss_kb(), time.monotonic()
        running = await connect_load(target, fleet, pairs)
        idle = [target.user("i", index) for index in range(load.count - 2 * pairs.pairs)]
        for start in range(0, len(idle), _PROGRESS_COUNT):
            await fleet.connect(idle[start : start + _PROGRESS_COUNT], DEVICE, tolerate=True)
            progress(f"{fleet.connected} of {load.count} devices, {meter.rss_kb() / 1024:.0f} MB")
        connect_seconds = time.monotonic() - begin
        await asyncio.sleep(_SETTLE_SECONDS)
        rss_after, cpu_before = meter.rss_kb(), meter.cpu_seconds()
        progress(f"{load.idle_seconds:g} s of silence")
        await asyncio.sleep(load.idle_seconds)
        idle_cpu, rss_idle = meter.cpu_seconds() - cpu_before, meter.rss_kb()
        progress(f"{pairs.pairs} pairs chat for {load.flow_seconds:g} s")
        running.tally.begin_window()
        await running.begin()
        await asyncio.sleep(load.flow_seconds)
        shown = running.tally.shown
        await running.end()
        verdict = await running.verdict()
        result: dict[str, Any] = {
            "connections": load.count,
            "devices_per_connection": load.devices_per_connection,
            "errors": len(fleet.errors),
            "connected_per_second": round(load.count / connect_seconds, 1),
            "server_rss_mb": round(rss_idle / 1024, 1),
            "server_kb_per_connection": round((max(rss_after, rss_idle) - rss_before) / load.count, 1),
            "idle_server_cores": round(idle_cpu / load.idle_seconds, 4),
            "messages_per_second": round(shown / load.flow_seconds, 1),
            "latency_ms": percentiles_ms(running.tally.answer_seconds),
        }
        return result | verdict.counts() | {"stories": verdict.stories + fleet.errors[:5]}
