"""The store under seeded faults: zombies, crashes between any two steps, writes half done and late, clocks that jump."""

import subprocess
import sys
from collections import Counter

import pytest

from chassis.testing import faults
from parley_simulation.store_world import Report, run_seed
from services.store.config import StoreSettings

SEEDS = range(50)
reports: dict[int, Report] = {}


@pytest.mark.parametrize("seed", SEEDS)
def test_the_store_keeps_its_contract(seed):
    """Stored exactly once, in order, published, unread right, and the log replayed gives the same tables."""
    reports[seed] = run_seed(seed)


def test_the_faults_really_happened():
    """A run without faults proves nothing: every kind that the store can meet struck, often."""
    if len(reports) < len(SEEDS):
        reports.update({seed: run_seed(seed) for seed in SEEDS if seed not in reports})
    counts: Counter[str] = Counter()
    for report in reports.values():
        counts.update(report.faults)
    assert {kind for kind in faults.RATES if kind not in (faults.CUT, faults.HALF_OPEN) and counts[kind] < 10} == set(), counts
    assert sum(report.story.verdict.stored for report in reports.values()) > 1_000
    assert sum(report.story.verdict.rejected for report in reports.values()) > 200


def test_without_faults_nothing_happens_twice():
    """One worker's work without faults is the plain case, and it must be quick."""
    report = run_seed(1, rates={})
    assert report.faults == {}
    assert report.story.verdict.unanswered == 0


def test_equal_seeds_give_equal_traces():
    first, again = run_seed(3, keep_trace=True), run_seed(3, keep_trace=True)
    assert first.trace == again.trace
    assert first.digest == again.digest != run_seed(4).digest


@pytest.mark.parametrize("hash_seed", ["1", "2"])
def test_a_seed_means_the_same_in_another_process(hash_seed):
    """Nothing depends on how sets of strings iterate, or on addresses."""
    command = [sys.executable, "-m", "parley_simulation.store_world", "3"]
    environ = {"PYTHONHASHSEED": hash_seed}
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines()[-1] == run_seed(3, keep_trace=True).digest


def test_settings_change_nothing_that_is_decided():
    """A batch of 500, large buckets and large caches keep the contract as well."""
    for seed in range(5):
        run_seed(seed, settings=StoreSettings())
