"""A store's worker stepped by hand: the real apply loop, stopped wherever it asks an engine for something.

Coroutines can't be copied, so a step begins at the batch's start and is handed all answers so far again: what a worker asks next is
a function of its memory, its batch and these answers, which also is what two equal states are told by.
"""

import io
import pickle
import random
import types
from collections.abc import Generator, Hashable, Mapping, Sequence
from typing import Any, NamedTuple, NoReturn

from prometheus_client import CollectorRegistry

from chassis.clock import SystemClock
from chassis.eventlog import LogBatch, LogEntry, LogRecord, LogUnavailableError
from chassis.timeline import Cell, Point, Row, TimelineUnavailableError
from services.store.apply import Applier
from services.store.config import StoreSettings
from services.store.metrics import StoreMetrics
from services.store.recent import RecentEvents
from services.store.rows import INBOX, STOP

Group = tuple[Row, ...]  # of one (table, partition): applied together or not at all
Answer = Mapping[Point, bytes] | Mapping[str, Sequence[Cell]] | Exception | None
PARTITION = 0


class BrokenError(Exception):
    """The contract is broken in this state."""


class Read(NamedTuple):
    """A read of one partition of one table: others of the same call may be read at other moments."""

    method: str
    arguments: tuple[Hashable, ...]
    place: tuple[str, str]  # table and partition


class Write(NamedTuple):
    """Groups that land in any order; the worker goes on when all have."""

    groups: tuple[Group, ...]


class Append(NamedTuple):
    """An append to a topic."""

    topic: str
    values: tuple[bytes, ...]


Request = Read | Write | Append


class Run(NamedTuple):
    """Where a worker is: what it asks for, or how its batch ended, with the memory that it goes on with."""

    request: Request | None
    done: bool  # the offset may pass the batch
    memory: bytes = b""


UNAVAILABLE = {
    Read: TimelineUnavailableError("the read failed"),
    Write: TimelineUnavailableError("some of it may be written"),
    Append: LogUnavailableError("some of it may be in the log"),
}


@types.coroutine
def _ask(request: Request) -> Generator[Request, Answer, Any]:
    return (yield request)


class _Ports:
    """Timeline and EventLog of the worker: whatever it asks, the stepper is told and answers."""

    epoch = 1

    async def write(self, rows: Sequence[Row]) -> None:
        groups: dict[tuple[str, str], list[Row]] = {}
        for row in rows:
            # Inbox rows land together: no worker ever reads them, and the contract judges rows one by one.
            place = (row.table, row.partition) if row.table != INBOX else (INBOX, "")
            groups.setdefault(place, []).append(row)
        await _ask(Write(tuple(map(tuple, groups.values()))))

    async def append(self, topic: str, partition: int, entries: Sequence[LogEntry]) -> None:
        await _ask(Append(topic, tuple(entry.value for entry in entries)))

    async def read_points(self, points: Sequence[Point]) -> Mapping[Point, bytes]:
        found: dict[Point, bytes] = {}
        for place in dict.fromkeys(point[:2] for point in points):
            found |= await _ask(Read("read_points", (tuple(point for point in points if point[:2] == place),), place))
        return found

    async def read_partitions(self, table: str, partitions: Sequence[str], limit: int = 0) -> Mapping[str, Sequence[Cell]]:
        found: dict[str, Sequence[Cell]] = {}
        if table == STOP:  # where a worker stops the exploration ends: there is nothing to find
            return found
        for partition in partitions:
            found |= await _ask(Read("read_partitions", (table, (partition,), limit), (table, partition)))
        return found


class _Consumer:
    def __init__(self) -> None:
        self.told = ""

    def done(self, batch: LogBatch) -> None:
        self.told = "done"

    def retry(self, batch: LogBatch) -> None:
        self.told = "retry"


class _NoWait:
    def failed(self, key: int) -> float:
        return 0.0  # asyncio.sleep(0) needs no loop

    def succeeded(self, key: int) -> None:
        """Nothing to forget."""


async def _broken(*_: object) -> NoReturn:
    raise BrokenError("the worker stopped its partition")


class Stepper:
    """Runs batches of the records; of one stepper all workers are made, for what a worker is lies in what it is handed."""

    def __init__(self, records: Sequence[LogRecord], settings: StoreSettings) -> None:
        self.records = records
        self._ports: Any = _Ports()
        self._applier = Applier(
            settings,
            log=self._ports,
            timeline=self._ports,
            recent=RecentEvents(settings.recent_bytes),
            clock=SystemClock(),
            metrics=StoreMetrics(CollectorRegistry()),
            rng=random.Random(0),
        )
        self._applier._backoff = _NoWait()  # type: ignore[assignment]
        self._applier._stay_stopped = _broken  # type: ignore[method-assign]

    def run(self, memory: bytes, first: int, count: int, answers: Sequence[Answer]) -> Run:
        """Process `count` records from `first` on, with these answers to the first requests. Raises BrokenError on a stop."""
        self._applier._memories = self._memories_of(memory)
        consumer: Any = _Consumer()
        work = self._applier._process(consumer, LogBatch(PARTITION, self.records[first : first + count]))
        left = list(answers)
        try:
            request = work.send(None)
            while left or request is None:  # None: it only sleeps, for no time
                answer = None if request is None else left.pop(0)
                request = work.throw(answer) if isinstance(answer, Exception) else work.send(answer)
        except StopIteration:
            return Run(None, consumer.told == "done", self._memory())
        else:
            run = Run(request, consumer.told == "done", self._memory())
            work.close()
            return run

    def _memory(self) -> bytes:
        """Return what the worker remembers, as bytes that are equal for equal contents."""
        buffer = io.BytesIO()
        pickler = _Pickler(buffer, self._ports)
        pickler.fast = True  # without references to what was pickled before: what is shared must look like what is equal
        pickler.dump(self._applier._memories)
        return buffer.getvalue()

    def _memories_of(self, memory: bytes) -> dict[int, Any]:
        return _Unpickler(io.BytesIO(memory), self._ports).load() if memory else {}


class _Pickler(pickle.Pickler):
    def __init__(self, file: io.BytesIO, ports: object) -> None:
        super().__init__(file, 5)
        self._ports = ports

    def persistent_id(self, thing: object) -> object:
        return "ports" if thing is self._ports else None


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, ports: object) -> None:
        super().__init__(file)
        self._ports = ports

    def persistent_load(self, _name: object) -> object:
        return self._ports
