"""What rows cost in ScyllaDB or Cassandra: the driver's CPU and the engine's, by how many travel together."""

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import uvloop
from prometheus_client import CollectorRegistry

from chassis.logs import configure_logging
from chassis.timeline import Point, Row, Timeline
from chassis.timeline_cql import open_cql_timeline
from chassis.timeline_cql_connect import open_cql_session
from chassis.timeline_cql_metrics import CqlMetrics
from chassis.timeline_cql_schema import TableSpec, apply_schema
from chassis.timeline_cql_session import CqlSession
from chassis.timeline_cql_settings import CqlSettings
from parley_cli.bench_meter import ProcessMeter
from parley_cli.bench_report import progress

_TABLE = "events"
_VALUE = bytes(100)  # a message of the other benchmarks
_SCHEMA = [[TableSpec(_TABLE)]]


@dataclass(frozen=True)
class TimelineLoad:
    """What is measured: calls of so many rows, so many calls at a time."""

    sizes: Sequence[int]
    callers: int
    seconds: float
    engine_pid: int  # 0: its CPU is not known


def run_timeline_bench(settings: CqlSettings, load: TimelineLoad) -> dict[str, Any]:
    """Measure on a keyspace of its own, which is dropped afterwards. Raises TimelineSetupError, TimelineUnavailableError."""
    configure_logging(json=False, level="warning")
    own = settings.model_copy(update={"keyspace": f"bench_{uuid.uuid4().hex[:16]}"})
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_run(own, load))


async def _run(settings: CqlSettings, load: TimelineLoad) -> dict[str, Any]:
    async with open_cql_session(settings, CqlMetrics(CollectorRegistry())) as session:
        await apply_schema(session, settings.keyspace, "1", _SCHEMA)
        try:
            return await _measure_all(settings, load)
        finally:
            await _drop(session, settings.keyspace)


async def _drop(session: CqlSession, keyspace: str) -> None:
    with suppress(Exception):  # an engine that went away meanwhile: what ended the measurement is told
        await session.define(f'DROP KEYSPACE "{keyspace}"')


async def _measure_all(settings: CqlSettings, load: TimelineLoad) -> dict[str, Any]:
    async with open_cql_timeline(settings, [_TABLE], schema_version=1, metrics=CollectorRegistry()) as timeline:
        result: dict[str, Any] = {"engine": timeline.engine, "callers": load.callers}
        meter = ProcessMeter(load.engine_pid) if load.engine_pid else None
        await _measure(timeline, _write, max(load.sizes), load, None)  # warms code and engine up
        for size in load.sizes:
            for name, call in (("write", _write), ("points", _read_points), ("partitions", _read_partitions)):
                progress(f"{name}, {size} rows a call, for {load.seconds:g} s")
                result[f"{name} {size}"] = await _measure(timeline, call, size, load, meter)
        return result


_Call = Callable[[Timeline, int, int], Awaitable[object]]


async def _measure(timeline: Timeline, call: _Call, size: int, load: TimelineLoad, meter: ProcessMeter | None) -> dict[str, float]:
    rows = number = 0
    until = time.monotonic() + load.seconds

    async def caller() -> None:
        nonlocal rows, number
        while time.monotonic() < until:
            number += 1
            await call(timeline, number, size)
            rows += size

    engine = meter.cpu_seconds() if meter else 0.0
    began, own = time.monotonic(), time.process_time()
    await asyncio.gather(*(caller() for _ in range(load.callers)))
    figures = {
        "rows_per_second": round(rows / (time.monotonic() - began)),
        "client_us_a_row": round((time.process_time() - own) / rows * 1e6, 1),
    }
    if meter:
        figures["engine_us_a_row"] = round((meter.cpu_seconds() - engine) / rows * 1e6, 1)
    return figures


def _write(timeline: Timeline, number: int, size: int) -> Awaitable[object]:
    return timeline.write([Row(_TABLE, f"{number}/{n}", b"k", _VALUE, number) for n in range(size)])


def _read_points(timeline: Timeline, number: int, size: int) -> Awaitable[object]:
    return timeline.read_points([Point(_TABLE, f"{number}/{n}", b"k") for n in range(size)])


def _read_partitions(timeline: Timeline, number: int, size: int) -> Awaitable[object]:
    return timeline.read_partitions(_TABLE, [f"{number}/{n}" for n in range(size)])
