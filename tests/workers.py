"""Runs the tests of cheap tiers on all cores: workers, forked when all is collected, take the next test of one list.

Meanwhile pytest itself runs what asks for something that only it has, what the simulation's pool computes, and so waits much. It
alone reports: workers tell it what they found. Why not pytest-xdist: CONTRIBUTING.md.
"""

import gc
import multiprocessing
import threading
from collections.abc import Sequence
from contextlib import suppress
from itertools import pairwise
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from queue import SimpleQueue

import pytest

CONTEXT = multiprocessing.get_context("fork")
END_SECONDS = 10  # for the tests that workers are at, and the next ones, when a run ends early

Result = tuple[str, tuple[str, int | None, str], list[dict[str, object]]]  # of a test: its id, its place, its reports


class Workers:
    """The workers of a run, and what is left for them and for pytest itself."""

    def __init__(self, shared: Sequence[pytest.Item], beside: Sequence[pytest.Item], after: Sequence[pytest.Item]) -> None:
        self._shared = shared
        self._beside = beside  # what pytest itself runs meanwhile
        self._after = after  # what it runs when all of that is reported
        self._next = CONTEXT.Value("i", 0)  # of the shared ones
        self._ends_early = CONTEXT.RawValue("b", 0)
        self._without_result = {item.nodeid for item in shared}
        self._processes: list[BaseProcess] = []
        self._listeners: list[threading.Thread] = []
        self._told: SimpleQueue[Result | None] = SimpleQueue()  # None: a worker has ended
        self._working = 0  # workers whose end was not told yet
        self._at: dict[str, str] = {}  # the test that a worker is at

    def fork(self, session: pytest.Session, count: int) -> None:
        """Begin so many. Called before anything starts a thread."""
        session.config._tmp_path_factory.getbasetemp()  # one for all
        session.config.pluginmanager.get_plugin("capturemanager").stop_global_capturing()  # its files would be shared
        gc.collect()
        gc.freeze()  # what was collected stays to the end: no later look at all objects needs to pass it, and so copy it
        ends: list[Connection] = []
        for number in range(1, count + 1):
            ours, theirs = CONTEXT.Pipe(duplex=False)
            ends.append(ours)
            process = CONTEXT.Process(target=self._work, args=(session, theirs, ends), name=f"worker-{number}")
            process.start()
            theirs.close()  # so that the end of the worker is heard
            self._processes.append(process)
        capture_again(session)
        for process, end in zip(self._processes, ends, strict=True):
            self._listeners.append(threading.Thread(target=self._listen, args=(process.name, end), daemon=True))
            self._listeners[-1].start()
        self._working = count

    def run(self, session: pytest.Session) -> None:
        """Run what is left for pytest itself, and report what comes of all."""
        try:
            for at, (item, following) in enumerate(pairwise([*self._beside, *self._after, None])):
                if at >= len(self._beside):
                    self._gather(session)
                assert item is not None
                item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
                while not self._told.empty():
                    self._report(session, self._told.get())
                stop_if_asked(session)
            self._gather(session)
        finally:
            self._ends_early.value = 1
            for process in self._processes:
                process.join(END_SECONDS)
                process.kill()  # one that hangs: the others have ended
                process.join()

    def _gather(self, session: pytest.Session) -> None:
        """Report what workers find, to their ends. A test without a result fails the run: its worker came to no good end."""
        while self._working:
            self._report(session, self._told.get())
            stop_if_asked(session)
        if self._without_result:
            for process in self._processes:
                process.join()
            ends = ", ".join(f"{each.name} ended with {each.exitcode} in {self._at.get(each.name)}" for each in self._processes)
            session.shouldfail = f"{len(self._without_result)} tests have no result: {ends}"
            stop_if_asked(session)

    def _take_shared(self) -> pytest.Item | None:
        with self._next.get_lock():
            if self._ends_early.value or self._next.value == len(self._shared):
                return None
            self._next.value += 1
            return self._shared[self._next.value - 1]

    def _listen(self, name: str, end: Connection) -> None:
        try:
            with suppress(EOFError, OSError):  # OSError: it died in the midst of a word
                while True:
                    told = end.recv()
                    if isinstance(told, str):
                        self._at[name] = told
                    else:
                        self._told.put(told)
        finally:
            end.close()  # a worker that nobody hears ends, too
            self._told.put(None)

    def _report(self, session: pytest.Session, result: Result | None) -> None:
        """Report what a worker has found."""
        if result is None:
            self._working -= 1
            return
        hook = session.config.hook
        nodeid, location, reports = result
        self._without_result.discard(nodeid)
        hook.pytest_runtest_logstart(nodeid=nodeid, location=location)
        for data in reports:
            hook.pytest_runtest_logreport(report=hook.pytest_report_from_serializable(config=session.config, data=data))
        hook.pytest_runtest_logfinish(nodeid=nodeid, location=location)

    def _work(self, session: pytest.Session, end: Connection, inherited: Sequence[Connection]) -> None:
        for listening in inherited:
            listening.close()  # pytest's alone: if that is killed, what is told meets nobody, and the worker ends
        capture_again(session)
        plugins = session.config.pluginmanager
        plugins.unregister(name="terminalreporter")
        plugins.register(Teller(session.config, end))
        try:
            with suppress(KeyboardInterrupt, session.Failed, session.Interrupted, BrokenPipeError):
                item = self._take_shared()
                while item is not None:
                    following = self._take_shared()  # one ahead: it says which fixtures go on
                    item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
                    stop_if_asked(session)
                    item = following
        finally:
            session._setupstate.teardown_exact(None)  # of fixtures that were to go on, as pytest itself at its end


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
