"""Processes that a loop starts: what they say, how they end, and what becomes of them when their starter gives up."""

import asyncio
import signal
import sys

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


async def test_what_can_not_be_started_says_so() -> None:
    with pytest.raises(FileNotFoundError):
        await spawn(["./there-is-no-such-program"])


async def test_who_is_cancelled_meanwhile_leaves_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[ProcessIdentity] = []

    async def never(_loop: object, _pipe: object) -> asyncio.StreamReader:
        raise asyncio.CancelledError

    begin = module._begin

    def noting(*arguments: object) -> object:
        process = begin(*arguments)
        identity = identify(process.pid)
        assert identity is not None
        begun.append(identity)
        return process

    monkeypatch.setattr(module, "_connect", never)
    monkeypatch.setattr(module, "_begin", noting)
    with pytest.raises(asyncio.CancelledError):
        await spawn([*PYTHON, "import time; time.sleep(300)"])
    assert await asyncio.to_thread(wait_ended, begun[0], 10)
