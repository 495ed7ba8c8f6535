"""What every test gets: a clean environment, a home of its own, and a check that it left nothing behind.

Order and honesty of a run are here, too: cheap tiers first, and with CI=true a test that did not run is a failure.
"""

import asyncio
import functools
import gc
import inspect
import itertools
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import structlog
from engine_fixtures import begin_engines, engine_pids, provision
from engine_fixtures import begun_engines as begun_engines  # fixtures: pytest finds them here
from engine_fixtures import engines as engines
from hypothesis import settings
from workers import Workers

settings.register_profile("parley", deadline=None)  # an example's 200 ms judge the machine
settings.load_profile("parley")

# asyncio's debug mode notes where each future is made: the whole stack, with pytest's thirty frames, each with its line. The
# innermost ones say it, and a fifth of the async tests' CPU is saved.
STACK_FRAMES = 3
_walk_stack = traceback.walk_stack
traceback.walk_stack = lambda frame: itertools.islice(_walk_stack(frame), STACK_FRAMES)

# Cheap and broad first: what breaks most is told soonest. Budgets in seconds are shown, never judged: machines differ.
TIERS = {
    "unit": 30,  # the first tiers overlap: these three are what GOALS leaves to each
    "contracts": 30,
    "simulation": 60,
    "repository": 15,
    "fuzz": 15,
    "rpc": 90,
    "engines": 150,
    "system": 120,
    "chaos": 300,
}
TESTS = Path(__file__).parent
ASYNC_TEST_SECONDS = 60  # far beyond any that works: a wait that never ends fails where it waits, and the run goes on
THREAD_END_SECONDS = 5  # for a thread that was told to end; one that was not is reported after this long

SHARED = ("unit", "contracts", "simulation")  # run on all cores: their tests need little beside CPU
FEW = 50  # so few tests are over before a worker pays
ONLY_HERE = {"runs", "fates"}  # fixtures that workers do not have: what the simulation's pool computes
# What whoever changes the code waits for: seconds from the first test of these tiers to the end of the last, on two cores that
# have nothing else to do.
GOALS = {("unit", "contracts"): 30, ("unit", "contracts", "simulation"): 90}

began_by_tier: dict[str, float] = {}
ended_by_tier: dict[str, float] = {}
count_by_tier: dict[str, int] = defaultdict(int)
BEGAN = time.time()
workers: list[Workers] = []  # of this run: one


def tier_of(item: pytest.Item) -> str:
    """Return the tier of a test: its folder below tests/, or "repository" for those that judge the files themselves.

    What asks a real engine to keep a port's promises is of the suite that all implementations are held to, and comes later: engines
    have to start, and their bad days, in which they are killed, hang, or are set up anew, take the most time.
    """
    parts = item.path.relative_to(TESTS).parts
    if parts[0] in SHARED and item.get_closest_marker("engines"):
        return "engines"
    return parts[0] if len(parts) > 1 else "repository"


