"""Whoever just got a slot calls nobody offline before his devices had time to come."""

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import Final

from chassis.backoff import Backoff
from chassis.clock import Clock
from chassis.eventlog import EventLog, LogEntry, LogUnavailableError, partition_for
from parley.gateway.v1.gateway_service_pb2 import Unreached
from parley.log.v1.records_pb2 import OfflineBatch, OfflineRecord
from parley_protocol.topics import OFFLINE
from services.gateway.directory import Directory
from services.gateway.slots import Slots

_MAX_WAITING: Final = 20_000  # ~3 MB; beyond it absent users are reported at once: a needless push is better than none
_BATCH: Final = 500


class Grace:
    """Holds who was not here, for `seconds` after his slot came. It lies in memory: who dies meanwhile takes it along."""

    def __init__(self, slots: Slots, directory: Directory, log: EventLog, seconds: float, clock: Clock, backoff: Backoff) -> None:
        self._slots = slots
        self._directory = directory
        self._log = log
        self._seconds = seconds
        self._clock = clock
        self._backoff = backoff
        self._waiting: deque[tuple[float, Unreached]] = deque()
        self._wake = asyncio.Event()

    def defer(self, unreached: Sequence[Unreached]) -> list[Unreached]:
        """Keep those whose slot is new here; return the others."""
        now, slots = self._clock.monotonic(), self._slots
        rest = []
        for one in unreached:
            since = slots.since.get(slots.slot_of(one.user_id))
            if since is not None and now - since < self._seconds and len(self._waiting) < _MAX_WAITING:
                self._waiting.append((now + self._seconds, one))
                self._wake.set()
            else:
                rest.append(one)
        return rest

    async def run(self) -> None:
        """Name to `parley.offline` who did not come in time, until cancelled."""
        partitions = await self._log.partition_count(OFFLINE)
        while True:
            while not self._waiting:
                self._wake.clear()
                await self._wake.wait()
            await asyncio.sleep(max(self._waiting[0][0] - self._clock.monotonic(), 0.0))
            due: list[Unreached] = []
            now = self._clock.monotonic()
            while self._waiting and self._waiting[0][0] <= now and len(due) < _BATCH:
                due.append(self._waiting.popleft()[1])
            await self._name([one for one in due if one.user_id not in self._directory.by_user], partitions)

    async def _name(self, absent: Sequence[Unreached], partitions: int) -> None:
        by_partition: dict[int, list[OfflineRecord]] = {}
        for one in absent:
            record = OfflineRecord(user_id=one.user_id, conversation_id=one.conversation_id, seq=one.seq)
            by_partition.setdefault(partition_for(one.conversation_id.encode(), partitions), []).append(record)
        for partition, users in by_partition.items():
            entry = LogEntry(b"", OfflineBatch(users=users).SerializeToString())
            while True:
                try:
                    await self._log.append(OFFLINE, partition, [entry])
                    break
                except LogUnavailableError:
                    await asyncio.sleep(self._backoff.failed(partition))
            self._backoff.succeeded(partition)
