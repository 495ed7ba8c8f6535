"""The loop on virtual time: it jumps, it is repeatable, and it says why it can't go on."""

import asyncio
import hashlib
import time
from contextvars import Context
from random import Random

import pytest

from chassis.clock import Clock
from chassis.testing.virtual_loop import (
    PROCESS,
    START_WALL_MS,
    DeadlockError,
    LimitError,
    UnhandledError,
    VirtualClock,
    VirtualLoop,
    run_virtual,
)


def now() -> float:
    return asyncio.get_running_loop().time()


def test_sleeping_for_a_day_takes_no_time():
    """Thousands of virtual seconds pass in a real one."""

    async def main(_rng: Random) -> float:
        await asyncio.sleep(86_400 * 3)  # longer than asyncio waits at once
        return now()

    started = time.monotonic()
    assert run_virtual(main) == pytest.approx(86_400 * 3)
    assert time.monotonic() - started < 5


def test_timers_fire_in_order_at_their_moment():
    async def main(_rng: Random) -> list[tuple[str, float]]:
        seen: list[tuple[str, float]] = []

        async def wake(name: str, delay: float) -> None:
            await asyncio.sleep(delay)
            seen.append((name, now()))

        await asyncio.gather(wake("c", 3), wake("a", 0.001), wake("b", 2), wake("b2", 2))
        return seen

    names, moments = zip(*run_virtual(main), strict=True)
    assert names == ("a", "b", "b2", "c")
    assert moments == pytest.approx((0.001, 2, 2, 3))


def test_timeouts_expire_in_virtual_time():
    async def main(_rng: Random) -> float:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(10):
                await asyncio.Event().wait()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.get_running_loop().create_future(), 5)
        assert await asyncio.wait_for(asyncio.sleep(1, "in time"), 5) == "in time"
        return now()

    assert run_virtual(main) == pytest.approx(16)


def test_queues_conditions_groups_and_async_generators_work():
    async def main(_rng: Random) -> list[int]:
        queue: asyncio.Queue[int] = asyncio.Queue(maxsize=2)
        condition = asyncio.Condition()

        async def numbers():
            for number in range(5):
                await asyncio.sleep(1)
                yield number

        async def produce() -> None:
            async for number in numbers():
                await queue.put(number)
            async with condition:
                condition.notify_all()

        async def wait_end() -> None:
            async with condition:
                await condition.wait()

        async with asyncio.TaskGroup() as group:
            group.create_task(produce())
            group.create_task(wait_end())
            return [await queue.get() for _ in range(5)]

    assert run_virtual(main) == [0, 1, 2, 3, 4]


def test_a_deadlock_names_the_tasks_and_where_they_wait():
    async def forgotten() -> None:
        await asyncio.Event().wait()

    async def main(_rng: Random) -> None:
        PROCESS.set("store-1")
        await asyncio.create_task(forgotten(), name="reader")

    with pytest.raises(DeadlockError) as caught:
        run_virtual(main, seed=7)
    assert "store-1: reader waits at" in str(caught.value)
    assert "locks.py" in str(caught.value)
    assert "seed 7" in caught.value.__notes__[0]


def test_virtual_time_is_limited():
    async def main(_rng: Random) -> None:
        while await asyncio.sleep(1, True):
            pass

    with pytest.raises(LimitError, match="more than 100 virtual seconds"):
        run_virtual(main, limit_seconds=100)


def test_a_livelock_is_ended():
    async def main(_rng: Random) -> None:
        while await asyncio.sleep(0, True):
            pass

    with pytest.raises(LimitError, match="livelock"):
        run_virtual(main)


def test_an_exception_that_nobody_takes_fails_the_run():
    async def fail() -> None:
        raise ValueError("nobody looks")

    async def main(_rng: Random) -> None:
        task = asyncio.create_task(fail())
        await asyncio.sleep(1)
        del task

    with pytest.raises(UnhandledError) as caught:
        run_virtual(main)
    assert isinstance(caught.value.__cause__, ValueError)


def test_threads_are_refused():
    """A thread would race with jumping time."""

    async def main(_rng: Random) -> None:
        with pytest.raises(RuntimeError, match="InlineExecutor"):
            await asyncio.to_thread(time.monotonic)

    run_virtual(main)


