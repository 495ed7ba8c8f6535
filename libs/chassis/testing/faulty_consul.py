"""Consul's keys and a bad network before them, for what is asked of them beside the registry: `chassis.registry_consul_claim`."""

import asyncio
from contextlib import suppress
from typing import Any

from chassis.registry import RegistryUnavailableError
from chassis.testing.faults import LATE_SECONDS_MAX, REGISTRY_FAILS, WRITE_LATE, Engine, FaultStream

_FIRST_INDEX = 1


class ConsulKeys(Engine):
    """The keys of one Consul, as all processes meet them: each change has an index, a write may say which one it knows."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.entries: dict[str, dict[str, Any]] = {}
        self.index = _FIRST_INDEX
        self._changed = asyncio.Event()

    def write(self, key: str, value: str, cas: int | None) -> bool:
        """Write a key; with `cas` only if it was last changed at that index, 0: only if it does not exist."""
        entry = self.entries.get(key)
        if cas is not None and cas != (0 if entry is None else entry["ModifyIndex"]):
            return False
        self.index += 1
        self.entries[key] = {"Key": key, "Value": value.encode(), "ModifyIndex": self.index}
        self._tell()
        return True

    def lose_data(self) -> None:
        """Be as after a start without a disk."""
        self.entries.clear()
        self.index = _FIRST_INDEX
        self._tell()

    async def wait_changed(self, index: int, seconds: float) -> None:
        """Wait until something was changed since an index, for so long at most."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self.index == index:
                    await self._changed.wait()

    def _tell(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


class FaultyKeys:
    """One process's `ConsulClient`, as far as keys go: `kv.get` and `kv.put` of py-consul.

    Answers come late or get lost when all was done, Consul is away for a while, and a write may be done long after its error. What
    is kept: reads are consistent, as ours are. A stale one would need a Consul that breaks its promise.
    """

    def __init__(self, keys: ConsulKeys, stream: FaultStream) -> None:
        self._keys = keys
        self._stream = stream

    @property
    def kv(self) -> "FaultyKeys":
        return self

    async def get(self, key: str, index: int | None = None, wait: str = "0s") -> tuple[str, Any]:
        await self._reach()
        if index is not None:
            await self._keys.wait_changed(index, float(wait.removesuffix("s")))
        answer = str(self._keys.index), self._keys.entries.get(key)
        await self._answered()
        return answer

    async def put(self, key: str, value: str, cas: int | None = None) -> bool:
        await self._reach()
        if self._stream.happens(WRITE_LATE):
            self._keys.spawn(self._put_late(key, value, cas))
            raise RegistryUnavailableError("no answer")
        done = self._keys.write(key, value, cas)
        await self._answered()
        return done

    async def _put_late(self, key: str, value: str, cas: int | None) -> None:
        await asyncio.sleep(LATE_SECONDS_MAX ** self._stream.rng.uniform(-1.0, 1.0))  # short ones are as likely as long ones
        self._keys.write(key, value, cas)

    async def _reach(self) -> None:
        await self._stream.latency()
        if self._keys.is_away(self._stream):
            raise RegistryUnavailableError("no answer")

    async def _answered(self) -> None:
        await self._stream.latency()
        if self._stream.happens(REGISTRY_FAILS):
            raise RegistryUnavailableError("the answer got lost")
