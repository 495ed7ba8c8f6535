"""The routing loop: events -> recipients -> gateways; who could not be reached is named to `parley.offline`.

At present every gateway is asked about every recipient, which is right with any number of them; slots narrow that down later.
"""

import asyncio
import random
from collections.abc import Sequence

import grpc
import structlog

from chassis.backoff import Backoff
from chassis.clock import Clock
from chassis.eventlog import EventLog, LogBatch, LogConsumer, LogEntry, LogUnavailableError
from chassis.tasks import Tasks
from parley.gateway.v1.gateway_service_pb2 import Unreached
from parley.log.v1.records_pb2 import EventBatch, EventRecord, OfflineBatch, OfflineRecord
from parley.store.v1.store_service_pb2 import ListRecipientsRequest
from parley.store.v1.store_service_pb2_grpc import StoreServiceStub
from parley_protocol.topics import EVENTS, OFFLINE
from services.router.config import RouterSettings
from services.router.links import GatewayLink, Links
from services.router.metrics import RouterMetrics
from services.router.recipients import Group, GroupCache

GROUP = "router"
_POLLING = -1  # counts failures of polling, beside those of partitions

_log = structlog.get_logger()


class Router:
    """Routes the partitions that the log hands out, each in order, several at once."""

    def __init__(
        self,
        settings: RouterSettings,
        *,
        log: EventLog,
        links: Links,
        store: StoreServiceStub,
        clock: Clock,
        metrics: RouterMetrics,
        rng: random.Random,
    ) -> None:
        self._settings = settings
        self._log = log
        self._links = links
        self._store = store
        self._clock = clock
        self._metrics = metrics
        self._groups: dict[int, GroupCache] = {}
        self._backoff = Backoff(settings.retry_min_seconds, settings.retry_max_seconds, rng)

    async def run(self, tasks: Tasks) -> None:
        """Route until cancelled. A batch under way when it is cancelled is routed again: devices drop what they have."""
        async with self._log.open_consumer(EVENTS, GROUP) as consumer:
            while True:
                try:
                    batch = await consumer.poll(self._settings.poll_records)
                except LogUnavailableError as error:
                    delay = self._backoff.failed(_POLLING)
                    _log.warning("router.poll_failed", error=str(error), retry_in=delay)
                    await asyncio.sleep(delay)
                    continue
                self._backoff.succeeded(_POLLING)
                tasks.spawn(self._process(consumer, batch), name=f"router.route.{batch.partition}")

    async def _process(self, consumer: LogConsumer, batch: LogBatch) -> None:
        try:
            await self._route(batch)
        except (LogUnavailableError, grpc.aio.AioRpcError) as error:
            delay = self._backoff.failed(batch.partition)
            self._metrics.retries.inc()
            _log.warning("router.batch_failed", partition=batch.partition, error=str(error), retry_in=delay)
            await asyncio.sleep(delay)
            consumer.retry(batch)
        else:
            self._backoff.succeeded(batch.partition)
            consumer.done(batch)
            self._metrics.lag_seconds.observe(max(0.0, self._clock.wall_ms() - batch.records[0].time_ms) / 1000)

    async def _route(self, batch: LogBatch) -> None:
        groups = self._groups.setdefault(batch.partition, GroupCache(self._settings.cached_groups))
        groups.begin(batch.records[0].offset)
        events: list[EventRecord] = []
        users = 0
        for raw in batch.records:
            for record in EventBatch.FromString(raw.value).events:
                await self._name_recipients(groups, record)
                users += len(record.recipients)
                events.append(record)
        unreached = await self._deliver(events)
        if unreached:
            await self._log.append(OFFLINE, batch.partition, [LogEntry(b"", _offline(unreached))])
            self._metrics.offline.inc(len(unreached))
        groups.finish(batch.records[-1].offset + 1)
        self._metrics.events.inc(len(events))
        self._metrics.deliveries.inc(users)

    async def _name_recipients(self, groups: GroupCache, record: EventRecord) -> None:
        """Write into the record who gets the shared part, by stays, where the store left that to us."""
        group = groups.get(record.conversation_id)
        if group is not None and record.seq:
            group.apply(record.seq, record.membership_changes)
        if not record.all_members:
            return
        if group is None:
            request = ListRecipientsRequest(conversation_id=record.conversation_id)
            group = Group(await self._store.ListRecipients(request, timeout=self._settings.question_seconds))
            groups.put(record.conversation_id, group)
        record.recipients.extend(group.recipients(record.seq))

    async def _deliver(self, events: list[EventRecord]) -> list[Unreached]:
        """Hand everything to the gateways, in order; return whom none of them reached with a message."""
        if not events:
            return []
        if not await self._links.wait_any():
            return _all_of(events)
        links = self._links.all
        if len(links) == 1:
            return await self._deliver_to(links[0], events)
        answers = await asyncio.gather(*(self._deliver_to(link, events) for link in links))
        common = set.intersection(*({(one.conversation_id, one.seq, one.user_id) for one in answer} for answer in answers))
        return [one for one in answers[0] if (one.conversation_id, one.seq, one.user_id) in common]

    async def _deliver_to(self, link: GatewayLink, events: list[EventRecord]) -> list[Unreached]:
        unreached: list[Unreached] = []
        for frame in _frames(events, self._settings.frame_bytes):
            answer = await link.deliver(frame)
            unreached.extend(_all_of(frame) if answer is None else answer)
        return unreached


def _frames(events: list[EventRecord], max_bytes: int) -> list[list[EventRecord]]:
    """Cut events into frames of bounded size, in order."""
    frames: list[list[EventRecord]] = [[]]
    size = 0
    for event in events:
        length = event.ByteSize()
        if size and size + length > max_bytes:
            frames.append([])
            size = 0
        frames[-1].append(event)
        size += length
    return frames


def _all_of(events: list[EventRecord]) -> list[Unreached]:
    """Return every recipient of a message, for when no gateway answers."""
    return [
        Unreached(conversation_id=event.conversation_id, seq=event.seq, user_id=user)
        for event in events
        if event.wakes
        for user in event.recipients
        if user != event.user_id
    ]


def _offline(unreached: Sequence[Unreached]) -> bytes:
    users = [OfflineRecord(user_id=one.user_id, conversation_id=one.conversation_id, seq=one.seq) for one in unreached]
    return OfflineBatch(users=users).SerializeToString()
