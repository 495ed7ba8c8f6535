"""The gateway's hold on its slots: a session in the registry, two watches, and the one place that acts on the plans of `slots`.

A registry that is silent, slow or lost its data stops nothing here but moves.
"""

import asyncio
import math
import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager

import structlog

from chassis.backoff import Backoff
from chassis.clock import Clock
from chassis.registry import Instance, Registry, RegistryRefusedError, RegistrySession, RegistryUnavailableError
from chassis.tasks import Tasks, open_tasks
from parley_protocol.slots import DRAINING_PREFIX, SLOT_PREFIX, slot_key
from services.gateway.metrics import Metrics
from services.gateway.slots import Ended, Slots

_FIRST_RETRY_SECONDS = 0.2
_MAX_RETRY_SECONDS = 5.0  # a registry that is back is found within that
_ASKING = 0  # counts failures of questions, beside those of sessions
_OPENING = 1

_log = structlog.get_logger()


class Ownership:
    """Follows the registry; made by `open_ownership`. `on_ended` is told of slots that are another one's now."""

    def __init__(
        self,
        slots: Slots,
        registry: Registry,
        instance: Instance,
        on_ended: Callable[[Sequence[Ended]], None],
        *,
        clock: Clock,
        metrics: Metrics,
        rng: random.Random,
    ) -> None:
        self._slots = slots
        self._registry = registry
        self._instance = instance
        self._on_ended = on_ended
        self._clock = clock
        self._metrics = metrics
        self._backoff = Backoff(_FIRST_RETRY_SECONDS, _MAX_RETRY_SECONDS, rng)
        self._changed = asyncio.Event()  # something that a plan depends on
        self._moved = asyncio.Condition()  # what is served here
        self._at_rest = False  # nothing is to be taken or let go, now or at a later time

    async def wait_until(self, reached: Callable[[], bool]) -> None:
        """Wait until the slots served here are such."""
        async with self._moved:
            await self._moved.wait_for(reached)

    async def wait_settled(self) -> None:
        """Wait until each slot has its owner, and this gateway all of those that it should have."""
        await self.wait_until(lambda: self._at_rest and self._slots.is_clear)

    async def drain(self) -> None:
        """Let all slots go to others, slot by slot, as long as there are others. Returns when none is left; cancel it at will."""
        self._slots.draining = True
        self._changed.set()
        await self.wait_until(lambda: not self._slots.epochs or not self._slots.has_heir)

    async def run(self, tasks: Tasks) -> None:
        """Hold one session after another, until cancelled."""
        tasks.spawn(self._follow_instances(), name="instances")
        tasks.spawn(self._follow_holders(), name="holders")
        while True:
            try:
                async with self._registry.open_session(self._instance) as session:
                    self._backoff.succeeded(_OPENING)
                    self._slots.on_session(session.session_id, self._clock.monotonic())
                    try:
                        await self._hold(session, tasks)
                    finally:
                        self._slots.on_session_lost()
                _log.warning("gateway.registry_session_lost", session=session.session_id)
            except RegistryUnavailableError as error:
                delay = self._backoff.failed(_OPENING)
                _log.warning("gateway.registry_away", error=str(error), retry_in=delay)
                await asyncio.sleep(delay)

    async def _hold(self, session: RegistrySession, tasks: Tasks) -> None:
        """Do what the plans say until the session is lost."""
        lost = tasks.spawn(session.wait_lost(), name="session")
        lost.add_done_callback(lambda _: self._changed.set())
        marked = False
        try:
            while not lost.done():
                self._changed.clear()
                try:
                    if self._slots.draining and not marked:
                        marked = bool(await session.acquire([DRAINING_PREFIX + self._instance.instance_id]))
                    again_at = await self._step(session)
                    self._backoff.succeeded(_ASKING)
                except RegistryUnavailableError as error:
                    delay = self._backoff.failed(_ASKING)
                    _log.warning("gateway.registry_away", error=str(error), retry_in=delay)
                    again_at = self._clock.monotonic() + delay
                    await asyncio.sleep(delay)  # also if something changed: nothing is asked of it faster
                await self._wait_change(again_at)
        finally:
            lost.cancel()

    async def _step(self, session: RegistrySession) -> float:
        """Act on one plan; return when to look again."""
        slots = self._slots
        plan = slots.plan(self._clock.monotonic())
        if plan.acquire:
            held = await session.acquire([slot_key(slot) for slot in plan.acquire])
            epochs = {slot: held[key] for slot in plan.acquire if (key := slot_key(slot)) in held}
            ended = slots.on_acquired(plan.acquire, epochs, self._clock.monotonic())
            if ended:
                self._on_ended(ended)
            await self._tell_moved()
        if plan.release:
            slots.on_released(plan.release, self._clock.monotonic())  # first: the answer may never come
            await session.release([slot_key(slot) for slot in plan.release])
        if plan.acquire or plan.release:
            return self._clock.monotonic()
        if plan.again_at == math.inf and not self._at_rest:
            self._at_rest = True
            await self._tell_moved()
        self._at_rest = plan.again_at == math.inf
        return plan.again_at

    async def _wait_change(self, until: float) -> None:
        wait = until - self._clock.monotonic()
        if wait <= 0:
            return
        try:
            async with asyncio.timeout(None if wait == math.inf else wait):
                await self._changed.wait()
        except TimeoutError:
            return

    async def _follow_instances(self) -> None:
        async with aclosing(self._registry.watch_instances(self._instance.service)) as watch:
            async for instances in watch:
                self._slots.on_instances(instances, self._clock.monotonic())
                self._changed.set()
                await self._tell_moved()  # an heir may have come or gone

    async def _follow_holders(self) -> None:
        async with aclosing(self._registry.watch_holders(SLOT_PREFIX)) as watch:
            async for view in watch:
                ended = self._slots.on_holders(view, self._clock.monotonic())
                if ended:
                    self._on_ended(ended)
                self._changed.set()
                await self._tell_moved()

    async def _tell_moved(self) -> None:
        self._metrics.slots.set(len(self._slots.epochs))
        async with self._moved:
            self._moved.notify_all()


@asynccontextmanager
async def open_ownership(ownership: Ownership) -> AsyncIterator[Ownership]:
    """Hold slots until the block is left; leaving frees them."""
    async with open_tasks("gateway.ownership", told=(RegistryRefusedError,)) as tasks:
        tasks.spawn(ownership.run(tasks), name="sessions")
        yield ownership
