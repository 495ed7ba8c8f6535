"""Run the tests of one module against each of its mutants, each in a fork of a process that has collected them already.

A fresh interpreter a mutant would spend its seconds on imports. A mistake inside a function is put into the collected module: the
live function gets its new code. One outside of functions (constants, defaults, fields) needs its module imported anew: its fork
comes from a process that has imported nothing of ours yet.
"""

import gc
import importlib.abc
import importlib.util
import os
import pickle
import resource
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from enum import Enum
from pathlib import Path
from types import CodeType, FrameType, FunctionType, ModuleType

import pytest

from tests.mutation_run.mutants import Mutant

CPU_GRACE_SECONDS = 3  # on top of thrice what the tests take: a mutant that computes on and on is ended then
WAITS = 25  # wall time by CPU time allowed, for a mutant that waits for what never comes, on a machine that others use as well
MEMORY_BYTES = 8 << 30  # address space, of which gRPC alone reserves much: a mutant that grows without end is stopped
COMPUTES = 0x1  # CO_OPTIMIZED: the code of a function, not of a class or a module


# What tests leave in files; of this run alone, for its end takes it away, and tests that fail for want of it kill anything.
TEMPORARY = Path(f"build/mutation-run/tmp-{os.getpid()}")
QUIET = (
    *("-q", "--tb=no", "-p", "no:cacheprovider", "--workers=0", "-o", "asyncio_debug=false", "--hypothesis-seed=0"),
    *("-W", "ignore::pytest.PytestAssertRewriteWarning"),  # of plugins that are imported already
)
Name = tuple[str, int]  # of a function, with its line


class Fate(Enum):
    """What became of a mutant."""

    KILLED = "killed"
    SURVIVED = "survived"
    TIMEOUT = "timeout"
    ELSEWHERE = "not in a function"  # has to be tried with the module imported anew


class BaselineError(Exception):
    """The tests fail without any mutant: they would prove nothing."""


class Judge:
    """A pytest plugin: notes failures and what each test takes, and runs no more after the first failure."""

    def __init__(self) -> None:
        self.failed: list[str] = []
        self.seconds: dict[str, float] = {}
        self.called: dict[Name, set[str]] = {}  # functions by the tests that called them

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.seconds[report.nodeid] = self.seconds.get(report.nodeid, 0.0) + report.duration
        if report.failed:
            self.failed.append(report.nodeid)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.failed.append(report.nodeid)

    def run(self, items: Sequence[pytest.Item]) -> bool:
        """Run the tests until one fails; tell whether all passed."""
        for item, following in zip(items, [*items[1:], None], strict=True):
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            if self.failed:
                return False
        return True

    def run_watched(self, items: Sequence[pytest.Item], file: str) -> bool:
        """The same, and note which functions of the file each test calls."""
        nodeid = ""

        def note(frame: FrameType, event: str, _: object) -> None:
            if event == "call" and frame.f_code.co_filename == file:
                self.called.setdefault(named(frame.f_code), set()).add(nodeid)

        sys.setprofile(note)
        threading.setprofile(note)
        for item, following in zip(items, [*items[1:], None], strict=True):
            nodeid = item.nodeid
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
        sys.setprofile(None)
        return not self.failed


