"""The whole system under seeded faults: nothing acked is lost, doubled or out of order, and all devices agree in the end."""

import subprocess
import sys
from collections import Counter

import pytest

from chassis.testing.faults import RATES
from parley_simulation.world import Report, run_world

SEEDS = range(25)
reports: dict[int, Report] = {}


@pytest.mark.parametrize("seed", SEEDS)
def test_the_contract_is_kept(seed):
    """Acked is stored exactly once, seqs are contiguous, devices agree within their intervals, unread is right, G22 holds."""
    reports[seed] = run_world(seed)


def test_the_faults_really_happened():
    """A run without faults proves nothing: every kind struck, and work got done all the same."""
    reports.update({seed: run_world(seed) for seed in SEEDS if seed not in reports})
    counts: Counter[str] = Counter()
    for report in reports.values():
        counts.update(report.faults)
    assert {kind for kind in RATES if counts[kind] < 10} == set(), counts
    assert sum(report.verdict.acked for report in reports.values()) > 500


def test_without_faults_everything_is_answered():
    report = run_world(1, rates={})
    assert report.faults == {}
    assert report.verdict.unanswered == 0


@pytest.mark.parametrize("hash_seed", ["1", "2"])
def test_a_seed_means_the_same_in_every_process(hash_seed):
    """Nothing depends on how sets of strings iterate, or on addresses."""
    command = [sys.executable, "-m", "parley_simulation.world", "2"]
    environ = {"PYTHONHASHSEED": hash_seed}
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines()[-1] == run_world(2).digest
