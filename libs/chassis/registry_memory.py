"""The Registry in one process: for services that live and die together, and for simulations of those that do not."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import TypeVar

from chassis.registry import Epoch, Holder, Instance

T = TypeVar("T")


class MemorySession:
    """See `chassis.registry.RegistrySession`; opened by `MemoryRegistry.open_session`."""

    def __init__(self, registry: "MemoryRegistry", session_id: str, instance: Instance) -> None:
        self._registry = registry
        self._session_id = session_id
        self.instance = instance
        self.ended = asyncio.Event()

    @property
    def session_id(self) -> str:
        return self._session_id

    async def acquire(self, keys: Sequence[str]) -> Mapping[str, Epoch]:
        return self._registry.acquire(self, keys)

    async def release(self, keys: Sequence[str]) -> None:
        self._registry.release(self, keys)

    async def wait_lost(self) -> None:
        await self.ended.wait()


class MemoryRegistry:
    """See `chassis.registry.Registry`."""

    def __init__(self) -> None:
        self._sessions: dict[str, MemorySession] = {}
        self._locks: dict[str, Holder] = {}
        self._last_session = 0
        self._last_index = 0
        self._watchers: dict[asyncio.Event, None] = {}  # woken in order

    @asynccontextmanager
    async def open_session(self, instance: Instance) -> AsyncIterator[MemorySession]:
        self._last_session += 1
        session = MemorySession(self, f"session-{self._last_session}", instance)
        self._sessions[session.session_id] = session
        self._changed()
        try:
            yield session
        finally:
            self.expire(session.session_id)

    def expire(self, session_id: str) -> None:
        """End a session, as a failed health check does: its instance is gone, its locks are free. Again is harmless."""
        session = self._sessions.pop(session_id, None)
        if session is None:
            return
        self._locks = {key: holder for key, holder in self._locks.items() if holder.epoch.session_id != session_id}
        session.ended.set()
        self._changed()

    def expire_all(self) -> None:
        """Lose all data, as a registry does that comes back without its disk."""
        for session_id in list(self._sessions):
            self.expire(session_id)

    def holder_of(self, key: str) -> Holder | None:
        """Return who holds a lock."""
        return self._locks.get(key)

    def acquire(self, session: MemorySession, keys: Sequence[str]) -> Mapping[str, Epoch]:
        """Lock for a session what is free, and return all of the keys that it holds."""
        held: dict[str, Epoch] = {}
        if session.ended.is_set():
            return held
        for key in keys:
            holder = self._locks.get(key)
            if holder is None:
                self._last_index += 1
                epoch = Epoch(session.session_id, self._last_index)
                holder = self._locks[key] = Holder(session.instance.instance_id, epoch)
                self._changed()
            if holder.epoch.session_id == session.session_id:
                held[key] = holder.epoch
        return held

    def release(self, session: MemorySession, keys: Sequence[str]) -> None:
        """Unlock what the session holds of the keys."""
        for key in keys:
            holder = self._locks.get(key)
            if holder is not None and holder.epoch.session_id == session.session_id:
                del self._locks[key]
                self._changed()

    def watch_instances(self, service: str) -> AsyncGenerator[Sequence[Instance], None]:
        # A process that comes back before its old session has ended stands there once, as its newest session says.
        def look() -> Sequence[Instance]:
            instances = (session.instance for session in self._sessions.values() if session.instance.service == service)
            return sorted({instance.instance_id: instance for instance in instances}.values())

        return self._watch(look)

    def watch_holders(self, prefix: str) -> AsyncGenerator[Mapping[str, Holder], None]:
        return self._watch(lambda: {key: holder for key, holder in sorted(self._locks.items()) if key.startswith(prefix)})

    async def _watch(self, look: Callable[[], T]) -> AsyncGenerator[T, None]:
        """Yield what a look shows, then again whenever that has changed."""
        changed = asyncio.Event()
        self._watchers[changed] = None
        try:
            shown = look()
            yield shown
            while True:
                await changed.wait()
                changed.clear()
                seen = look()
                if seen != shown:
                    shown = seen
                    yield shown
        finally:
            del self._watchers[changed]

    def _changed(self) -> None:
        for watcher in self._watchers:
            watcher.set()
