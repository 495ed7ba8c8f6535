"""Services that are broken on purpose, one rule each: chaos has to find out which guarantee that costs."""

import asyncio
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from chassis.eventlog import LogBatch, LogConsumer, LogRecord

_LATE_SECONDS: Final = 0.7  # longer than it takes to commit, so that a kill falls between: a slow database does the same


class Broken(NamedTuple):
    """Which service is broken, and what breaks it, in its own process before it begins."""

    role: str
    apply: Callable[[], None]


def _commit_before_writing() -> None:
    """G1: a store lets the offset pass, then writes what came meanwhile together, at its usual pace."""
    from services.store.apply import Applier

    taken: dict[int, list[LogRecord]] = {}  # by partition: committed, and not written yet

    async def process(self: Applier, consumer: LogConsumer, batch: LogBatch) -> None:
        consumer.done(batch)
        if batch.partition in taken:
            taken[batch.partition] += batch.records
            return
        taken[batch.partition] = list(batch.records)
        while taken[batch.partition]:
            await asyncio.sleep(_LATE_SECONDS)
            records, taken[batch.partition] = taken[batch.partition], []
            await self.apply(LogBatch(batch.partition, records))
        del taken[batch.partition]

    Applier._process = process  # type: ignore[method-assign]


def _take_any_epoch() -> None:
    """G14: a gateway takes frames for users whom it does not own."""
    from services.gateway.deliver import GatewayRpc

    def refused(self: GatewayRpc, stamps: Any) -> set[int]:
        return set()

    GatewayRpc._refused = refused  # type: ignore[method-assign]


def _end_slots_with_the_session() -> None:
    """G15: a gateway sends its devices away when the registry loses its session."""
    from services.gateway.ownership import Ownership
    from services.gateway.slots import Ended

    hold = Ownership._hold

    async def hold_and_end(self: Ownership, session: Any, tasks: Any) -> None:
        await hold(self, session, tasks)
        slots = self._slots
        ended = [Ended(slot, slots.public_address) for slot in slots.epochs]
        slots.epochs.clear()
        slots.since.clear()
        self._on_ended(ended)

    Ownership._hold = hold_and_end  # type: ignore[method-assign]


def _never_try_again() -> None:
    """G21: a store takes up no batch again that failed, so its partition stands still."""
    from chassis.eventlog_kafka_consumer import KafkaConsumer

    def retry(self: KafkaConsumer, batch: LogBatch) -> None:
        """Forget it."""

    KafkaConsumer.retry = retry  # type: ignore[method-assign]


BROKEN: Final = {
    "offset-before-write": Broken("store", _commit_before_writing),
    "any-epoch": Broken("gateway", _take_any_epoch),
    "slots-end-with-session": Broken("gateway", _end_slots_with_the_session),
    "never-again": Broken("store", _never_try_again),
}
