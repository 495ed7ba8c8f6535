"""What every test run takes of the simulation, on all cores: seeds, and rules that are broken on purpose.

They are begun when the run begins, with the lowest priority: tests of earlier tiers now and then wait, for disks, for timers, and
for each other. The tests of this tier judge what came of them.
"""

from collections.abc import Mapping
from concurrent.futures import Future
from contextlib import ExitStack

import pytest

from parley_simulation.plan import Plan, Scene
from parley_simulation.runs import Run, cores, open_pool
from tests.simulation import mutants

SEEDS = {Scene.SYSTEM: 100, Scene.STORE: 200}
CHUNK = 10  # a test's share: far below the time after which a test counts as hung, also on a machine that does other things
SEEDS_MAX = 60  # a rule whose breach shows more rarely than that is not proven by the seeds that every test run takes
NICENESS = 19  # what is left by tests, which wait now and then; all of it when they wait for these

_runs: dict[tuple[Scene, int], Future[list[Run]]] = {}
_fates: dict[str, Future[int | None]] = {}
_pool = ExitStack()


def chunks(scene: Scene) -> list[range]:
    """Return the seeds of a scene, cut into what one test judges."""
    return [range(first, min(first + CHUNK, SEEDS[scene])) for first in range(0, SEEDS[scene], CHUNK)]


def pytest_collection_finish(session: pytest.Session) -> None:
    """Begin what the tests of this run will ask for."""
    items = [item for item in session.items if isinstance(item, pytest.Function)]
    broken = [item.callspec.params["name"] for item in items if "fates" in item.fixturenames]
    judged = any("runs" in item.fixturenames for item in items)
    if session.config.option.collectonly or not (broken or judged):
        return
    pool = _pool.enter_context(open_pool(cores(), niceness=NICENESS))
    _fates.update((name, pool.call(mutants.find, name, SEEDS_MAX)) for name in broken)
    for scene in SEEDS if judged else ():
        _runs.update(((scene, chunk[0]), pool.submit([Plan.of(scene, seed) for seed in chunk])) for chunk in chunks(scene))
    pool.end_when_done()


def pytest_sessionfinish() -> None:
    for left in (*_runs.values(), *_fates.values()):
        left.cancel()  # of a run that ended early; without one there is nothing left
    _pool.close()


@pytest.fixture(scope="session")
def runs() -> Mapping[tuple[Scene, int], Future[list[Run]]]:
    """Return what will come of the seeds, by their scene and the first of their chunk."""
    return _runs


@pytest.fixture(scope="session")
def fates() -> Mapping[str, Future[int | None]]:
    """Return for each broken rule which seed will find it; None: it survives SEEDS_MAX seeds."""
    return _fates
