"""Every interleaving of two live workers on one partition, up to a number of faults, with the contract judged in every state.

A step is one of: a poll of any length, a read of one partition, the landing of one group of rows, an append, a commit, a partition
lost and regained (it goes on at the committed offset), and the faults: an engine's error or a crash at any of these, after which
what was under way may land at any later moment, or never. States that were met before are not gone into again.
"""

import gc
from collections import Counter, deque
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, TypeVar

from chassis.eventlog import LogRecord
from chassis.testing.timeline_memory import MemoryTimeline, Stored, Tables, written
from chassis.timeline import Point
from parley.log.v1.records_pb2 import CommandRecord
from services.store import rows
from services.store.config import StoreSettings
from tests.unit.store_contract import Contract, Facts
from tests.unit.store_stepper import UNAVAILABLE, Answer, Append, BrokenError, Group, Read, Run, Stepper, Write

T = TypeVar("T", bound=Hashable)
SETTINGS = StoreSettings(bucket_bits=1)


class Worker(NamedTuple):
    """One worker, by numbers of the explorer's pools."""

    memory: int
    next: int  # where its next batch begins
    done: int  # what its commit may let the offset pass
    count: int = 0  # records of the batch under way; 0: none
    answers: tuple[int, ...] = ()
    left: tuple[int, ...] = ()  # groups of the write under way that have not landed


class State(NamedTuple):
    """All of the world: tables, what was published, the committed offset, what may still land, and the workers."""

    tables: int
    facts: int
    committed: int
    late: tuple[int, ...]
    faults: int
    first: int  # the workers; which is first means nothing
    second: int


class Step(NamedTuple):
    """Something that may happen to a worker."""

    what: str
    worker: int | None  # afterwards; None: a new one, which begins at the committed offset
    fault: bool = False
    lands: int | None = None
    loses: tuple[int, ...] = ()  # what may land later, or never


class Pool(Generic[T]):
    """Numbers for values, so that states are small and compare fast."""

    def __init__(self) -> None:
        self._numbers: dict[T, int] = {}
        self._values: list[T] = []

    def number(self, value: T) -> int:
        number = self._numbers.setdefault(value, len(self._values))
        if number == len(self._values):
            self._values.append(value)
        return number

    def __getitem__(self, number: int) -> T:
        return self._values[number]


@dataclass
class Explored:
    """What an exploration saw."""

    states: int = 0
    steps: Counter[str] = field(default_factory=Counter)


