"""Being found by others, over the ends of sessions and the absence of the registry."""

import asyncio
from contextlib import aclosing, asynccontextmanager

import pytest
from structlog.testing import capture_logs

from chassis.registration import open_registration
from chassis.registry import Instance, RegistryRefusedError, RegistryUnavailableError
from chassis.registry_memory import MemoryRegistry
from chassis.testing.virtual_loop import run_virtual

S1 = Instance("store", "s1", "127.0.0.1:1")


class Unreliable(MemoryRegistry):
    """A registry that refuses sessions with the errors it is given first."""

    def __init__(self, *errors):
        super().__init__()
        self._errors = list(errors)
        self.opened = []

    @asynccontextmanager
    async def open_session(self, instance):
        if self._errors:
            raise self._errors.pop(0)
        async with super().open_session(instance) as session:
            self.opened.append(session)
            yield session


async def shown(registry):
    async with aclosing(registry.watch_instances("store")) as watch:
        return list(await anext(watch))


def test_an_instance_is_found_within_the_block_and_not_after_it():
    async def main(rng):
        registry = MemoryRegistry()
        async with open_registration(registry, S1, rng):
            assert await shown(registry) == [S1]
        assert await shown(registry) == []

    run_virtual(main)


def test_whose_session_is_ended_is_found_again():
    async def main(rng):
        registry = Unreliable()
        async with open_registration(registry, S1, rng):
            for _ in range(3):
                registry.expire(registry.opened[-1].session_id)
                assert await shown(registry) == []
                await asyncio.sleep(10)
                assert await shown(registry) == [S1]
        assert len(registry.opened) == 4

    run_virtual(main)


def test_the_block_begins_once_the_registry_has_answered():
    async def main(rng):
        registry = Unreliable(*[RegistryUnavailableError("away")] * 5)
        async with open_registration(registry, S1, rng):
            assert await shown(registry) == [S1]

    run_virtual(main)


def test_a_registry_that_can_not_be_used_ends_the_start():
    async def main(rng):
        with pytest.raises(ZeroDivisionError):
            async with open_registration(Unreliable(ZeroDivisionError()), S1, rng):
                raise AssertionError("not reached")

    run_virtual(main)


def test_a_registry_that_is_another_clusters_ends_it_without_a_traceback():
    """The process ends with the line that says whose it is."""

    async def main(rng):
        with capture_logs() as logs, pytest.raises(RegistryRefusedError, match="another's"):
            async with open_registration(Unreliable(RegistryRefusedError("another's")), S1, rng):
                raise AssertionError("not reached")
        assert logs == []

    run_virtual(main)
