"""Processes that a loop starts: what they say, how they end, and what becomes of them when their starter gives up."""

import asyncio
import signal
import sys
from typing import IO

import pytest

from parley_cluster import spawn as module
from parley_cluster.spawn import PIPE, STDOUT, spawn
from parley_engines.processes import ProcessIdentity, identify, wait_ended

PYTHON = (sys.executable, "-c")


async def test_it_is_heard_until_its_end() -> None:
    process = await spawn([*PYTHON, "import sys; print('out'); print('err', file=sys.stderr); sys.exit(3)"], stderr=PIPE)
    assert process.stderr is not None
    assert await asyncio.gather(process.stdout.read(), process.stderr.read(), process.wait()) == [b"out\n", b"err\n", 3]
    assert process.code == 3


async def test_stderr_may_join_stdout_and_the_environment_be_another() -> None:
    code = "import os, sys; print(os.environ['NAME'], file=sys.stderr); print(os.getsid(0) == os.getpid())"
    process = await spawn([*PYTHON, code], environ={"NAME": "value"}, stderr=STDOUT)
    assert await process.stdout.read() == b"value\nTrue\n"
    assert await process.wait() == 0


async def test_it_is_told_lines_until_it_is_ended_and_a_signal_later_reaches_nobody() -> None:
    process = await spawn([*PYTHON, "import sys\nfor line in sys.stdin: print(line.upper(), end='', flush=True)"], stdin=PIPE)
    process.tell("begin")
    assert await process.stdout.readline() == b"BEGIN\n"
    assert process.code is None
    process.signal(signal.SIGKILL)
    assert await process.wait() == process.code == -signal.SIGKILL
    process.signal(signal.SIGKILL)
    process.tell("anything")


async def test_what_can_not_be_started_says_so() -> None:
    with pytest.raises(FileNotFoundError):
        await spawn(["./there-is-no-such-program"])


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> list[ProcessIdentity]:
    """Which processes were begun."""
    begin, noted = module._begin, list[ProcessIdentity]()

    def noting(*arguments: object) -> object:
        process = begin(*arguments)
        identity = identify(process.pid)
        assert identity is not None
        noted.append(identity)
        return process

    monkeypatch.setattr(module, "_begin", noting)
    return noted


async def test_who_is_cancelled_meanwhile_leaves_no_process(begun: list[ProcessIdentity], monkeypatch: pytest.MonkeyPatch) -> None:
    async def never(_loop: object, _pipe: object) -> asyncio.StreamReader:
        raise asyncio.CancelledError

    monkeypatch.setattr(module, "_connect", never)
    with pytest.raises(asyncio.CancelledError):
        await spawn([*PYTHON, "import time; time.sleep(300)"])
    assert await asyncio.to_thread(wait_ended, begun[0], 10)


async def test_who_is_cancelled_between_two_pipes_leaves_none_with_the_loop(
    begun: list[ProcessIdentity], monkeypatch: pytest.MonkeyPatch
) -> None:
    pipes: list[module._Pipe] = []
    connect = module._connect

    async def once(loop: asyncio.AbstractEventLoop, file: IO[bytes]) -> module._Pipe:
        if pipes:
            raise asyncio.CancelledError
        pipes.append(await connect(loop, file))
        return pipes[0]

    monkeypatch.setattr(module, "_connect", once)
    with pytest.raises(asyncio.CancelledError):
        await spawn([*PYTHON, "import time; time.sleep(300)"], stderr=PIPE)
    assert await asyncio.to_thread(wait_ended, begun[0], 10)
    async with asyncio.timeout(10):
        await pipes[0].closed.wait()
