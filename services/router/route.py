"""The routing loop: events -> recipients -> gateways; who could not be reached is named to `parley.offline`.

At present every gateway is asked about every recipient, which is right with any number of them; slots narrow that down later.
"""

import asyncio
import random
from collections.abc import Sequence

import grpc
import structlog

from chassis.clock import Clock
from chassis.eventlog import EventLog, LogBatch, LogConsumer, LogEntry, LogUnavailableError
from chassis.tasks import Tasks
from parley.gateway.v1.gateway_service_pb2 import Delivery, Unreached
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
        self._rng = rng
        self._groups: dict[int, GroupCache] = {}
        self._failures: dict[int, int] = {}

    async def run(self, tasks: Tasks) -> None:
        """Route until cancelled. A batch under way when it is cancelled is routed again: devices drop what they have."""
        async with self._log.open_consumer(EVENTS, GROUP) as consumer:
            while True:
                try:
                    batch = await consumer.poll(self._settings.poll_records)
                except LogUnavailableError as error:
                    delay = self._delay(_POLLING)
                    _log.warning("router.poll_failed", error=str(error), retry_in=delay)
                    await asyncio.sleep(delay)
                    continue
                self._failures.pop(_POLLING, None)
                tasks.spawn(self._process(consumer, batch), name=f"router.route.{batch.partition}")

    async def _process(self, consumer: LogConsumer, batch: LogBatch) -> None:
        try:
            await self._route(batch)
        except (LogUnavailableError, grpc.aio.AioRpcError) as error:
            delay = self._delay(batch.partition)
            self._metrics.retries.inc()
            _log.warning("router.batch_failed", partition=batch.partition, error=str(error), retry_in=delay)
            await asyncio.sleep(delay)
            consumer.retry(batch)
        else:
            self._failures.pop(batch.partition, None)
            consumer.done(batch)
            self._metrics.lag_seconds.observe(max(0.0, self._clock.wall_ms() - batch.records[0].time_ms) / 1000)

    def _delay(self, partition: int) -> float:
        failures = self._failures[partition] = self._failures.get(partition, 0) + 1
        most = min(self._settings.retry_max_seconds, self._settings.retry_min_seconds * 2.0**failures)
        return self._rng.uniform(most / 2, most)

    async def _route(self, batch: LogBatch) -> None:
        groups = self._groups.setdefault(batch.partition, GroupCache(self._settings.cached_groups))
        groups.begin(batch.records[0].offset)
        deliveries: list[Delivery] = []
        users = events = 0
        for raw in batch.records:
            for record in EventBatch.FromString(raw.value).events:
                recipients = await self._recipients(groups, record)
                deliveries.extend(_deliveries(record, recipients))
                users += len(recipients)
                events += 1
        unreached = await self._deliver(deliveries)
        if unreached:
            await self._log.append(OFFLINE, batch.partition, [LogEntry(b"", _offline(unreached))])
            self._metrics.offline.inc(len(unreached))
        groups.finish(batch.records[-1].offset + 1)
        self._metrics.events.inc(events)
        self._metrics.deliveries.inc(users)

    async def _recipients(self, groups: GroupCache, record: EventRecord) -> Sequence[str]:
        """Return who gets the shared part, by stays."""
        group = groups.get(record.conversation_id)
        if group is not None and record.seq:
            group.apply(record.seq, record.membership_changes)
        if not record.all_members:
            return record.recipients
        if group is None:
            request = ListRecipientsRequest(conversation_id=record.conversation_id)
            group = Group(await self._store.ListRecipients(request, timeout=self._settings.question_seconds))
            groups.put(record.conversation_id, group)
        return group.recipients(record.seq)

    async def _deliver(self, deliveries: list[Delivery]) -> list[Unreached]:
        """Hand everything to the gateways, in order; return whom none of them reached with a message."""
        if not deliveries:
            return []
        if not await self._links.wait_any():
            return _all_of(deliveries)
        links = self._links.all
        answers = await asyncio.gather(*(self._deliver_to(link, deliveries) for link in links))
        if len(answers) == 1:
            return answers[0]
        common = set.intersection(*({(one.conversation_id, one.seq, one.user_id) for one in answer} for answer in answers))
        return [one for one in answers[0] if (one.conversation_id, one.seq, one.user_id) in common]

    async def _deliver_to(self, link: GatewayLink, deliveries: list[Delivery]) -> list[Unreached]:
        unreached: list[Unreached] = []
        for frame in _frames(deliveries, self._settings.frame_bytes):
            answer = await link.deliver(frame)
            unreached.extend(_all_of(frame) if answer is None else answer)
        return unreached


def _deliveries(record: EventRecord, recipients: Sequence[str]) -> list[Delivery]:
    found = []
    if record.own or recipients:
        found.append(
            Delivery(
                conversation_id=record.conversation_id,
                seq=record.seq,
                shared=record.shared,
                user_ids=recipients,
                actor_user_id=record.user_id,
                actor_device_id=record.device_id if record.own else "",
                own=record.own,
                session_id=record.session_id,
                wakes=record.wakes,
            )
        )
    if record.actor:
        found.append(
            Delivery(
                conversation_id=record.conversation_id,
                shared=record.actor,
                user_ids=(record.user_id,),
                actor_user_id=record.user_id,
                actor_device_id=record.device_id,
            )
        )
    return found


def _frames(deliveries: list[Delivery], max_bytes: int) -> list[list[Delivery]]:
    """Cut deliveries into frames of bounded size, in order."""
    frames: list[list[Delivery]] = [[]]
    size = 0
    for delivery in deliveries:
        length = delivery.ByteSize()
        if size and size + length > max_bytes:
            frames.append([])
            size = 0
        frames[-1].append(delivery)
        size += length
    return frames


def _all_of(deliveries: list[Delivery]) -> list[Unreached]:
    """Return every recipient of a message, for when no gateway answers."""
    return [
        Unreached(conversation_id=delivery.conversation_id, seq=delivery.seq, user_id=user)
        for delivery in deliveries
        if delivery.wakes
        for user in delivery.user_ids
    ]


def _offline(unreached: Sequence[Unreached]) -> bytes:
    users = [OfflineRecord(user_id=one.user_id, conversation_id=one.conversation_id, seq=one.seq) for one in unreached]
    return OfflineBatch(users=users).SerializeToString()