class Explorer:
    """Explores one scenario: records that lie in the log, on what earlier ones have left in the tables."""

    def __init__(self, given: Sequence[CommandRecord], records: Sequence[tuple[CommandRecord, int]], *, faults_max: int) -> None:
        earlier = [self._record(offset, record, records[0][1] - 1) for offset, record in enumerate(given)]
        first = len(earlier)
        log = [*earlier, *(self._record(first + number, record, time_ms) for number, (record, time_ms) in enumerate(records))]
        self._first, self._end = first, len(log)
        self._faults_max = faults_max
        self._stepper = Stepper(log, SETTINGS)
        self._memories: Pool[bytes] = Pool()
        self._answers: list[Answer] = []
        self._answer_numbers: dict[Any, int] = {}
        self._tables: Pool[frozenset[tuple[Point, Stored]]] = Pool()
        self._facts: Pool[Facts] = Pool()
        self._late: Pool[Group | Append] = Pool()
        self._runs: dict[tuple[int, int, int, tuple[int, ...]], Run] = {}
        self._landed: dict[tuple[int, int], int] = {}
        self._appended: dict[tuple[int, int], int] = {}
        self._known_choices: dict[tuple[int, int], list[Step]] = {}
        self._known_settled: dict[tuple[int, int], int] = {}
        self._workers: Pool[Worker] = Pool()
        self._read_before: dict[tuple[int, Read], int] = {}
        self._final: dict[tuple[int, Read], bool] = {}
        self._judged: set[tuple[int, int, int]] = set()
        self.contract = Contract(first)
        self._fresh = self._memories.number(b"")
        self._begin = self._replay()

    @staticmethod
    def _record(offset: int, record: CommandRecord, time_ms: int) -> LogRecord:
        return LogRecord(offset, time_ms, record.conversation_id.encode(), record.SerializeToString())

    def _replay(self) -> State:
        """Apply the log record by record and without faults: what every other way must come to. Returns where exploring begins."""
        tables: Tables = {}
        memory, begin = b"", None
        for offset in range(self._end):
            if offset == self._first:
                begin = self._tables.number(frozenset(tables.items()))
            answers: list[Answer] = []
            told: list[Append] = []
            while (run := self._stepper.run(memory, offset, 1, answers)).request is not None:
                request, answer = run.request, None
                if isinstance(request, Read):
                    answer = _read(tables, request)
                elif isinstance(request, Write):
                    tables = written(tables, [row for group in request.groups for row in group])
                else:
                    told.append(request)
                answers.append(answer)
            memory = run.memory
            self.contract.learn(offset, tables, told)
        assert begin is not None
        self.contract.learnt()
        worker = self._workers.number(Worker(self._fresh, self._first, self._first))
        return State(begin, self._facts.number(frozenset()), self._first, (), 0, worker, worker)

    def explore(self, states_max: int = 10_000_000) -> Explored:
        """Visit every state that can be reached. Raises BrokenError with the shortest way to a state that breaks the contract."""
        gc.disable()  # a million tuples without a cycle among them: looking for some takes half of the time
        try:
            return self._explore(states_max)
        finally:
            gc.enable()

    def _explore(self, states_max: int) -> Explored:
        explored = Explored()
        came_from: dict[State, tuple[State, str] | None] = {self._begin: None}
        queue = deque([self._begin])
        while queue:
            state = queue.popleft()
            explored.states += 1
            assert explored.states <= states_max, "more states than expected: is one thing never equal to itself?"
            try:
                self._judge(state)
                for what, after in self._steps(state):
                    explored.steps[what] += 1
                    if after not in came_from:
                        came_from[after] = (state, what)
                        queue.append(after)
            except BrokenError as error:
                error.add_note("after: " + ", ".join(_way(came_from, state)))
                raise
        return explored

    def _judge(self, state: State) -> None:
        """Judge a state; which of the workers are where does not matter for it."""
        seen = state.tables, state.facts, state.committed
        if seen not in self._judged:
            self._judged.add(seen)
            tables = dict(self._tables[state.tables])
            self.contract.judge(tables, self._facts[state.facts], state.committed)

    def _steps(self, state: State) -> Iterator[tuple[str, State]]:
        """Yield what may happen next, and what it comes to."""
        tables, facts, committed, late, faults, first, second = state
        for number in late:
            left = _without(late, number)
            yield "what was late lands", self._state(*self._land(tables, facts, number), committed, left, faults, first, second)
        for one, other in ((first, second), (second, first)) if first != second else ((first, second),):
            worker = self._workers[one]
            if worker.done > committed:
                yield "commits", self._state(tables, facts, worker.done, late, faults, one, other)
            if not worker.count and worker.next != committed:
                moved = self._as_fresh(worker._replace(next=committed, done=committed), [committed])
                again = self._workers.number(moved)
                yield "regains its partition", self._state(tables, facts, committed, late, faults, again, other)
            for what, after, fault, lands, loses in self._choices(one, tables):
                if fault and faults == self._faults_max:
                    continue
                if after is None:
                    after = self._workers.number(Worker(self._fresh, committed, committed))
                landed = (tables, facts) if lands is None else self._land(tables, facts, lands)
                yield what, self._state(*landed, committed, _with(late, loses) if loses else late, faults + fault, after, other)

    def _choices(self, worker: int, tables: int) -> list[Step]:
        """Return what one worker may do, or what may happen to it, as far as it depends on no more than the tables."""
        choices = self._known_choices.get((worker, tables))
        if choices is None:
            choices = list(self._choose(self._workers[worker], tables))
            self._known_choices[worker, tables] = choices
        return choices

    def _choose(self, worker: Worker, tables: int) -> Iterator[Step]:
        if not worker.count:
            for count in range(1, self._end - worker.next + 1):
                yield self._step("polls", self._polled(worker, count))
            yield self._step("crashes between batches", None, fault=True)
            return
        request = self._run(worker).request
        if isinstance(request, Read):
            yield self._step("reads", worker._replace(answers=(*worker.answers, self._read(tables, request))))
            yield self._step("fails to read", self._failed(worker, request), fault=True)
            yield self._step("crashes at a read", None, fault=True)
        elif isinstance(request, Write):
            for group in worker.left:
                yield self._step("lands a group of rows", worker._replace(left=_without(worker.left, group)), lands=group)
            yield self._step("fails to write", self._failed(worker, request), fault=True, loses=worker.left)
            yield self._step("crashes at a write", None, fault=True, loses=worker.left)
        elif isinstance(request, Append):
            append = self._late.number(request)
            yield self._step("appends", self._answered(worker), lands=append)
            yield self._step("fails to append", self._failed(worker, request), fault=True, loses=(append,))
            yield self._step("crashes at an append", None, fault=True, loses=(append,))

    def _step(
        self, what: str, worker: Worker | None, *, fault: bool = False, lands: int | None = None, loses: tuple[int, ...] = ()
    ) -> Step:
        return Step(what, None if worker is None else self._workers.number(worker), fault, lands, loses)

    def _polled(self, worker: Worker, count: int) -> Worker:
        """Begin a batch; as a fresh worker if it forgets whatever it has known, which makes far fewer states."""
        polled = worker._replace(count=count)
        fresh = polled._replace(memory=self._fresh)
        return fresh if self._forgets(worker.memory, worker.next, count) else polled

    def _as_fresh(self, worker: Worker, places: Sequence[int]) -> Worker:
        """Take a worker that will forget all it knows wherever it goes on for one that knows nothing."""
        batches = [(place, count) for place in places for count in range(1, self._end - place + 1)]
        forgets = all(self._forgets(worker.memory, *batch) for batch in batches)
        return worker._replace(memory=self._fresh) if forgets else worker

    def _forgets(self, memory: int, first: int, count: int) -> bool:
        ask, fresh_ask = self._run(Worker(memory, first, 0, count)), self._run(Worker(self._fresh, first, 0, count))
        return (ask.request, ask.memory) == (fresh_ask.request, fresh_ask.memory)

    def _run(self, worker: Worker) -> Run:
        key = worker.memory, worker.next, worker.count, worker.answers
        run = self._runs.get(key)
        if run is None:
            answers = [self._answers[number] for number in worker.answers]
            run = self._runs[key] = self._stepper.run(self._memories[worker.memory], worker.next, worker.count, answers)
        return run

    def _answered(self, worker: Worker) -> Worker:
        return worker._replace(answers=(*worker.answers, self._answer(None)), left=())

    def _failed(self, worker: Worker, request: Any) -> Worker:
        return worker._replace(answers=(*worker.answers, self._answer(UNAVAILABLE[type(request)])), left=())

    def _answer(self, answer: Answer) -> int:
        key = repr(answer)
        if key not in self._answer_numbers:
            self._answer_numbers[key] = len(self._answers)
            self._answers.append(answer)
        return self._answer_numbers[key]

    def _land(self, tables: int, facts: int, number: int) -> tuple[int, int]:
        """Return tables and facts with a group of rows, or an append, in them."""
        landing = self._late[number]
        if isinstance(landing, Append):
            after = self._appended.get((facts, number))
            if after is None:
                after = self._facts.number(self.contract.published(self._facts[facts], landing))
                self._appended[facts, number] = after
            return tables, after
        return self._written(tables, number), facts

    def _written(self, tables: int, number: int) -> int:
        after = self._landed.get((tables, number))
        if after is None:
            group = self._late[number]
            assert not isinstance(group, Append)
            after = self._tables.number(frozenset(written(dict(self._tables[tables]), group).items()))
            self._landed[tables, number] = after
        return after

    def _changes(self, tables: int, facts: int, number: int) -> bool:
        return self._land(tables, facts, number) != (tables, facts)

    def _is_final(self, tables: int, read: Read) -> bool:
        """Tell whether the answer is the same whenever it is read from now on."""
        final = self._final.get((tables, read))
        if final is None:
            now, last = dict(self._tables[tables]), self.contract.last
            points = [point for point in {*now, *last} if point[:2] == read.place]
            final = self._final[tables, read] = all(now.get(point) == last.get(point) for point in points)
        return final

    def _read(self, tables: int, read: Read) -> int:
        answer = self._read_before.get((tables, read))
        if answer is None:
            answer = self._read_before[tables, read] = self._answer(_read(dict(self._tables[tables]), read))
        return answer

    def _state(self, tables: int, facts: int, committed: int, late: tuple[int, ...], faults: int, first: int, second: int) -> State:
        """Return a state in which has happened what makes no difference when it happens: rows that would change nothing land, reads
        that can have but one answer are answered, batches that have nothing left to do end.
        """
        if late:
            late = tuple(number for number in late if self._changes(tables, facts, number))
        first, second = self._settled(first, tables), self._settled(second, tables)
        return State(tables, facts, committed, late, faults, min(first, second), max(first, second))

    def _settled(self, worker: int, tables: int) -> int:
        settled = self._known_settled.get((worker, tables))
        if settled is None:
            settled = self._workers.number(self._settle(self._workers[worker], tables))
            self._known_settled[worker, tables] = settled
        return settled

    def _settle(self, worker: Worker, tables: int) -> Worker:
        if not worker.count:
            return worker
        run = self._run(worker)
        request, end = run.request, worker.next + worker.count
        done = end if run.done else worker.done
        if request is None:
            ended = Worker(self._memories.number(run.memory), end if run.done else worker.next, done)
            return self._as_fresh(ended, range(self._first, self._end)) if ended.next == self._end else ended
        worker = worker._replace(done=done)
        if isinstance(request, Read) and self._is_final(tables, request):
            return self._settle(worker._replace(answers=(*worker.answers, self._read(tables, request))), tables)
        if isinstance(request, Write):
            groups = worker.left or sorted(self._late.number(group) for group in request.groups)
            worker = worker._replace(left=tuple(group for group in groups if self._written(tables, group) != tables))
            return worker if worker.left else self._settle(self._answered(worker), tables)
        return worker


def _read(tables: Tables, request: Read) -> Any:
    """Answer a read from the tables as they are."""
    timeline = MemoryTimeline(rows.TABLES, tables)
    work = getattr(timeline, request.method)(*request.arguments)
    try:
        while True:
            work.send(None)
    except StopIteration as ended:
        return ended.value


def _way(came_from: dict[State, tuple[State, str] | None], state: State) -> list[str]:
    way: list[str] = []
    while (step := came_from[state]) is not None:
        state, what = step
        way.append(what)
    return way[::-1]


def _without(numbers: tuple[int, ...], number: int) -> tuple[int, ...]:
    return tuple(one for one in numbers if one != number)


def _with(numbers: tuple[int, ...], more: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(sorted({*numbers, *more}))