def pytest_addoption(parser: pytest.Parser) -> None:
    # Elsewhere than on Linux, libraries of the system do not survive a fork.
    count = len(os.sched_getaffinity(0)) if sys.platform == "linux" else 0
    parser.addoption(
        "--workers", type=int, default=count, help="processes beside pytest's own for the first tiers (tests/workers.py)"
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if isinstance(item, pytest.Function) and inspect.iscoroutinefunction(item.obj):
            item.obj = with_deadline(item.obj)
    order = list(TIERS)
    items.sort(key=lambda item: (order.index(tier) if (tier := tier_of(item)) in order else len(order), waits(item)))


def waits(item: pytest.Item) -> bool:
    """Tell whether a test waits for what began with the run: in the first tiers those that do come last."""
    return tier_of(item) in SHARED and not ONLY_HERE.isdisjoint(getattr(item, "fixturenames", ()))


@pytest.hookimpl(tryfirst=True)  # others start threads
def pytest_collection_finish(session: pytest.Session) -> None:
    option = session.config.option
    if option.collectonly:
        return
    provision(session)
    if option.workers and not (option.usepdb or option.trace or session.testsfailed):
        first = [item for item in session.items if tier_of(item) in SHARED]
        shared = [item for item in first if not waits(item)]
        if len(shared) >= FEW:
            workers.append(Workers(shared, [item for item in first if waits(item)], session.items[len(first) :]))
            workers[0].fork(session, option.workers)


def pytest_runtestloop(session: pytest.Session) -> bool | None:
    if not workers:
        return None
    workers[0].run(session)
    return True


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> None:
    if tier_of(item) not in SHARED:  # the first tiers have the cores to themselves
        begin_engines()


def with_deadline(test: Callable[..., object]) -> Callable[..., object]:
    """Let the test fail after ASYNC_TEST_SECONDS, with the stack of what it waits for."""

    @functools.wraps(test)
    async def limited(*args: object, **kwargs: object) -> None:
        async with asyncio.timeout(ASYNC_TEST_SECONDS):
            await test(*args, **kwargs)

    return limited


def not_run_is_failure(report: pytest.TestReport | pytest.CollectReport) -> None:
    """Turn a skip or an expected failure into a failure where the run is a verdict."""
    if report.skipped and os.environ.get("CI") == "true":
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"{report.nodeid} did not run, and CI=true: {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    report = yield
    not_run_is_failure(report)
    report.tier = tier_of(item)  # goes with it from a worker
    return report


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    tier = report.tier
    count_by_tier[tier] += report.when == "call"
    began_by_tier[tier] = min(report.start, began_by_tier.get(tier, report.start))
    ended_by_tier[tier] = max(report.stop, ended_by_tier.get(tier, report.stop))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Iterator[None]:
    report = yield
    not_run_is_failure(report)
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    terminalreporter.section("tiers")
    for tier, count in count_by_tier.items():
        ended = f"done {ended_by_tier[tier] - BEGAN:.0f} s after the run began"
        terminalreporter.line(f"{tier:<12}{count:>5} tests {told((tier,), TIERS.get(tier))}, {ended}")
    for tiers, budget in GOALS.items():
        if all(tier in began_by_tier for tier in tiers):
            terminalreporter.line(f"{' + '.join(tiers)}: {told(tiers, budget)}")


def told(tiers: tuple[str, ...], budget: int | None) -> str:
    """Say what tiers took, from the first test to the end of the last, beside their budget."""
    seconds = max(ended_by_tier[tier] for tier in tiers) - min(began_by_tier[tier] for tier in tiers)
    if budget is None:
        return f"{seconds:>7.1f} s"
    return f"{seconds:>7.1f} s of {budget} s{' OVER BUDGET' if seconds > budget else ''}"


@pytest.fixture(scope="session", autouse=True)
def ctrl_c_ends_children() -> None:
    """Let what tests start be ended by SIGINT, also where this run is a shell's background job, which ignores it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Give every test an environment without settings of the machine's user or of `make`, and a home that is not his."""
    for name in [name for name in os.environ if name.startswith(("PARLEY_", "XDG_", "MAKE", "MFLAGS")) or name == "ARGS"]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PARLEY_COMPILED", "0")  # this process has the sources; those that it starts use what a user's would
    monkeypatch.setenv("HOME", str(tmp_path_factory.getbasetemp() / f"home-{multiprocessing.current_process().name}"))


@pytest.fixture(autouse=True)
def own_logging() -> Iterator[None]:
    """Let no command that a test calls decide what later tests log."""
    before = structlog.get_config()
    yield
    structlog.configure(**before)


def children() -> set[str]:
    """Return the pids of this process's children, where the system tells (Linux)."""
    found: set[str] = set()
    for file in Path("/proc/self/task").glob("*/children"):
        with suppress(FileNotFoundError, ProcessLookupError):  # the thread ended while we looked
            found.update(file.read_text().split())
    return found


def threads() -> set[threading.Thread]:
    """Return the threads that a test's code must end.

    Not those that gRPC keeps for the process's life, nor those of the loop's default executor, which end with the loop.
    """
    return {thread for thread in threading.enumerate() if not thread.daemon and not thread.name.startswith("asyncio_")}


@pytest.fixture(autouse=True)
def nothing_left_behind(request: pytest.FixtureRequest, clean_environment: None) -> Iterator[None]:
    """Fail a test that leaves a child process, a thread or an asyncio task. Set up first, so that it judges after all others."""
    if inspect.iscoroutinefunction(request.function):
        request.getfixturevalue("no_task_left_behind")
    children_before, threads_before = children(), threads()
    yield
    deadline = time.monotonic() + THREAD_END_SECONDS
    for thread in threads() - threads_before:
        thread.join(max(0.0, deadline - time.monotonic()))
    left = [f"thread {thread.name}" for thread in threads() - threads_before if thread.is_alive()]
    left += [f"process {pid}" for pid in children() - children_before - engine_pids()]
    assert not left, f"left behind: {', '.join(sorted(left))}"


@pytest.fixture
async def no_task_left_behind() -> AsyncIterator[None]:
    """Fail an async test that leaves a task: its owner did not await it."""
    before = asyncio.all_tasks()
    yield
    gc.collect(0)  # an unreferenced task or coroutine complains now, in the test that made it
    left = asyncio.all_tasks() - before - {asyncio.current_task()}
    assert not left, f"tasks left behind: {sorted(task.get_name() for task in left)}"