class Forks(Judge):
    """The same, but collected tests are run in forks: once as they are, then once for each mutant."""

    def __init__(self, module: str, path: Path, mutants: Sequence[Mutant], jobs: int, tell: Callable[[int, Fate], None]) -> None:
        super().__init__()
        self._module, self._path, self._mutants, self._jobs, self._tell = module, path, mutants, jobs, tell
        self.fates: list[Fate] = []

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        if self.failed or not session.items:
            raise BaselineError(f"these tests cannot be collected, or there are none: {self.failed}")
        session.config._tmp_path_factory.getbasetemp()  # made here, all forks share it
        before = sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])
        self.seconds, self.called, failed = in_fork(
            lambda: (self.run_watched(session.items, str(self._path)), self.seconds, self.called, self.failed)[1:]
        )
        if failed:
            raise BaselineError(f"without a mutant already: {failed}")
        cpu_seconds = sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2]) - before
        items = sorted(session.items, key=lambda item: self.seconds[item.nodeid])  # most mutants fall to the first and cheapest
        module = sys.modules[self._module]
        original = compile(self._path.read_text(), str(self._path), "exec", dont_inherit=True)
        live = [each for each in gc.get_objects() if isinstance(each, FunctionType) and each.__globals__ is vars(module)]
        gc.collect()
        gc.freeze()  # what is here already is not looked at, so not copied, by every fork

        def judge(mutant: Mutant) -> Fate:
            changes = changed(original, compile(mutant.source, str(self._path), "exec", dont_inherit=True))
            if changes is None or not put(live, changes):
                return Fate.ELSEWHERE
            callers = set().union(*(self.called.get(named(old), set()) for old, _ in changes))
            return Fate.SURVIVED if self.run([item for item in items if item.nodeid in callers]) else Fate.KILLED

        self.fates = judge_all(self._mutants, judge, self._jobs, limit_seconds(cpu_seconds), self._tell)
        self.cpu_seconds = cpu_seconds
        return True


def limit_seconds(cpu_seconds: float) -> int:
    """Return how much CPU a mutant gets of which the tests take so much without it."""
    return int(3 * cpu_seconds) + CPU_GRACE_SECONDS


def judge_module(
    module: str, path: Path, tests: Sequence[str], mutants: Sequence[Mutant], jobs: int, tell: Callable[[int, Fate], None]
) -> list[Fate]:
    """Return what became of each mutant. Raises BaselineError."""

    def collected() -> tuple[list[Fate], float]:
        forks = Forks(module, path, mutants, jobs, tell)
        run_pytest(tests, forks)
        return forks.fates, forks.cpu_seconds

    fates, cpu_seconds = in_fork(collected)
    anew = [number for number, fate in enumerate(fates) if fate is Fate.ELSEWHERE]

    def judge(mutant: Mutant) -> Fate:
        sys.meta_path.insert(0, _Mutated(module, path, mutant.source))
        plugin = Judge()
        code = run_pytest(["-x", *tests], plugin)
        return Fate.SURVIVED if code == 0 and not plugin.failed else Fate.KILLED

    limit = limit_seconds(cpu_seconds + 3)  # it imports and collects as well
    found = judge_all([mutants[number] for number in anew], judge, jobs, limit, lambda place, fate: tell(anew[place], fate))
    for number, fate in zip(anew, found, strict=True):
        fates[number] = fate
    return fates


def run_pytest(arguments: Sequence[str], plugin: object) -> int:
    """Run pytest in this process, as equal in every run as it can be."""
    temporary = TEMPORARY.absolute() / str(os.getpid())
    temporary.parent.mkdir(parents=True, exist_ok=True)
    return int(pytest.main([*QUIET, f"--basetemp={temporary}", *arguments], plugins=[plugin, _Hypothesis()]))


class _Hypothesis:
    """Search as always, but spend no time on small examples, and leave no traces of mutants in the database of the right code."""

    def pytest_configure(self) -> None:
        from hypothesis import HealthCheck, Phase, settings

        phases, checks = (Phase.explicit, Phase.generate), list(HealthCheck)
        settings.register_profile("mutants", database=None, deadline=None, phases=phases, suppress_health_check=checks)
        settings.load_profile("mutants")


