"""Runs plans: one, many, or one again and again until it is small. A violation is a result here, no exception."""

import gc
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from itertools import islice
from typing import ParamSpec, TypeVar

from chassis.testing.faults import WALL_JUMP
from parley_checker.guarantees import Guarantee
from parley_simulation.plan import Plan, Scene
from parley_simulation.reports import Report
from parley_simulation.shrink import TRIES_MAX, shrink
from parley_simulation.store_world import run_seed
from parley_simulation.world import run_world

Params = ParamSpec("Params")
T = TypeVar("T")
Run = tuple[Plan, Report]

_CHUNK = 4  # plans handed to a process at once: a second of work, so that progress moves and handing over costs nothing


def run(plan: Plan, *, keep_trace: bool = False) -> Report:
    """Run a plan. Whatever ends it other than a kept contract is in `Report.broken`."""
    report = Report()
    try:
        if plan.scene is Scene.SYSTEM:
            run_world(plan.seed, plan=plan, keep_trace=keep_trace, report=report)
        else:
            run_seed(plan.seed, plan=plan, keep_trace=keep_trace, report=report)
    except Exception as error:  # a broken contract, a deadlock, a bug anywhere: all are what we look for
        report.blame(error)
    if jumps := report.faults[WALL_JUMP]:  # G20 is that all others hold while clocks jump
        report.verdict.judged[Guarantee.CLOCKS] += jumps
        report.verdict.broken[Guarantee.CLOCKS] += bool(report.broken)
    return report


class Pool:
    """Processes that run plans; made by `open_pool`."""

    def __init__(self, executor: ProcessPoolExecutor) -> None:
        self._executor = executor

    def submit(self, plans: Sequence[Plan]) -> Future[list[Run]]:
        """Have one of the processes run these plans, after what it was given before."""
        return self.call(_run_all, plans)

    def call(self, function: Callable[Params, T], *args: Params.args, **kwargs: Params.kwargs) -> Future[T]:
        """Have one of the processes call a function, which it must be able to import, after what it was given before."""
        return self._executor.submit(function, *args, **kwargs)

    def end_when_done(self) -> None:
        """Take no more plans: each process ends when it has nothing left to run."""
        self._executor.shutdown(wait=False)


@contextmanager
def open_pool(jobs: int, *, niceness: int = 0) -> Iterator[Pool]:
    """Start so many processes, so much nicer than this one; leaving ends them after what they are at, and drops what they have
    not begun. They end with this process, however that ends.
    """
    # Spawned, not forked: what the parent has loaded may have threads.
    executor = ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), _begin_process, (niceness,))
    try:
        yield Pool(executor)
    finally:
        executor.shutdown(cancel_futures=True)


def run_many(plans: Iterable[Plan], jobs: int) -> Iterator[Run]:
    """Run plans in so many processes; yield each with its report, in the order in which they end. Traces are not kept."""
    if jobs == 1:
        for plan in plans:
            yield from _run_all([plan])
        return
    left = iter(plans)
    running: set[Future[list[Run]]] = set()
    with open_pool(jobs) as pool:
        while True:
            while len(running) < 2 * jobs and (chunk := list(islice(left, _CHUNK))):
                running.add(pool.submit(chunk))
            if not running:
                return
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                yield from future.result()


def cores() -> int:
    """Return how many processes can run at a time here."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _begin_process(niceness: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to hear
    os.nice(niceness)
    gc.collect()
    gc.freeze()  # modules stay: each look at all objects would pass them in vain
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Wait for nothing more once nobody can ask: the queue of a killed parent never ends."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _run_all(plans: Iterable[Plan]) -> list[Run]:
    runs = []
    for plan in plans:
        report = run(plan)
        report.trace, report.positions = (), {}
        runs.append((plan, report))
    return runs


def smallest(plan: Plan, report: Report, tries: int = TRIES_MAX) -> Plan:
    """Return the smallest plan found that breaks the same as the report's."""
    return shrink(plan, lambda candidate: _what_broke(run(candidate)) == _what_broke(report), tries)


def _what_broke(report: Report) -> str:
    """Return what the first story is about: up to its first colon."""
    return report.broken[0].partition(":")[0] if report.broken else ""
