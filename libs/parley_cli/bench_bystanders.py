"""Who looks on while a benchmark keeps its own process busy: pairs that chat, in a process of their own.

What they wait for is then the server, not the process beside it that judges a hundred thousand events. It is told what to do by
lines on its stdin, and answers each with one of JSON.
"""

import asyncio
import json
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from parley_checker.guarantees import Guarantee
from parley_checker.verdict import Fault, Verdict
from parley_cli.bench_messages import QUIET_SECONDS, Load, MessageLoad, Tally, connect_load
from parley_cli.bench_report import percentiles_ms
from parley_cli.bench_stream import open_fleet
from parley_cli.bench_target import Target, target_of
from parley_cli.failures import CommandError
from parley_cluster.spawn import PIPE, Spawned, spawn

# Enough messages to see a stall of 50 ms.
LOAD = MessageLoad(pairs=10, window=1, seconds=0.0, rate=100.0)
_OFFER_SECONDS = 300.0  # longer than any benchmark that they look on


class Bystanders:
    """The process, as whoever opened it sees it; made by `open_bystanders`."""

    def __init__(self, process: Spawned) -> None:
        self._process = process

    async def begin_window(self) -> None:
        """Measure what is due from now on."""
        await self._ask("begin")

    async def end_window(self) -> dict[str, float | None]:
        """Measure no more; return what messages had to wait, in percentiles."""
        figures: dict[str, float | None] = await self._ask("end")
        return figures

    async def verdict(self) -> Verdict:
        """Send no more; return the judge's word on all that they did."""
        found = await self._ask("judge")
        for name, kind in (("faults", Fault), ("judged", Guarantee), ("broken", Guarantee)):
            found[name] = Counter({kind(key): count for key, count in found[name]})
        return Verdict(**found)

    async def wait_ready(self) -> None:
        """Wait until they chat."""
        await self._answer()

    async def _ask(self, order: str) -> Any:
        self._process.tell(order)
        return await self._answer()

    async def _answer(self) -> Any:
        line = await self._process.stdout.readline()
        if not line:
            raise CommandError("the process of those who look on ended")  # it has said why on stderr
        return json.loads(line)


@asynccontextmanager
async def open_bystanders(target: Target) -> AsyncIterator[Bystanders]:
    """Start them and wait until they chat; on leaving they are gone."""
    command = (sys.executable, "-m", "parley_cli.bench_bystanders", target.address, str(target.data_dir))
    process = await spawn(command, stdin=PIPE)
    try:
        bystanders = Bystanders(process)
        await bystanders.wait_ready()
        yield bystanders
    finally:
        process.signal(signal.SIGKILL)
        await process.wait()


async def _look_on(target: Target) -> None:
    """Be the process: chat, and do what stdin says, until it ends."""
    orders = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(orders), sys.stdin)
    async with open_fleet(target.address, target.token_for) as fleet:
        load = await connect_load(target, fleet, LOAD)
        offering = fleet.spawn(load.offer(_OFFER_SECONDS), "offer")
        _tell("ready")
        while order := (await orders.readline()).strip().decode():
            if order == "judge":
                offering.cancel()
            _tell(await _obey(load, order))


async def _obey(load: Load, order: str) -> object:
    if order == "begin":
        load.tally.begin_window()
        return None
    if order == "end":
        load.tally.end_window()
        await _answered(load.tally, load.tally.asked)
        return percentiles_ms(load.tally.answer_seconds)
    await load.end()
    found = vars(await load.verdict())
    return found | {name: list(found[name].items()) for name in ("faults", "judged", "broken")}


async def _answered(tally: Tally, count: int) -> None:
    """Wait until what was due in a window has its answer: what waited longest counts most."""
    with suppress(TimeoutError):
        async with asyncio.timeout(QUIET_SECONDS):
            while tally.answered < count:  # noqa: ASYNC110  # the tally tells only when all is over
                await asyncio.sleep(0.01)


def _tell(answer: object) -> None:
    print(json.dumps(answer), flush=True)  # to the process that started this one


if __name__ == "__main__":
    asyncio.run(_look_on(target_of(sys.argv[1], Path(sys.argv[2]), None)))
