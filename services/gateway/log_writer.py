"""The way into the command log: one append in flight a partition, all that came meanwhile in the next.

A failed append may be in the log or not. The partition then takes no more commands, and the unresolved entries are appended
again, in order, until the log takes them: what comes later can't overtake them, and the store drops what came twice. Other
partitions go on.
"""

import asyncio
import math
import random
from collections.abc import Callable
from functools import lru_cache
from typing import Final

import structlog

from chassis.clock import Clock
from chassis.eventlog import EventLog, LogEntry, LogUnavailableError, partition_for
from chassis.tasks import Tasks
from services.gateway.metrics import Metrics

_MAX_RECORDS: Final = 20_000  # ~1 s of one partition's best rate: later ones are better told to wait
_MAX_BYTES: Final = 16 * 1024 * 1024  # the same in memory, if every body is large
_CROWDED: Final = 4  # at a quarter of the bounds streams pause reading and watermarks are shed, before commands are refused
_FIRST_BACKOFF_SECONDS: Final = 0.1
_MAX_BACKOFF_SECONDS: Final = 5.0  # an engine that is back is found within that
_STALL_SECONDS: Final = 5.0  # an append that hangs is treated as failed for those who want in; it is still waited for
_CROWDED_DELAY_SECONDS: Final = 0.25
_KNOWN_KEYS: Final = 65_536  # the hash of a key costs ~2 us in Python, remembering it 150 B

_log = structlog.get_logger()


class Lane:
    """One partition's queue and the loop that empties it."""

    def __init__(self, log: EventLog, topic: str, partition: int, clock: Clock, rng: random.Random, metrics: Metrics) -> None:
        self._log = log
        self._topic = topic
        self._partition = partition
        self._clock = clock
        self._rng = rng
        self._metrics = metrics
        self._pending: list[LogEntry] = []
        self._pending_bytes = 0
        self._appending_since = math.inf  # monotonic; infinite: no append in flight
        self._retry_at = 0.0
        self._closed = False  # takes nothing: the outcome of an append is unknown, or is long in coming
        self._wake: asyncio.Future[None] | None = None
        self._idle: list[asyncio.Future[None]] = []
        self._room: list[asyncio.Future[None]] = []

    @property
    def crowded(self) -> bool:
        """Tell whether those who can wait should."""
        return self._closed or len(self._pending) * _CROWDED > _MAX_RECORDS or self._pending_bytes * _CROWDED > _MAX_BYTES

    @property
    def busy(self) -> bool:
        """Tell whether anything is not in the log yet."""
        return bool(self._pending) or self._appending_since != math.inf

    def offer(self, key: bytes, value: bytes) -> float:
        """Queue a record and return 0.0, or promise nothing and return the seconds after which to ask again."""
        pending = self._pending
        if self._closed or len(pending) >= _MAX_RECORDS or self._pending_bytes >= _MAX_BYTES:
            return self._delay()
        pending.append(LogEntry(key, value))
        self._pending_bytes += len(value)
        wake = self._wake
        if wake is not None:
            self._wake = None
            if not wake.done():
                wake.set_result(None)
        return 0.0

    def _delay(self) -> float:
        wait = max(self._retry_at - self._clock.monotonic(), 0.0) if self._closed else 0.0
        return wait + self._rng.uniform(_CROWDED_DELAY_SECONDS, 2 * _CROWDED_DELAY_SECONDS)

    async def wait_room(self) -> None:
        """Wait while the queue is crowded; return at once while it is closed, because then the answer is a retry."""
        while self.crowded and not self._closed:
            await _waited(self._room)

    async def wait_idle(self) -> None:
        """Wait until everything that was taken is in the log."""
        while self.busy:
            await _waited(self._idle)

    def close_if_stalled(self, now: float) -> None:
        """Take no more while an append hangs."""
        if not self._closed and now - self._appending_since > _STALL_SECONDS:
            self._close(now, _STALL_SECONDS)
            _log.warning("gateway.append_hangs", topic=self._topic, partition=self._partition)

    async def run(self) -> None:
        """Append what is queued, for ever. Cancelled, it leaves what is queued: nobody was told that it is stored."""
        while True:
            if not self._pending:
                self._wake = asyncio.get_running_loop().create_future()
                await self._wake
                continue
            batch, self._pending, self._pending_bytes = self._pending, [], 0
            _release(self._room)
            await self._append(batch)
            if not self._pending:
                _release(self._idle)

    async def _append(self, batch: list[LogEntry]) -> None:
        backoff = _FIRST_BACKOFF_SECONDS
        first_failure = True
        while True:
            self._appending_since = started = self._clock.monotonic()
            try:
                await self._log.append(self._topic, self._partition, batch)
            except LogUnavailableError as error:
                self._metrics.append_failures.inc()
                if first_failure:
                    first_failure = False
                    _log.warning("gateway.append_failed", topic=self._topic, partition=self._partition, error=str(error))
            else:
                break
            delay = self._rng.uniform(0.5, 1.0) * backoff
            self._close(self._clock.monotonic(), delay)
            await asyncio.sleep(delay)
            backoff = min(2 * backoff, _MAX_BACKOFF_SECONDS)
        self._metrics.append_seconds.observe(self._clock.monotonic() - started)
        self._appending_since = math.inf
        if self._closed:
            self._closed = False
            self._metrics.closed_partitions.dec()
            _log.info("gateway.append_resumed", topic=self._topic, partition=self._partition)

    def _close(self, now: float, delay: float) -> None:
        self._retry_at = now + delay
        if not self._closed:
            self._closed = True
            self._metrics.closed_partitions.inc()
            _release(self._room)


async def _waited(waiting: list[asyncio.Future[None]]) -> None:
    future = asyncio.get_running_loop().create_future()
    waiting.append(future)
    await future


def _release(waiting: list[asyncio.Future[None]]) -> None:
    for future in waiting:
        if not future.done():
            future.set_result(None)
    waiting.clear()


class LogWriter:
    """The lanes of one topic."""

    def __init__(self, lanes: list[Lane]) -> None:
        self._lanes = lanes
        count = len(lanes)

        @lru_cache(_KNOWN_KEYS)
        def lane_of(key: bytes) -> Lane:
            return lanes[partition_for(key, count)]

        self.lane_of: Callable[[bytes], Lane] = lane_of if count > 1 else lambda _key: lanes[0]

    def close_stalled(self, now: float) -> None:
        """Close the lanes whose append hangs."""
        for lane in self._lanes:
            lane.close_if_stalled(now)

    async def wait_idle(self) -> None:
        """Wait until everything that was taken is in the log."""
        for lane in self._lanes:
            await lane.wait_idle()


async def start_log_writer(
    log: EventLog, topic: str, tasks: Tasks, *, clock: Clock, rng: random.Random, metrics: Metrics
) -> LogWriter:
    """Start a lane a partition; `tasks` owns their loops."""
    lanes = [Lane(log, topic, partition, clock, rng, metrics) for partition in range(await log.partition_count(topic))]
    for lane in lanes:
        tasks.spawn(lane.run(), name="append")
    return LogWriter(lanes)
