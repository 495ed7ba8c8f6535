"""What records cost in Kafka: the client's CPU and the broker's, by how many appends are under way."""

import asyncio
import random
import time
import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import uvloop
from prometheus_client import CollectorRegistry

from chassis.eventlog import EventLog, LogEntry, LogUnavailableError
from chassis.eventlog_kafka import open_kafka_log
from chassis.eventlog_kafka_connection import KafkaConnection
from chassis.eventlog_kafka_topics import TopicSettings, apply_topics, delete_topics
from chassis.logs import configure_logging
from parley_cli.bench_meter import ProcessMeter
from parley_cli.bench_report import progress

_TOPIC = "records"
_ENTRY = LogEntry(b"d_" + b"k" * 26, bytes(122))  # 150 bytes with its key, as a short message's record
_POLL_RECORDS = 500  # as stores do
_WARM_SECONDS = 2.0


@dataclass(frozen=True)
class LogLoad:
    """What is measured: appends of one record, so many at a time, and then consuming all of them."""

    waiting: Sequence[int]
    partitions: int
    seconds: float
    engine_pid: int  # 0: its CPU is not known


def run_log_bench(connection: KafkaConnection, load: LogLoad) -> dict[str, Any]:
    """Measure on a topic of its own, which is deleted afterwards. Raises LogUnavailableError."""
    configure_logging(json=False, level="warning")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_run(connection, load))


async def _run(connection: KafkaConnection, load: LogLoad) -> dict[str, Any]:
    topics, prefix = {_TOPIC: load.partitions}, f"bench-{uuid.uuid4().hex[:12]}."
    await apply_topics(connection, topics, epoch=1, settings=TopicSettings(), prefix=prefix)
    try:
        async with open_kafka_log(
            connection, topics, epoch=1, rng=random.Random(), metrics=CollectorRegistry(), prefix=prefix
        ) as log:
            return await _measure_all(log, load)
    finally:
        with suppress(LogUnavailableError):  # what ended the measurement is told
            await delete_topics(connection, topics, epoch=1, prefix=prefix)


async def _measure_all(log: EventLog, load: LogLoad) -> dict[str, Any]:
    meter = ProcessMeter(load.engine_pid) if load.engine_pid else None
    result: dict[str, Any] = {"partitions": load.partitions}
    records, _ = await _append(log, load, max(load.waiting), _WARM_SECONDS, None)  # warms code and broker up
    for waiting in load.waiting:
        progress(f"{waiting} appends at a time, for {load.seconds:g} s")
        appended, result[f"append {waiting}"] = await _append(log, load, waiting, load.seconds, meter)
        records += appended
    progress(f"consuming {records} records")
    result["consume"] = await _consume(log, records, meter)
    return result


async def _append(
    log: EventLog, load: LogLoad, waiting: int, seconds: float, meter: ProcessMeter | None
) -> tuple[int, dict[str, float]]:
    took: list[float] = []
    until = time.monotonic() + seconds

    async def sender(number: int) -> None:
        while (began := time.monotonic()) < until:
            await log.append(_TOPIC, number % load.partitions, [_ENTRY])
            took.append(time.monotonic() - began)

    used = _Used(meter)
    await asyncio.gather(*(sender(number) for number in range(waiting)))
    took.sort()
    times = {f"p{share}_ms": round(took[len(took) * share // 100] * 1e3, 2) for share in (50, 99)}
    return len(took), used.figures(len(took)) | times


async def _consume(log: EventLog, records: int, meter: ProcessMeter | None) -> dict[str, float]:
    left = records
    async with log.open_consumer(_TOPIC, "bench") as consumer:
        batch = await consumer.poll(_POLL_RECORDS)  # it has joined its group
        used = _Used(meter)
        while True:
            left -= len(batch.records)
            consumer.done(batch)
            if left <= 0:
                return used.figures(records)
            batch = await consumer.poll(_POLL_RECORDS)


class _Used:
    """Time and CPU from now on."""

    def __init__(self, meter: ProcessMeter | None) -> None:
        self._meter = meter
        self._engine = meter.cpu_seconds() if meter else 0.0
        self._began, self._own = time.monotonic(), time.process_time()

    def figures(self, records: int) -> dict[str, float]:
        """Return what a record has used."""
        figures = {
            "records_per_second": round(records / (time.monotonic() - self._began)),
            "client_us_a_record": round((time.process_time() - self._own) / records * 1e6, 1),
        }
        if self._meter:
            figures["engine_us_a_record"] = round((self._meter.cpu_seconds() - self._engine) / records * 1e6, 1)
        return figures
