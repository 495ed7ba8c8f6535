"""`make mutants`: break every rule that there is a mutation for, and say which guarantee fell, after how many seeds.

Fails if a mutation survives: then nothing proves the rule, or the judge is blind to it.
"""

import argparse
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import NamedTuple

import pytest

from parley_simulation import store_mutations, world_mutations
from parley_simulation.plan import Plan, Scene
from parley_simulation.processes import BrokenError
from parley_simulation.reports import Report
from parley_simulation.store_world import run_seed
from parley_simulation.world import run_world
from tests.simulation import one_line_mutations

# Seeds that find what few do, as `make mutants` prints them (less one). They are tried first, which saves half a minute; where a
# change of the code makes one of them find nothing any more, it costs a seed.
LIKELY: Mapping[str, int] = {
    "dedupe looks only into the present week": 3,
    "a request counts however far log time has jumped back": 13,
    "memory is kept over a jump of positions": 47,
    "what was loaded of a sender's requests is all, however much later it is": 21,
    "the router commits what it has queued, before it is delivered": 33,
    "the gateway drops what a full outbox has no room for, and says nothing": 1,
    "a gateway takes frames under any epoch": 3,
    "rejections are not sticky": 3,
    "another payload under the same request_id is answered as the first": 3,
    "an append is told of before the disk has it": 10,
    "offsets and events get into the tables' file before their rows": 10,
    "the gateway drops watermarks that a partition does not take at once": 11,
    "what is free is taken at once under a new session": 2,
}
SEEDS_MAX = 200  # of a mutation that survives: far more than any that is found needs


class Fate(NamedTuple):
    """What became of a mutation."""

    name: str
    seeds: int
    guarantees: tuple[int, ...]  # that fell; none: it survived
    story: str

    @property
    def fell(self) -> str:
        """The guarantees as a person reads them."""
        return ", ".join(f"G{number}" for number in self.guarantees) or "SURVIVED"


def appliers() -> dict[str, tuple[Scene, Callable[[pytest.MonkeyPatch], None]]]:
    """Return every mutation with the scene that finds it."""
    found: dict[str, tuple[Scene, Callable[[pytest.MonkeyPatch], None]]] = {}
    found |= {name: (Scene.STORE, apply) for name, apply in store_mutations.mutations.items()}
    found |= {name: (Scene.SYSTEM, apply) for name, apply in world_mutations.mutations.items()}
    found |= {name: (one.scene, one.apply) for name, one in one_line_mutations.mutations.items()}
    return found


def judge(name: str, seeds_max: int) -> Fate:
    """Run seeds with the mutation until the contract breaks which is kept without it."""
    scene, apply = appliers()[name]
    calm = name in world_mutations.show_in_calm
    for seed in range(seeds_max):
        with pytest.MonkeyPatch.context() as patch:
            apply(patch)
            report = run(scene, seed, calm=calm)
        if report.broken and not run(scene, seed, calm=calm).broken:
            fell = tuple(sorted(int(guarantee) for guarantee, count in report.verdict.broken.items() if count))
            return Fate(name, seed + 1, fell or (21,), report.broken[0])
    return Fate(name, seeds_max, (), "")


def likely_first(seeds_max: int, likely: int | None) -> list[int]:
    """Return the seeds to try, beginning with one that is known to find what is looked for."""
    return sorted(range(seeds_max), key=lambda seed: seed != likely)


def find(name: str, seeds_max: int) -> int | None:
    """Return the first seed that finds the mutation, which breaks the contract; None if it survives."""
    scene, apply = appliers()[name]
    with pytest.MonkeyPatch.context() as patch:
        apply(patch)
        for seed in likely_first(seeds_max, LIKELY.get(name)):
            try:
                if scene is Scene.STORE:
                    run_seed(seed)
                else:
                    run_world(seed, only_router_dies=name in world_mutations.show_in_calm)
            except BrokenError:
                return seed
    return None


def run(scene: Scene, seed: int, *, calm: bool) -> Report:
    """Run one seed; whatever ends it is in the report."""
    report, plan = Report(), Plan.of(scene, seed)
    try:
        if scene is Scene.STORE:
            run_seed(seed, plan=plan, report=report)
        else:
            run_world(seed, plan=plan, report=report, only_router_dies=calm)
    except Exception as error:
        report.blame(error)
    return report


def judge_all(names: list[str], seeds_max: int, jobs: int) -> Iterator[Fate]:
    """Judge mutations in processes of their own; yield each as it is done."""
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), max_tasks_per_child=1) as pool:
        for future in as_completed([pool.submit(judge, name, seeds_max) for name in names]):
            yield future.result()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="parts of names: only these mutations")
    parser.add_argument("--seeds", type=int, default=SEEDS_MAX, help="a mutation that outlives so many has survived")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--stories", action="store_true", help="say what the judge saw first")
    arguments = parser.parse_args()
    names = [name for name in appliers() if not arguments.names or any(part in name for part in arguments.names)]
    started, survivors, fallen = time.monotonic(), [], set[int]()
    sys.stdout.write(f"{len(names)} mutations, up to {arguments.seeds} seeds each\n{'seeds':>5}  {'fell':<16}  mutation\n")
    for fate in judge_all(names, arguments.seeds, arguments.jobs):
        sys.stdout.write(f"{fate.seeds:5}  {fate.fell:<16}  {fate.name}\n")
        if arguments.stories and fate.story:
            sys.stdout.write(f"{'':25}{fate.story[:180]}\n")
        sys.stdout.flush()
        fallen |= {*fate.guarantees}
        if not fate.guarantees:
            survivors.append(fate.name)
    told = f"{len(names) - len(survivors)} of {len(names)} mutations found in {time.monotonic() - started:.0f} s"
    sys.stdout.write(f"{told}; guarantees that fell: {', '.join(f'G{number}' for number in sorted(fallen))}\n")
    for name in survivors:
        sys.stdout.write(f"survived: {name}\n")
    return bool(survivors)


if __name__ == "__main__":
    sys.exit(main())