def test_what_main_leaves_running_is_cancelled_oldest_first():
    ended: list[int] = []

    async def linger(number: int) -> None:
        try:
            await asyncio.sleep(1000)
        finally:
            ended.append(number)

    async def main(_rng: Random) -> list[asyncio.Task[None]]:
        tasks = [asyncio.create_task(linger(number)) for number in range(20)]
        await asyncio.sleep(1)
        return tasks

    assert all(task.cancelled() for task in run_virtual(main))
    assert ended == list(range(20))


def test_tasks_belong_to_the_process_that_started_them():
    async def main(_rng: Random) -> list[list[str]]:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)

        async def child() -> None:
            await asyncio.sleep(9)

        async def service(name: str) -> None:
            PROCESS.set(name)
            async with asyncio.TaskGroup() as group:
                group.create_task(child(), name=f"{name}/child")
                await asyncio.sleep(9)

        running = [asyncio.create_task(service(name), name=name) for name in ("store", "router")]
        await asyncio.sleep(1)
        names = [[task.get_name() for task in loop.live_tasks(process)] for process in ("store", "router")]
        await asyncio.gather(*running)
        return names

    assert run_virtual(main) == [["store/child"], ["router/child"]]  # service() itself began outside of any


def test_a_frozen_process_stands_still_and_does_all_that_came_due_when_it_thaws():
    async def main(_rng: Random) -> list[str]:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        seen: list[str] = []

        async def tick(name: str) -> None:
            for _ in range(3):
                await asyncio.sleep(1.0)
                seen.append(f"{name} at {loop.time():g}")

        tasks = []
        for name in ("cold", "warm"):
            context = Context()
            context.run(PROCESS.set, name)
            tasks.append(loop.create_task(tick(name), context=context))
        loop.call_later(1.5, loop.freeze, "cold")
        loop.call_later(10.0, loop.thaw, "cold")
        await asyncio.wait(tasks)
        return seen

    assert run_virtual(main) == ["cold at 1", "warm at 1", "warm at 2", "warm at 3", "cold at 10", "cold at 11"]


def test_wall_time_jumps_and_monotonic_time_does_not():
    """An hour forward, an hour back."""

    async def main(_rng: Random) -> list[tuple[int, float]]:
        clock = VirtualClock()
        port: Clock = clock
        readings = [(port.wall_ms(), port.monotonic())]
        for hours in (1, -2, 1):
            clock.jump_wall(hours * 3600)
            await asyncio.sleep(1)
            readings.append((port.wall_ms() - START_WALL_MS, port.monotonic()))
        return readings

    assert run_virtual(main) == [(START_WALL_MS, 0.0), (3_601_000, 1.0), (-3_598_000, 2.0), (3_000, 3.0)]


def chaos_hash(seed: int) -> str:
    """Return a hash over a busy run: many tasks, sets of tasks, cancellations."""
    digest = hashlib.sha256()

    async def main(rng: Random) -> None:
        queue: asyncio.Queue[int] = asyncio.Queue(maxsize=3)

        async def work(number: int) -> None:
            for _ in range(20):
                await asyncio.sleep(rng.random())
                await queue.put(number)

        async def drain() -> None:
            while True:
                digest.update(f"{now():.9f} {await queue.get()}\n".encode())

        drainer = asyncio.create_task(drain())
        pending = {asyncio.create_task(work(number)) for number in range(30)}
        while pending:
            done, pending = await asyncio.wait(pending, timeout=rng.random(), return_when=asyncio.FIRST_COMPLETED)
            for task in pending:  # a set on purpose
                if rng.random() < 0.02:
                    task.cancel()
            for task in done:
                digest.update(f"{task.cancelled()}".encode())
        drainer.cancel()

    run_virtual(main, seed)
    return digest.hexdigest()


def test_equal_seeds_give_equal_runs():
    hashes = {seed: chaos_hash(seed) for seed in range(5)}
    assert {seed: chaos_hash(seed) for seed in range(5)} == hashes
    assert len(set(hashes.values())) == 5
