"""Simulate on the compiled modules or on their sources, and print what came of it: `compiled_run.py compiled|sources [TEST...]`.

With tests it runs them instead.
"""

import sys
from pathlib import Path

import pytest

from chassis.compiled import use_compiled

ROOT = Path(__file__).parents[2]


def main() -> int:
    if sys.argv[1] == "compiled" and (reason := use_compiled(ROOT / "build" / "compiled", ROOT)):
        raise SystemExit(reason)
    if tests := sys.argv[2:]:
        return pytest.main(["-q", "-p", "no:cacheprovider", *tests])

    from parley_simulation.plan import Plan, Scene
    from parley_simulation.runs import run

    for scene in Scene:
        for seed in range(4):
            sys.stdout.write(f"{scene} {seed} {run(Plan.of(scene, seed)).digest}\n")
    sys.stdout.write(f"{sys.modules['services.store.decide'].__file__}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
