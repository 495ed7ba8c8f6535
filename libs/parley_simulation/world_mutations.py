"""Ways to break delivery, one rule at a time: each must be found by the simulation of the whole system."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from chassis.disk_sync import DiskSync
from chassis.eventlog import LogBatch, LogEntry, LogUnavailableError
from chassis.sqlite import SqliteDatabase
from parley_client.outbox_state import OutboxState
from parley_client.timelines import Timelines
from parley_protocol import digests
from parley_protocol.slots import slot_key
from parley_simulation.store_mutations import Mutation, Patch
from services.gateway.acks import AckMerger
from services.gateway.checks import DigestChecks
from services.gateway.deliver import GatewayRpc
from services.gateway.log_writer import Lane
from services.gateway.session import Session
from services.gateway.slots import Slots
from services.router.route import Router
from services.router.slots import SlotTable
from services.store import sync

mutations: dict[str, Mutation] = {}
# Mutations that show only while nobody reconnects: Sync repairs what they break.
show_in_calm = {"the router commits what it has queued, before it is delivered"}


def mutation(name: str) -> Callable[[Mutation], Mutation]:
    """Register a mutation under what it does."""

    def register(function: Mutation) -> Mutation:
        mutations[name] = function
        return function

    return register


@mutation("the router commits what it has queued, before it is delivered")
def _(patch: Patch) -> None:
    async def process(self: Router, consumer: Any, batch: LogBatch) -> None:
        consumer.done(batch)
        await asyncio.sleep(1.0)
        try:
            await self._route(batch)
        except LogUnavailableError:
            return

    patch.setattr(Router, "_process", process)


@mutation("the gateway forgets what an append that failed was to add")
def _(patch: Patch) -> None:
    original = Lane._append

    async def append(self: Lane, batch: list[LogEntry]) -> None:
        inner = self._log.append

        async def once(*args: Any) -> None:
            try:
                await inner(*args)
            except LogUnavailableError:
                return  # taken, as it were

        self._log.append = once  # type: ignore[method-assign, assignment]
        try:
            await original(self, batch)
        finally:
            self._log.append = inner  # type: ignore[method-assign]

    patch.setattr(Lane, "_append", append)


@mutation("an append is told of before the disk has it")
def _(patch: Patch) -> None:
    under_way: dict[DiskSync, asyncio.Task[None]] = {}

    async def synced(_self: SqliteDatabase, sync: DiskSync) -> None:
        if sync not in under_way:
            under_way[sync] = asyncio.create_task(_sync_later(sync))
            under_way[sync].add_done_callback(lambda _: under_way.pop(sync))

    patch.setattr(SqliteDatabase, "_synced", synced)


async def _sync_later(sync: DiskSync) -> None:
    await asyncio.sleep(5.0)  # as a kernel does that nobody asks
    with suppress(OSError):
        await sync.sync()


@mutation("the gateway drops what a full outbox has no room for, and says nothing")
def _(patch: Patch) -> None:
    original = Session.put

    def put(self: Session, fields: bytes, *, wake: bool = True) -> bool:
        return len(self._fields) >= self._max_fields or original(self, fields, wake=wake)

    patch.setattr(Session, "put", put)
    patch.setattr(DigestChecks, "_judge", lambda self, session, same, now: None)  # they mend it, minutes later


@mutation("the gateway takes later commands while an earlier one of the conversation is refused")
def _(patch: Patch) -> None:
    patch.setattr(Session, "hold", lambda self, conversation_id, number: True)


@mutation("the gateway drops watermarks that a partition does not take at once")
def _(patch: Patch) -> None:
    original = AckMerger.flush

    def flush(self: AckMerger) -> None:
        original(self)
        self.close()

    patch.setattr(AckMerger, "flush", flush)
    patch.setattr(DigestChecks, "_judge", lambda self, session, same, now: None)  # they mend it, minutes later


@mutation("watermarks are not in the digests")
def _(patch: Patch) -> None:
    original = digests.digest_of
    zeros = {"delivered_seq": 0, "read_seq": 0, "peer_delivered_seq": 0, "peer_read_seq": 0}
    patch.setattr(digests, "digest_of", lambda held: original(held._replace(**zeros)))


@mutation("Sync finds no difference")
def _(patch: Patch) -> None:
    patch.setattr(sync, "digests_of", lambda held: [0] * digests.BUCKET_COUNT)
    patch.setattr(digests, "digest_of", lambda held: 0)


@mutation("a device does not ask again after a reconnect")
def _(patch: Patch) -> None:
    original = OutboxState.start_stream

    def start(self: OutboxState, wall_ms: int) -> None:
        pending, self.pending = self.pending, {}
        original(self, wall_ms)
        self.pending = pending

    patch.setattr(OutboxState, "start_stream", start)


@mutation("a device shows an event that it has twice")
def _(patch: Patch) -> None:
    original = Timelines.place_live

    def place(self: Timelines, events: Any, change: Any) -> None:
        events = list(events)
        original(self, events, change)
        change.appended.extend(event for event in events if event not in change.appended)

    patch.setattr(Timelines, "place_live", place)


@mutation("a device appends what is ahead without what lies between")
def _(patch: Patch) -> None:
    original = Timelines.place_live

    def place(self: Timelines, events: Any, change: Any) -> None:
        for event in events:
            state = self._state(event.conversation_id)
            if state.is_placed and event.seq > state.held_seq + 1:
                state.held_seq = event.seq - 1
            original(self, [event], change)

    patch.setattr(Timelines, "place_live", place)


@mutation("a device does not say again at Sync what the server does not know")
def _(patch: Patch) -> None:
    original = Timelines.take_row

    def take_row(self: Timelines, row: Any, **keywords: Any) -> bool:
        original(self, row, **keywords)
        return False

    patch.setattr(Timelines, "take_row", take_row)


@mutation("a gateway takes frames under any epoch")
def _(patch: Patch) -> None:
    patch.setattr(GatewayRpc, "_refused", lambda self, stamps: set())


@mutation("a router stamps no epochs")
def _(patch: Patch) -> None:
    patch.setattr(SlotTable, "stamps", lambda self, slots: [])


@mutation("a gateway's slots end with its session")
def _(patch: Patch) -> None:
    original = Slots.on_session_lost

    def on_session_lost(self: Slots) -> None:
        original(self)
        self.epochs.clear()

    patch.setattr(Slots, "on_session_lost", on_session_lost)


@mutation("a slot ends when its lock is free")
def _(patch: Patch) -> None:
    original = Slots.on_holders

    def on_holders(self: Slots, view: Any, now: float) -> Any:
        ended = original(self, view, now)
        for slot in [slot for slot in self.epochs if slot_key(slot) not in view]:
            del self.epochs[slot], self.since[slot]
        return ended

    patch.setattr(Slots, "on_holders", on_holders)


@mutation("a slot that is let go ends before another one has it")
def _(patch: Patch) -> None:
    original = Slots.on_released

    def on_released(self: Slots, slots: Any, now: float) -> None:
        original(self, slots, now)
        for slot in slots:
            self.epochs.pop(slot, None)

    patch.setattr(Slots, "on_released", on_released)


@mutation("what is free is taken at once under a new session")
def _(patch: Patch) -> None:
    original = Slots.on_session

    def on_session(self: Slots, session_id: str, now: float) -> None:
        original(self, session_id, now)
        self._strange_at = now

    patch.setattr(Slots, "on_session", on_session)


@mutation("a gateway does not hear that its slots are another one's")
def _(patch: Patch) -> None:
    patch.setattr(Slots, "on_holders", lambda self, view, now: [] if self.epochs else _on_holders(self, view, now))
    patch.setattr(Slots, "on_told", lambda *args: None)


_on_holders = Slots.on_holders
