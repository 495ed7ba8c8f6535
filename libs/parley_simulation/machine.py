"""The machine that all engines stand on, in the embedded form: its power fails, and the disk has what it had by then.

What SQLite and write-behind do is real (`chassis.embedded`), as on a folder: commands are synced before anybody hears of them;
rows, events and offsets come to the tables a moment later. What is simulated is the disk: a sync of the commands takes a while, and
the tables get to the platter now and then.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, closing

from chassis.clock import Clock
from chassis.embedded import COMMANDS_FILE, TABLES_FILE, EmbeddedEngines, MemoryDisk, open_embedded_engines
from chassis.testing.faults import POWER_LOST, Faults

Opening = Callable[[MemoryDisk], AbstractAsyncContextManager[EmbeddedEngines]]


class Machine:
    """Engines and their disk; opened by `open_machine`. Whoever begins waits for `is_on` and takes `engines` then."""

    def __init__(self, faults: Faults, opening: Opening, on_opened: Callable[[EmbeddedEngines], None]) -> None:
        self.engines: EmbeddedEngines
        self.is_on = asyncio.Event()
        self._power = faults.stream("power")
        self._opening = opening
        self._on_opened = on_opened
        self._disk = MemoryDisk(faults.stream("disk").latency)
        self._off = asyncio.Event()
        self._ended = False
        self._restored: EmbeddedEngines | None = None

    async def run(self) -> None:
        """Have engines, whenever there is power, until `end`. Raises what keeps them from opening."""
        with closing(self._disk):
            while not self._ended:
                self._off.clear()
                async with self._opening(self._disk) as self.engines:
                    if self._restored is None:
                        self._restored = self.engines
                    self._on_opened(self.engines)
                    self.is_on.set()
                    await self._off.wait()

    def end(self) -> None:
        """Stop in order."""
        self._ended = True
        self._off.set()

    async def lose_power_sometimes(self, kill_all: Callable[[], None]) -> None:
        """Lose power every now and then, until cancelled; `kill_all` ends the processes."""
        stream = self._power
        while True:
            for _ in range(stream.rng.randint(1, 8)):
                await asyncio.sleep(stream.rng.uniform(0.0, 10.0))
                self._disk.sync_tables()
            await asyncio.sleep(stream.rng.uniform(0.0, 10.0))
            if self.is_on.is_set() and stream.happens(POWER_LOST):
                # What the kernel writes back by itself it writes in order: often nothing since the last sync, at times all.
                written_back = [name for name in (COMMANDS_FILE, TABLES_FILE) if stream.rng.random() < 0.3]
                stream.note(f"loses all but {written_back}")
                kill_all()
                self.is_on.clear()
                self._disk.lose_power(written_back=written_back)
                self._off.set()

    async def wait_restored(self, topic: str, group: str) -> None:
        """Wait until a group has done again what a loss of power took from the tables: nobody is served before (ADR 0017)."""
        engines = self.engines
        if self._restored is not engines:
            await engines.log.wait_done(topic, group)
            self._restored = engines


@asynccontextmanager
async def open_machine(
    faults: Faults,
    on_opened: Callable[[EmbeddedEngines], None],
    *,
    topics: Mapping[str, int],
    durable_topics: Sequence[str],
    tables: Sequence[str],
    clock: Clock,
) -> AsyncIterator[tuple[Machine, asyncio.Task[None]]]:
    """Switch a machine on; `on_opened` is called whenever it has power. The task never ends unless engines can't be opened."""

    def opening(disk: MemoryDisk) -> AbstractAsyncContextManager[EmbeddedEngines]:
        return open_embedded_engines(
            disk, topics=topics, durable_topics=durable_topics, tables=tables, clock=clock, writes_behind=True
        )

    machine = Machine(faults, opening, on_opened)
    task = asyncio.create_task(machine.run())
    is_on = asyncio.create_task(machine.is_on.wait())
    try:
        await asyncio.wait((task, is_on), return_when=asyncio.FIRST_COMPLETED)
        is_on.cancel()
        if task.done():
            task.result()
        yield machine, task
    finally:
        machine.end()
        await task
