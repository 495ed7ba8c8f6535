import asyncio

import pytest
from structlog.testing import capture_logs

from chassis.tasks import open_tasks


async def wait_for_ever(started=None, ended=None):
    try:
        if started:
            started.set()
        await asyncio.Event().wait()
    finally:
        if ended is not None:
            await asyncio.sleep(0)  # cleanup that itself waits
            ended.append(True)


async def fail(error):
    raise error


async def test_leaving_cancels_and_waits_for_cleanup():
    started, ended = asyncio.Event(), []
    async with open_tasks("test") as tasks:
        task = tasks.spawn(wait_for_ever(started, ended), name="idle")
        await started.wait()
    assert task.cancelled()
    assert ended == [True]


async def test_spawn_returns_a_task_with_a_name_and_a_result():
    async with open_tasks("owner") as tasks:
        task = tasks.spawn(asyncio.sleep(0, "result"), name="part")
        assert task.get_name() == "owner.part"
        assert await task == "result"


async def test_a_failure_is_logged_once_and_raised_to_whoever_waits():
    with capture_logs() as logs:
        async with open_tasks("test") as tasks:
            tasks.spawn(fail(ValueError("first")), name="broken")
            for _ in range(2):
                with pytest.raises(ValueError, match="first"):
                    await tasks.wait_failed()
    assert [(entry["event"], entry["task"], entry["log_level"]) for entry in logs] == [("task failed", "test.broken", "error")]
    assert isinstance(logs[0]["exc_info"], ValueError)


async def test_what_the_process_ends_with_is_left_to_whoever_tells_it():
    with capture_logs() as logs:
        async with open_tasks("test", told=(LookupError,)) as tasks:
            tasks.spawn(fail(KeyError("told")), name="refused")
            with pytest.raises(KeyError, match="told"):
                await tasks.wait_failed()
            tasks.spawn(fail(ValueError("not told")), name="broken")
            await asyncio.sleep(0)
    assert [entry["task"] for entry in logs] == ["test.broken"]


async def test_a_failure_leaves_the_siblings_alone():
    with capture_logs():
        async with open_tasks("test") as tasks:
            sibling = tasks.spawn(wait_for_ever(), name="sibling")
            tasks.spawn(fail(KeyError()), name="broken")
            with pytest.raises(KeyError):
                await tasks.wait_failed()
            assert not sibling.done()


async def test_cancelling_a_task_is_no_failure():
    async with open_tasks("test") as tasks:
        task = tasks.spawn(wait_for_ever(), name="idle")
        waiting = tasks.spawn(tasks.wait_failed(), name="watch")
        task.cancel()
        await asyncio.wait([task])
        await asyncio.sleep(0)
        assert not waiting.done()


async def test_no_task_starts_once_the_owner_is_closing():
    async with open_tasks("test") as tasks:
        pass
    with pytest.raises(RuntimeError, match="closing"):
        tasks.spawn(wait_for_ever(), name="late")


async def test_an_owner_that_is_cancelled_twice_still_waits_for_its_tasks():
    started, ended, in_cleanup, finish = asyncio.Event(), [], asyncio.Event(), asyncio.Event()

    async def slow_to_end():
        try:
            started.set()
            await asyncio.Event().wait()
        finally:
            in_cleanup.set()
            await finish.wait()
            ended.append(True)

    async def owner():
        async with open_tasks("test") as tasks:
            tasks.spawn(slow_to_end(), name="slow")
            await asyncio.Event().wait()

    task = asyncio.create_task(owner())
    await started.wait()
    task.cancel()
    await in_cleanup.wait()
    task.cancel()
    await asyncio.sleep(0)
    assert not task.done()
    finish.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended == [True]


async def test_the_error_of_the_block_goes_on_after_its_tasks_ended():
    started, ended = asyncio.Event(), []

    async def owner():
        async with open_tasks("test") as tasks:
            tasks.spawn(wait_for_ever(started, ended), name="idle")
            await started.wait()
            raise KeyError

    with pytest.raises(KeyError):
        await owner()
    assert ended == [True]
