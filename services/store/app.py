"""The store's composition: what runs, and in which order it stops."""

import random
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final

from prometheus_client import CollectorRegistry

from chassis.clock import Clock
from chassis.eventlog import EventLog
from chassis.readiness import NotReadyError, Probe
from chassis.tasks import Tasks, open_tasks
from chassis.timeline import Point, Timeline
from parley.store.v1.store_service_pb2_grpc import add_StoreServiceServicer_to_server
from services.store.apply import Applier
from services.store.config import StoreSettings
from services.store.metrics import StoreMetrics
from services.store.reads import Reader
from services.store.recent import RecentEvents
from services.store.rows import HEAD_KEY, STATE
from services.store.rpc import StoreRpc
from services.store.sync import Syncer

CALLERS: Final = frozenset({"gateway", "router"})  # who asks a store


class Store:
    """A running store; made by `open_store`."""

    def __init__(self, rpc: StoreRpc, tasks: Tasks, log: EventLog, timeline: Timeline, stopped: Mapping[int, str]) -> None:
        self._rpc = rpc
        self._stopped = stopped
        self._tasks = tasks
        self._timeline = timeline
        # What a store can't work without.
        self.probes: Mapping[str, Probe] = {"log": log.ping, "tables": self._read, "partitions": self._look_at_partitions}

    async def _read(self) -> None:
        """Read a row that nobody writes."""
        await self._timeline.read_points([Point(STATE, "-", HEAD_KEY)])

    async def _look_at_partitions(self) -> None:
        if self._stopped:
            raise NotReadyError("; ".join(self._stopped.values()))

    def register(self, server: Any) -> None:
        """Add StoreService to a server, real or in process."""
        add_StoreServiceServicer_to_server(self._rpc, server)

    async def wait_failed(self) -> None:
        """Wait until a loop ended that must not, and raise what ended it. A stopped partition is no such end: it is told loudly."""
        await self._tasks.wait_failed()


@asynccontextmanager
async def open_store(
    settings: StoreSettings, *, log: EventLog, timeline: Timeline, clock: Clock, metrics: CollectorRegistry, rng: random.Random
) -> AsyncIterator[Store]:
    """Apply the log and answer reads until the block is left; a batch under way is applied again by the next store."""
    store_metrics = StoreMetrics(metrics)
    recent = RecentEvents(settings.recent_bytes)
    reader = Reader(timeline, recent, settings.bucket_bits)
    applier = Applier(settings, log=log, timeline=timeline, recent=recent, clock=clock, metrics=store_metrics, rng=rng)
    rpc = StoreRpc(reader, Syncer(timeline, reader), clock, store_metrics)
    async with open_tasks("store") as tasks:
        tasks.spawn(applier.run(tasks), name="apply")
        yield Store(rpc, tasks, log, timeline, applier.stopped)
