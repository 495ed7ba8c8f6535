"""A Registry as bad as the port allows: the real implementation behind a bad network, for one process."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Final, TypeVar

from chassis.registry import Epoch, Holder, Instance, RegistryUnavailableError
from chassis.registry_memory import MemoryRegistry, MemorySession
from chassis.testing.faults import DATA_LOST, REGISTRY_FAILS, REGISTRY_SILENT, SESSION_LOST, Engine, FaultStream, Life

T = TypeVar("T")

HEALTH_SECONDS_MAX: Final = 8.0  # until the session of a dead process ends, as by its health check
SILENT_SECONDS_MAX: Final = 90.0
STRANGE_SECONDS: Final = 10.0  # after a loss of all data nobody takes what was another one's
_LOOK_SECONDS: Final = 5.0  # between two occasions for a session to be lost


class RegistryEngine(Engine):
    """One registry, as all processes meet it."""

    def __init__(self, name: str, inner: MemoryRegistry) -> None:
        super().__init__(name)
        self.inner = inner
        self.acquisitions = 0
        self.stolen: list[str] = []  # who took what was another one's too soon after all data was lost
        # Whether an instance still does what a lock stands for: one that was cut off takes it again, knowing of nobody else.
        self.still_serves: Callable[[str, str], bool] = _serves_nothing
        self._takers: dict[str, list[tuple[int, str]]] = {}  # of each lock, in order: the index and the instance
        self._data_lost_at = -STRANGE_SECONDS

    def on_acquired(self, instance_id: str, held: Mapping[str, Epoch], own: Collection[str]) -> None:
        """Note who holds what, and what of it was his `own` when he asked: that may end while the question is on its way."""
        now = asyncio.get_running_loop().time()
        for key, epoch in held.items():
            takers = self._takers.setdefault(key, [])
            if takers and takers[-1][0] == epoch.lock_index:
                continue
            self.acquisitions += 1
            strange = bool(takers) and takers[-1][1] != instance_id and key not in own
            if strange and now - self._data_lost_at < STRANGE_SECONDS:
                self.stolen.append(f"{instance_id} took {key} from {takers[-1][1]} too soon after all data was lost")
            takers.append((epoch.lock_index, instance_id))

    def was_taken(self, key: str, after_index: int, instance_id: str) -> bool:
        """Tell whether somebody else ever held a lock after that index."""
        return any(index > after_index and taker != instance_id for index, taker in self._takers.get(key, ()))

    def lock_of(self, key: str) -> Holder | None:
        """Return who holds a lock now."""
        return self.inner.holder_of(key)

    def lose_data(self, stream: FaultStream) -> None:
        """Forget all sessions, locks and instances, and be away for a moment: as after a restart without a disk."""
        if stream.happens(DATA_LOST):
            self.inner.expire_all()
            self._data_lost_at = asyncio.get_running_loop().time()
            self.away_until = asyncio.get_running_loop().time() + stream.rng.uniform(0.1, 20.0)


class FaultyRegistry:
    """Passes on to a registry, with every fault that the port's contract leaves open.

    It may be silent for one process alone: questions fail, watches show nothing, nobody learns of a lost session; and away for all.
    What was asked may be done though the answer is an error. The dead keep their sessions until their health check fails, the
    living may lose theirs. Views come late, and some are left out. What is kept: views come in order, and a lock has one holder.
    """

    def __init__(self, engine: RegistryEngine, stream: FaultStream, life: Life) -> None:
        self.engine = engine
        self._stream = stream
        self._life = life
        self._silent_until = 0.0

    @asynccontextmanager
    async def open_session(self, instance: Instance) -> AsyncIterator["FaultySession"]:
        await self.reach("open")
        opening = self.engine.inner.open_session(instance)
        session = await opening.__aenter__()
        losing = self.engine.spawn(self._lose_sometimes(session))
        try:
            await self.answered("open")
            yield FaultySession(self, session, instance.instance_id)
        finally:
            losing.cancel()
            if self._life.alive:
                await opening.__aexit__(None, None, None)
            else:
                self.engine.spawn(self._fail_health(session))

    async def _lose_sometimes(self, session: MemorySession) -> None:
        while not session.ended.is_set():
            await asyncio.sleep(_LOOK_SECONDS)
            if self._stream.happens(SESSION_LOST):
                self.engine.inner.expire(session.session_id)

    async def _fail_health(self, session: MemorySession) -> None:
        await asyncio.sleep(self._stream.rng.uniform(0.5, HEALTH_SECONDS_MAX))
        self.engine.inner.expire(session.session_id)

    async def watch_instances(self, service: str) -> AsyncGenerator[Sequence[Instance], None]:
        async with aclosing(self._passed_on(self.engine.inner.watch_instances(service))) as watch:
            async for shown in watch:
                yield shown

    async def watch_holders(self, prefix: str) -> AsyncGenerator[Mapping[str, Holder], None]:
        async with aclosing(self._passed_on(self.engine.inner.watch_holders(prefix))) as watch:
            async for shown in watch:
                yield shown

    async def _passed_on(self, watch: AsyncGenerator[T, None]) -> AsyncGenerator[T, None]:
        async with aclosing(watch):
            async for shown in watch:
                await self._stream.latency()
                await self.wait_reachable()
                self._life.require_alive()
                yield shown

    def is_silent(self) -> bool:
        """Tell whether this process gets no answer now; it may begin with this question."""
        now = asyncio.get_running_loop().time()
        if now >= self._silent_until and self._stream.happens(REGISTRY_SILENT):
            self._silent_until = now + self._stream.rng.uniform(1.0, SILENT_SECONDS_MAX)
        return now < self._silent_until or self.engine.is_away(self._stream)

    async def wait_reachable(self) -> None:
        """Wait until the registry answers this process."""
        while self.is_silent():
            until = max(self._silent_until, self.engine.away_until)
            await asyncio.sleep(until - asyncio.get_running_loop().time())

    async def reach(self, what: str) -> None:
        """Ask something: wait for the answer's time, raise RegistryUnavailableError if there is none."""
        await self._life.step(f"before {what} in the registry")
        await self._stream.latency()
        if self.is_silent():
            await asyncio.sleep(self._stream.rng.uniform(0.0, 2.0))
            raise RegistryUnavailableError("no answer")

    async def answered(self, what: str) -> None:
        """Let the answer get lost, perhaps."""
        await self._stream.latency()
        if self._stream.happens(REGISTRY_FAILS):
            raise RegistryUnavailableError("the answer got lost")
        await self._life.step(f"after {what} in the registry")


class FaultySession:
    """See `chassis.registry.RegistrySession`."""

    def __init__(self, registry: FaultyRegistry, inner: MemorySession, instance_id: str) -> None:
        self._registry = registry
        self._inner = inner
        self._instance_id = instance_id

    @property
    def session_id(self) -> str:
        return self._inner.session_id

    async def acquire(self, keys: Sequence[str]) -> Mapping[str, Epoch]:
        engine = self._registry.engine
        own = {key for key in keys if engine.still_serves(self._instance_id, key)}
        await self._registry.reach("acquire")
        held = await self._inner.acquire(keys)
        engine.on_acquired(self._instance_id, held, own)
        await self._registry.answered("acquire")
        return held

    async def release(self, keys: Sequence[str]) -> None:
        await self._registry.reach("release")
        await self._inner.release(keys)
        await self._registry.answered("release")

    async def wait_lost(self) -> None:
        await self._inner.wait_lost()
        await self._registry.wait_reachable()


def _serves_nothing(_instance_id: str, _key: str) -> bool:
    return False