def judge_all(
    mutants: Sequence[Mutant], judge: Callable[[Mutant], Fate], jobs: int, cpu_seconds: int, tell: Callable[[int, Fate], None]
) -> list[Fate]:
    """Judge each mutant in a fork, `jobs` at once, and end those that go on for longer than allowed."""
    fates = [Fate.TIMEOUT] * len(mutants)
    running: dict[int, int] = {}
    waiting = iter(range(len(mutants)))
    order = list(Fate)
    while True:
        while len(running) < jobs and (number := next(waiting, None)) is not None:
            if pid := os.fork():
                running[pid] = number
                continue
            code = len(order)
            try:
                _bound(cpu_seconds)
                code = order.index(judge(mutants[number]))
            except BaseException:  # whatever a mutant does to pytest itself
                code = order.index(Fate.KILLED)
            finally:
                os._exit(code)
        if not running:
            return fates
        pid, status = os.wait()
        number = running.pop(pid)
        if os.WIFEXITED(status) and os.WEXITSTATUS(status) < len(order):
            fates[number] = order[os.WEXITSTATUS(status)]
        elif not os.WIFSIGNALED(status) or os.WTERMSIG(status) not in (signal.SIGXCPU, signal.SIGALRM):
            fates[number] = Fate.KILLED
        tell(number, fates[number])


def _bound(cpu_seconds: int) -> None:
    silence = os.open(os.devnull, os.O_RDWR)
    for stream in (1, 2):
        os.dup2(silence, stream)
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds + 1))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.alarm(WAITS * cpu_seconds)


def in_fork(work: Callable[[], object]) -> object:
    """Return what `work` returns, done in a fork that prints nothing; what it raises is raised here."""
    reader, writer = os.pipe()
    if not (pid := os.fork()):
        silence = os.open(os.devnull, os.O_RDWR)
        for stream in (1, 2):
            os.dup2(silence, stream)
        try:
            result = (work(), None)
        except BaseException as error:
            result = (None, error)
        with os.fdopen(writer, "wb") as stream:
            pickle.dump(result, stream)
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as stream:
        told = stream.read()
    os.waitpid(pid, 0)
    result, error = pickle.loads(told) if told else (None, BaselineError("the process that runs the tests died"))
    if error is not None:
        raise error
    return result


def named(code: CodeType) -> Name:
    return code.co_qualname, code.co_firstlineno


def changed(original: CodeType, mutated: CodeType) -> list[tuple[CodeType, CodeType]] | None:
    """Return the functions that differ, each with its new code; None if something outside of functions does."""
    if original == mutated:
        return []
    if original.co_flags & COMPUTES:
        return [(original, mutated)]
    if _shell(original) != _shell(mutated):
        return None
    found: list[tuple[CodeType, CodeType]] = []
    for old, new in zip(_inner(original), _inner(mutated), strict=True):
        part = changed(old, new)
        if part is None:
            return None
        found += part
    return found


def _inner(code: CodeType) -> Iterator[CodeType]:
    return (const for const in code.co_consts if isinstance(const, CodeType))


def _shell(code: CodeType) -> tuple[object, ...]:
    plain = [repr(const) for const in code.co_consts if not isinstance(const, CodeType)]
    return code.co_name, code.co_code, code.co_names, plain, [inner.co_name for inner in _inner(code)]


def put(live: Sequence[FunctionType], changes: Sequence[tuple[CodeType, CodeType]]) -> bool:
    """Give live functions their new code; tell whether each was there and could take it."""
    for old, new in changes:
        functions = [function for function in live if function.__code__ == old]
        if not functions or len(old.co_freevars) != len(new.co_freevars):
            return False
        for function in functions:
            function.__code__ = new
    return True


class _Mutated(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Lets one module be imported with a mistake in it."""

    def __init__(self, name: str, path: Path, source: str) -> None:
        self._name, self._path, self._source = name, path, source

    def find_spec(self, fullname: str, path: object = None, target: ModuleType | None = None) -> object:
        return importlib.util.spec_from_file_location(fullname, self._path, loader=self) if fullname == self._name else None

    def exec_module(self, module: ModuleType) -> None:
        exec(compile(self._source, str(self._path), "exec", dont_inherit=True), vars(module))
