"""Runs the tests of cheap tiers on all cores: workers, forked when all is collected, take the next test of one list.

So does pytest itself, which alone runs, in its place among the others, what asks for something that only it has (engines, what the
simulation's pool computes), and alone reports: workers tell it what they found. Not pytest-xdist: each of its workers imports and
collects for itself, and would have engines and a pool of its own.
"""

import multiprocessing
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from queue import Empty, SimpleQueue

import pytest

FEW = 50  # so few tests are over before a worker pays
CONTEXT = multiprocessing.get_context("fork")

Result = tuple[str, tuple[str, int | None, str], list[dict[str, object]]]  # of a test: its id, its place, its reports


class Workers:
    """The workers of a run, and what is left for them and for pytest itself."""

    def __init__(self, items: Iterable[pytest.Item], shared: Callable[[pytest.Item], bool]) -> None:
        self._shared: list[tuple[int, pytest.Item]] = []
        self._own: deque[tuple[int, pytest.Item]] = deque()
        for at, item in enumerate(items):
            (self._shared if shared(item) else self._own).append((at, item))
        self._last = self._shared[-1][0] if self._shared else -1
        self._next = CONTEXT.Value("i", 0)  # of the shared ones
        self._without_result = {item.nodeid for _, item in self._shared}
        self._is_past = False  # the next test is one after all that are shared
        self._processes: list[BaseProcess] = []
        self._listeners: list[threading.Thread] = []
        self._told: SimpleQueue[Result] = SimpleQueue()
        self._at: dict[str, str] = {}  # the test that a worker is at

    def fork(self, session: pytest.Session, count: int) -> None:
        """Begin so many, if there is enough for them to do. Called before anything starts a thread."""
        if len(self._shared) < FEW:
            return
        session.config._tmp_path_factory.getbasetemp()  # one for all
        session.config.pluginmanager.get_plugin("capturemanager").stop_global_capturing()  # its files would be shared
        ends: list[Connection] = []
        for number in range(1, count + 1):
            ours, theirs = CONTEXT.Pipe(duplex=False)
            process = CONTEXT.Process(target=self._work, args=(session, theirs), name=f"worker-{number}")
            process.start()
            theirs.close()  # so that the end of the worker is heard
            self._processes.append(process)
            ends.append(ours)
        capture_again(session)
        for process, end in zip(self._processes, ends, strict=True):
            self._listeners.append(threading.Thread(target=self._listen, args=(process.name, end), daemon=True))
            self._listeners[-1].start()

    def run(self, session: pytest.Session) -> None:
        """Run what is left for pytest itself, and report what comes of all: of the shared ones before any after them begins."""
        try:
            run(session, self._take, lambda: self._report(session))
            self._gather(session)
        finally:
            for process in self._processes:
                process.terminate()  # those of a run that ends early: the others have ended
                process.join()

    def _take(self) -> pytest.Item | None:
        """Return the next test for pytest itself, in the order of all."""
        before = self._own[0][0] if self._own else sys.maxsize
        if (item := self._take_shared(before)) is not None:
            self._without_result.discard(item.nodeid)
            return item
        self._is_past = before > self._last
        return self._own.popleft()[1] if self._own else None

    def _gather(self, session: pytest.Session) -> None:
        """Wait for what workers are at, and report it. A test without a result fails the run: its worker came to no good end."""
        for listener in self._listeners:
            listener.join()
        self._report_told(session)
        stop_if_asked(session)
        if self._without_result:
            for process in self._processes:
                process.join()
            ends = ", ".join(f"{each.name} ended with {each.exitcode} in {self._at.get(each.name)}" for each in self._processes)
            session.shouldfail = f"{len(self._without_result)} tests have no result: {ends}"
            stop_if_asked(session)

    def _report(self, session: pytest.Session) -> None:
        if self._is_past:
            self._gather(session)
        else:
            self._report_told(session)

    def _take_shared(self, before: int = sys.maxsize) -> pytest.Item | None:
        with self._next.get_lock():
            if self._next.value == len(self._shared) or self._shared[self._next.value][0] > before:
                return None
            self._next.value += 1
            return self._shared[self._next.value - 1][1]

    def _listen(self, name: str, end: Connection) -> None:
        with suppress(EOFError):
            while True:
                told = end.recv()
                if isinstance(told, str):
                    self._at[name] = told
                else:
                    self._told.put(told)

    def _report_told(self, session: pytest.Session) -> None:
        """Report what workers have found until now."""
        hook = session.config.hook
        with suppress(Empty):
            while True:
                nodeid, location, reports = self._told.get_nowait()
                self._without_result.discard(nodeid)
                hook.pytest_runtest_logstart(nodeid=nodeid, location=location)
                for data in reports:
                    hook.pytest_runtest_logreport(report=hook.pytest_report_from_serializable(config=session.config, data=data))
                hook.pytest_runtest_logfinish(nodeid=nodeid, location=location)

    def _work(self, session: pytest.Session, end: Connection) -> None:
        capture_again(session)
        plugins = session.config.pluginmanager
        plugins.unregister(name="terminalreporter")
        plugins.register(Teller(session.config, end))
        with suppress(KeyboardInterrupt, session.Failed, session.Interrupted):
            run(session, self._take_shared, lambda: None)


class Teller:
    """A plugin of a worker: tells pytest itself what comes of each test."""

    def __init__(self, config: pytest.Config, end: Connection) -> None:
        self._config = config
        self._end = end
        self._reports: list[dict[str, object]] = []

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._end.send(nodeid)
        self._reports = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._reports.append(self._config.hook.pytest_report_to_serializable(config=self._config, report=report))

    def pytest_runtest_logfinish(self, nodeid: str, location: tuple[str, int | None, str]) -> None:
        self._end.send((nodeid, location, self._reports))


def run(session: pytest.Session, take: Callable[[], pytest.Item | None], after_each: Callable[[], None]) -> None:
    """Run one test after the other, as pytest's own loop does. One ahead is taken: it says which fixtures go on."""
    item = take()
    while item is not None:
        following = take()
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
        after_each()
        stop_if_asked(session)
        item = following


def stop_if_asked(session: pytest.Session) -> None:
    """End the loop after a failure, with -x, or where a plugin asked for it."""
    if session.shouldfail:
        raise session.Failed(session.shouldfail)
    if session.shouldstop:
        raise session.Interrupted(session.shouldstop)


def capture_again(session: pytest.Session) -> None:
    """Capture what tests print into files of this process, from the next test on."""
    capture = session.config.pluginmanager.get_plugin("capturemanager")
    capture.start_global_capturing()
    capture.suspend_global_capture()
