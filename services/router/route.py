"""The routing loop: events -> recipients -> gateways; who could not be reached is named to `parley.offline`.

A gateway that refuses slots, is gone, or loses them while it is silent is no end: what it did not take goes to whoever owns them
then, for as long as a gateway may be unreachable.
"""

import asyncio
import random
from collections.abc import Iterable, Sequence

import grpc
import structlog
from google.protobuf.message import DecodeError

from chassis.backoff import Backoff
from chassis.clock import Clock
from chassis.eventlog import EventLog, LogBatch, LogConsumer, LogEntry, LogRecord, LogUnavailableError
from chassis.joined import Joined
from chassis.tasks import Tasks
from parley.gateway.v1.gateway_service_pb2 import DeliverRequest, Unreached
from parley.log.v1.records_pb2 import EventBatch, EventRecord, OfflineBatch, OfflineRecord
from parley.store.v1.store_service_pb2 import ListRecipientsRequest
from parley.store.v1.store_service_pb2_grpc import StoreServiceStub
from parley_protocol.topics import EVENTS, OFFLINE
from services.router.config import RouterSettings
from services.router.links import Links, SlotsMovedError
from services.router.metrics import RouterMetrics
from services.router.recipients import Group, GroupCache
from services.router.slots import Part, refused_of

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
        self._deliver_together = Joined(self._deliver, lambda: LogUnavailableError("a delivery that went with a cancelled one"))
        self._stranded_since: float | None = None  # since when there is something that has no gateway to go to
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
            for record in self._events_of(batch.partition, raw):
                await self._name_recipients(groups, record)
                users += len(record.recipients)
                events.append(record)
        conversations = {event.conversation_id for event in events}
        unreached = [one for one in await self._deliver_together(events) if one.conversation_id in conversations]
        if unreached:
            await self._log.append(OFFLINE, batch.partition, [LogEntry(b"", _offline(unreached))])
            self._metrics.offline.inc(len(unreached))
        groups.finish(batch.records[-1].offset + 1)
        self._metrics.events.inc(len(events))
        self._metrics.deliveries.inc(users)

    def _events_of(self, partition: int, raw: LogRecord) -> Iterable[EventRecord]:
        """Return what the record holds; nothing, loudly, if it can't be parsed.

        What it told devices find at their next Sync; a router that ended at it would end there again, and deliver nothing at all.
        """
        try:
            return EventBatch.FromString(raw.value).events
        except DecodeError as error:
            self._metrics.unreadable.inc()
            _log.error("router.record_unreadable", partition=partition, offset=raw.offset, error=str(error))
            return ()

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

    async def _deliver(self, events: Sequence[EventRecord]) -> list[Unreached]:
        """Hand everything to the owners of its users' slots, in order; return whom they did not reach with a message."""
        links, patience = self._links, self._settings.unreachable_seconds
        unreached: list[Unreached] = []
        started = self._clock.monotonic()
        while events:
            version = links.version
            parts, homeless = links.table.split(events)
            left = [*homeless]
            deliveries = [self._deliver_part(name, part, unreached) for name, part in parts.items()]
            for rest in [await deliveries[0]] if len(deliveries) == 1 else await asyncio.gather(*deliveries):
                left.extend(rest)
            if not left:
                self._stranded_since = None
                break
            now = self._clock.monotonic()
            if self._stranded_since is None:
                self._stranded_since = started
            wait = max(self._stranded_since, started - patience) + patience - now
            if wait <= 0:
                unreached.extend(_all_of(left))
                break
            await links.wait_changed(version, wait)
            events = left
        return unreached

    async def _deliver_part(self, name: str, part: Part, unreached: list[Unreached]) -> list[EventRecord]:
        """Hand a gateway its part; return what it did not get and somebody else may."""
        link = self._links.link(name)
        if link is None:
            return part.events if part.slots else []  # else it is for somebody who waited there, and went with it
        table = self._links.table
        left: list[EventRecord] = []
        frames = _frames(part.events, self._settings.frame_bytes)
        for index, frame in enumerate(frames):
            try:
                request = DeliverRequest(events=frame)
                if part.all_slots:
                    request.all_slots = part.all_slots
                else:
                    request.epochs.extend(table.stamps(part.slots))
                answer = await link.deliver(request, part.slots)
            except SlotsMovedError:
                left.extend(event for rest in frames[index:] for event in rest)
                break
            if answer is None:
                unreached.extend(_all_of(frame))
                continue
            unreached.extend(answer.unreached)
            if answer.refused_slots:
                self._links.on_refused(name, answer)
                self._metrics.refused.inc(len(answer.refused_slots))
                left.extend(refused_of(frame, frozenset(answer.refused_slots), table))
        return left


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
