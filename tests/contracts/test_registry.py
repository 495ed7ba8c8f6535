"""What every Registry owes."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import TypeVar

import pytest
from worlds import RegistryWorld

from chassis.registry import Epoch, Holder, Instance, Registry, RegistrySession

T = TypeVar("T")

DEADLINE_SECONDS = 30.0  # some registries take their time to notice a failed health check, and to free its locks
G1 = Instance("gateway", "g1", "127.0.0.1:1001", "chat-1.example.org:443")
G2 = Instance("gateway", "g2", "127.0.0.1:1002")
S1 = Instance("store", "s1", "127.0.0.1:2001")


@pytest.fixture
async def registry(registry_world: RegistryWorld) -> AsyncIterator[Registry]:
    async with registry_world.open() as registry:
        yield registry


async def await_shown(watch: AsyncGenerator[T, None], wanted: Callable[[T], bool]) -> T:
    """Follow a watch until it shows what is wanted: changes may be merged, and lists may repeat."""
    async with asyncio.timeout(DEADLINE_SECONDS):
        async for shown in watch:
            if wanted(shown):
                return shown
    raise AssertionError("the watch ended")


async def acquire_all(session: RegistrySession, keys: Sequence[str]) -> Mapping[str, Epoch]:
    """Acquire until all are held: a registry may keep a lock closed for a moment after its holder failed."""
    async with asyncio.timeout(DEADLINE_SECONDS):
        while True:
            held = await session.acquire(keys)
            if set(held) == set(keys):
                return held
            await asyncio.sleep(0.05)


async def test_instances_are_shown_at_once_and_after_each_change(registry: Registry) -> None:
    async with registry.open_session(G2), registry.open_session(S1), aclosing(registry.watch_instances("gateway")) as watch:
        assert await await_shown(watch, lambda shown: len(shown) == 1) == [G2]
        async with registry.open_session(G1):
            assert await await_shown(watch, lambda shown: len(shown) == 2) == [G1, G2]
        assert await await_shown(watch, lambda shown: len(shown) == 1) == [G2]


async def test_a_watch_on_nobody_shows_an_empty_list_first(registry: Registry) -> None:
    async with aclosing(registry.watch_instances("nosuch")) as instances, aclosing(registry.watch_holders("nosuch/")) as holders:
        assert list(await await_shown(instances, lambda shown: True)) == []
        assert dict(await await_shown(holders, lambda shown: True)) == {}


async def test_a_lock_has_one_holder(registry: Registry) -> None:
    async with registry.open_session(G1) as one, registry.open_session(G2) as two:
        assert set(await one.acquire(["slots/1", "slots/2"])) == {"slots/1", "slots/2"}
        assert set(await two.acquire(["slots/2", "slots/3"])) == {"slots/3"}


async def test_acquiring_again_keeps_the_epoch_and_a_new_acquisition_has_another(registry: Registry) -> None:
    async with registry.open_session(G1) as one, registry.open_session(G2) as two:
        first = (await one.acquire(["k"]))["k"]
        assert (await one.acquire(["k", "other"]))["k"] == first
        assert first.session_id == one.session_id
        await one.release(["k", "never held"])
        second = (await acquire_all(two, ["k"]))["k"]
        await two.release(["k"])
        third = (await acquire_all(one, ["k"]))["k"]
        assert len({first, second, third}) == 3


async def test_nobody_releases_another_s_lock(registry: Registry) -> None:
    async with registry.open_session(G1) as one, registry.open_session(G2) as two:
        epoch = (await one.acquire(["k"]))["k"]
        await two.release(["k"])
        assert await two.acquire(["k"]) == {}
        assert (await one.acquire(["k"]))["k"] == epoch


async def test_racers_for_a_lock_agree_on_the_winner(registry: Registry) -> None:
    keys = [f"slots/{number}" for number in range(100)]
    async with registry.open_session(G1) as one, registry.open_session(G2) as two:
        held = await asyncio.gather(one.acquire(keys), two.acquire(keys[::-1]))
        assert sorted([*held[0], *held[1]]) == sorted(keys)


async def test_holders_below_a_prefix_are_shown_with_their_epochs(registry: Registry) -> None:
    async with aclosing(registry.watch_holders("slots/")) as watch, registry.open_session(G1) as one:
        held = await one.acquire(["slots/1", "slots/2", "other/1"])
        shown = await await_shown(watch, lambda shown: len(shown) == 2)
        assert shown == {key: Holder("g1", held[key]) for key in ("slots/1", "slots/2")}
        await one.release(["slots/1"])
        assert set(await await_shown(watch, lambda shown: len(shown) == 1)) == {"slots/2"}


async def test_leaving_frees_the_locks(registry: Registry) -> None:
    async with registry.open_session(G2) as two, aclosing(registry.watch_holders("k")) as watch:
        async with registry.open_session(G1) as one:
            await one.acquire(["k"])
            await await_shown(watch, lambda shown: shown["k"].instance_id == "g1" if shown else False)
        await acquire_all(two, ["k"])
        await await_shown(watch, lambda shown: shown["k"].instance_id == "g2" if shown else False)


async def test_a_failed_health_check_ends_session_instance_and_locks(registry: Registry, registry_world: RegistryWorld) -> None:
    async with registry.open_session(G1) as one, registry.open_session(G2) as two:
        first = (await one.acquire(["k"]))["k"]
        waiting = [asyncio.create_task(session.wait_lost()) for session in (one, two)]
        async with aclosing(registry.watch_instances("gateway")) as watch:
            await await_shown(watch, lambda shown: len(shown) == 2)
            await registry_world.fail_health(one.session_id)
            assert await await_shown(watch, lambda shown: len(shown) == 1) == [G2]
        async with asyncio.timeout(DEADLINE_SECONDS):
            await waiting[0]
        assert not waiting[1].done()
        waiting[1].cancel()
        await asyncio.wait(waiting)
        assert (await acquire_all(two, ["k"]))["k"] != first
        assert await one.acquire(["k", "free"]) == {}
        await one.release(["k"])
        assert set(await two.acquire(["k"])) == {"k"}


async def test_an_instance_is_shown_while_its_newest_session_lives(registry: Registry, registry_world: RegistryWorld) -> None:
    moved = Instance("gateway", "g1", "127.0.0.1:1009")
    async with aclosing(registry.watch_instances("gateway")) as watch, registry.open_session(G1) as old:
        await await_shown(watch, lambda shown: list(shown) == [G1])
        async with registry.open_session(moved) as new:
            await await_shown(watch, lambda shown: list(shown) == [moved])
            await registry_world.fail_health(old.session_id)
            assert set(await new.acquire(["k"])) == {"k"}
            async with aclosing(registry.watch_instances("gateway")) as second:
                assert await await_shown(second, lambda shown: len(shown) == 1) == [moved]
        await await_shown(watch, lambda shown: not shown)
