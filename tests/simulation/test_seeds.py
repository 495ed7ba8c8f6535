"""The system, and stores alone, under seeded faults: nothing acked is lost, doubled or out of order, all agree in the end."""

import logging
import re
import shlex
import subprocess
import sys

import pytest
import structlog
from click.testing import CliRunner
from conftest import SEEDS, chunks

from parley_cli.__main__ import main
from parley_simulation import store_mutations
from parley_simulation.plan import Plan, Scene
from parley_simulation.runs import run, smallest
from parley_simulation.store_world import run_seed
from parley_simulation.totals import Totals
from parley_simulation.world import run_world
from services.store.config import StoreSettings


def judge(runs):
    for plan, report in runs:
        assert not report.broken, f"{plan.command()}: {report.broken[0]}"


@pytest.mark.parametrize("seeds", chunks(Scene.SYSTEM), ids=str)
def test_the_contract_is_kept(seeds, runs):
    """Acked is stored exactly once, seqs are contiguous, devices agree within their intervals, unread is right, G22 holds."""
    judge(runs[Scene.SYSTEM, seeds[0]].result())


@pytest.mark.parametrize("seeds", chunks(Scene.STORE), ids=str)
def test_the_store_keeps_its_contract(seeds, runs):
    """Stored exactly once, in order, published, unread right, and the log replayed gives the same tables."""
    judge(runs[Scene.STORE, seeds[0]].result())


def test_the_faults_really_happened(runs):
    """Runs without faults prove nothing: every kind struck, at every step, and work got done all the same."""
    totals = Totals()
    for future in runs.values():
        for plan, report in future.result():
            totals.add(plan, report)
    assert totals.runs == sum(SEEDS.values()) >= 300
    assert list(totals.missing()) == []
    assert totals.verdict.acked > 10_000
    assert totals.verdict.rejected > 1_000


@pytest.mark.parametrize("scene", Scene)
def test_without_faults_everything_is_answered(scene):
    report = run_world(1, rates={}) if scene is Scene.SYSTEM else run_seed(1, rates={})
    assert report.faults == {}
    assert report.verdict.unanswered == 0


def test_settings_change_nothing_that_is_decided():
    """A batch of 500, large buckets and large caches keep the contract as well."""
    for seed in range(5):
        run_seed(seed, settings=StoreSettings())


@pytest.mark.parametrize("scene", Scene)
def test_equal_seeds_give_equal_traces(scene):
    first, again = (run(Plan.of(scene, 3), keep_trace=True) for _ in range(2))
    assert first.trace == again.trace
    assert first.digest == again.digest != run(Plan.of(scene, 4)).digest


def test_a_trace_does_not_depend_on_what_is_logged():
    before = structlog.get_config()
    first = run(Plan.of(Scene.SYSTEM, 2)).digest
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    try:
        assert run(Plan.of(Scene.SYSTEM, 2)).digest == first
    finally:
        structlog.configure(**before)


@pytest.mark.parametrize("hash_seed", ["1", "2"])
def test_a_seed_means_the_same_in_every_process(hash_seed):
    """Nothing depends on how sets of strings iterate, or on addresses."""
    command = [sys.executable, "-m", "parley_cli", "simulate", "--seed", "2"]
    environ = {"PYTHONHASHSEED": hash_seed}
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60, check=True)
    hashes = re.findall(r"^trace +(\w+)$", done.stdout, re.MULTILINE)
    assert hashes == [run(Plan.of(scene, 2)).digest for scene in Scene]


def test_a_violation_is_made_small_and_told_with_the_command_that_repeats_it(monkeypatch):
    store_mutations.mutations["dedupe removed"](monkeypatch)
    plan = Plan.of(Scene.STORE, 0)
    small = smallest(plan, run(plan))
    assert small.actions < plan.actions
    assert len(small.without) > 10

    told = CliRunner().invoke(main, ["simulate", "--world", "store", "--seeds", "1", "--jobs", "1"])
    assert told.exit_code == 1
    assert f"\nagain: {small.command()}\n" in told.output
    story = re.search(r"^seed 0 broke the contract: .*?([0-9a-f]{32}).*", told.output, re.MULTILINE)
    assert story, told.output
    assert re.search(rf"^    [\d.]+ \S+: asks {story[1]}", told.output, re.MULTILINE)
    assert re.search(r"^    [\d.]+ store-\d\.\d+: polled parley.commands/\d \[", told.output, re.MULTILINE)

    again = CliRunner().invoke(main, shlex.split(small.command())[1:])
    assert again.exit_code == 1
    assert story[0] in again.output
