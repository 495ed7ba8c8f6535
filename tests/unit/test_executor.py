import asyncio
import threading

import pytest

from chassis.executor import Executor, InlineExecutor, ThreadExecutor


@pytest.fixture(params=[lambda: ThreadExecutor("test"), InlineExecutor], ids=["thread", "inline"])
async def executor(request):
    executor: Executor = request.param()
    yield executor
    await executor.close()


async def test_run_returns_what_the_function_returns(executor):
    assert await executor.run(divmod, 7, 2) == (3, 1)


async def test_run_raises_what_the_function_raises(executor):
    with pytest.raises(ZeroDivisionError):
        await executor.run(divmod, 1, 0)


async def test_calls_run_in_the_order_in_which_they_were_made(executor):
    seen = []
    await asyncio.gather(*(executor.run(seen.append, n) for n in range(100)))
    assert seen == list(range(100))


async def test_a_caller_that_never_waits_for_anything_else_lets_others_run(executor):
    others_turn = asyncio.Event()
    asyncio.get_running_loop().call_soon(others_turn.set)
    await executor.run(len, "")
    assert others_turn.is_set()


async def test_a_closed_executor_refuses(executor):
    await executor.close()
    await executor.close()
    with pytest.raises(RuntimeError):
        await executor.run(len, "")


async def test_thread_executor_stays_on_one_thread_that_is_not_the_loops():
    executor = ThreadExecutor("test")
    threads = {await executor.run(threading.get_ident) for _ in range(5)}
    assert len(threads) == 1
    assert threads != {threading.get_ident()}
    await executor.close()


async def test_thread_executor_closes_after_what_was_called_before():
    executor, begun, go, seen = ThreadExecutor("test"), threading.Event(), threading.Event(), []

    def slow():
        begun.set()
        assert go.wait(5)
        seen.append("slow")

    first = asyncio.create_task(executor.run(slow))
    second = asyncio.create_task(executor.run(seen.append, "second"))
    await asyncio.to_thread(begun.wait, 5)
    closing = asyncio.create_task(executor.close())
    await asyncio.sleep(0)
    assert not closing.done()
    go.set()
    await closing
    assert seen == ["slow", "second"]
    await asyncio.gather(first, second)


async def test_a_cancelled_caller_does_not_stop_a_call_that_has_begun():
    executor, begun, go, seen = ThreadExecutor("test"), threading.Event(), threading.Event(), []

    def slow():
        begun.set()
        assert go.wait(5)
        seen.append("done")

    call = asyncio.create_task(executor.run(slow))
    await asyncio.to_thread(begun.wait, 5)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    go.set()
    await executor.close()
    assert seen == ["done"]


async def test_a_call_whose_loop_has_ended_hurts_no_later_one():
    executor, begun, go = ThreadExecutor("test"), threading.Event(), threading.Event()

    def slow():
        begun.set()
        assert go.wait(5)

    async def give_up():
        call = asyncio.create_task(executor.run(slow))
        await asyncio.to_thread(begun.wait, 5)
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)

    def leave_behind():
        asyncio.run(give_up())
        go.set()

    await asyncio.to_thread(leave_behind)
    assert await executor.run(divmod, 7, 2) == (3, 1)
    await executor.close()
