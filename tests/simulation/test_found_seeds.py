"""Seeds that once broke a guarantee, beyond those that every test run draws. What was wrong is told in docs/guarantees.md."""

import pytest

from parley_simulation.plan import Plan, Scene
from parley_simulation.runs import run


@pytest.mark.parametrize(("scene", "seed"), [(Scene.SYSTEM, 1220), (Scene.SYSTEM, 2658), (Scene.SYSTEM, 3198)], ids=str)
def test_what_was_found_stays_mended(scene: Scene, seed: int) -> None:
    plan = Plan.of(scene, seed)
    report = run(plan)
    assert not report.broken, f"{plan.command()}: {report.broken[0]}"
