"""The seeds that every test run takes, on all cores: begun with the first test, judged by those that wait for their own."""

from collections.abc import Iterator
from concurrent.futures import Future

import pytest

from parley_simulation.plan import Plan, Scene
from parley_simulation.runs import Run, cores, open_pool

SEEDS = {Scene.SYSTEM: 120, Scene.STORE: 200}
CHUNK = 20  # a test's share: far below the time after which a test counts as hung, also on a machine that does other things


def chunks(scene: Scene) -> list[range]:
    """Return the seeds of a scene, cut into what one test judges."""
    return [range(first, min(first + CHUNK, SEEDS[scene])) for first in range(0, SEEDS[scene], CHUNK)]


@pytest.fixture(scope="session", autouse=True)
def runs(request: pytest.FixtureRequest) -> Iterator[dict[tuple[Scene, int], Future[list[Run]]]]:
    """Return what will come of the seeds, by their scene and the first of their chunk; empty if no test waits for them."""
    if not any("runs" in item.function.__code__.co_varnames for item in request.session.items if isinstance(item, pytest.Function)):
        yield {}
        return
    with open_pool(cores()) as pool:
        runs = {
            (scene, chunk[0]): pool.submit([Plan.of(scene, seed) for seed in chunk]) for scene in SEEDS for chunk in chunks(scene)
        }
        pool.end_when_done()
        yield runs
