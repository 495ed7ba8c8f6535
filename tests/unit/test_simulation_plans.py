"""How a failing run is made small, and what a large number of runs must have met."""

import signal
import subprocess
import sys
from collections import Counter

import pytest
from click.testing import CliRunner

from chassis.testing.faults import CRASH, RATES, WRITE_LOST
from parley_cli.__main__ import main
from parley_protocol.topics import COMMANDS, EVENTS
from parley_simulation.plan import Plan, Scene
from parley_simulation.reports import Report
from parley_simulation.shrink import shrink
from parley_simulation.story import shortest, steps
from parley_simulation.totals import Totals, step_of

WHOLE = Plan.of(Scene.STORE, 7)


def test_only_what_the_failure_needs_is_left():
    needs = {CRASH, WRITE_LOST}

    def fails(plan: Plan) -> bool:
        return not plan.without & needs and plan.users >= 3 and plan.actions >= 5

    small = shrink(WHOLE, fails)
    assert RATES.keys() - small.without == needs
    assert (small.users, small.actions, small.seconds) == (3, 5, 5)


def test_equal_failures_shrink_alike_within_the_tries():
    tried: list[list[Plan]] = [[], []]
    for plans in tried:
        shrink(WHOLE, lambda plan, plans=plans: plans.append(plan) or CRASH not in plan.without, tries=5)
    assert tried[0] == tried[1]
    assert len(tried[0]) == 5


def test_what_fails_only_whole_stays_whole():
    assert shrink(WHOLE, lambda plan: plan == WHOLE) == WHOLE


def test_a_plan_is_repeated_by_its_command():
    assert WHOLE.command() == "parley simulate --world store --seed 7"
    small = WHOLE.with_less({"without": frozenset(RATES.keys() - {CRASH, WRITE_LOST}), "users": 2})
    assert small.command() == "parley simulate --world store --seed 7 --faults 'write dropped,process crashed' --users 2"
    assert {kind for kind in RATES if small.rates[kind]} == {CRASH, WRITE_LOST}
    assert small.rates.keys() == RATES.keys()
    assert WHOLE.with_less({"without": frozenset(RATES)}).command() == "parley simulate --world store --seed 7 --faults 'none'"


def test_operations_of_ports_are_steps_of_the_loop():
    assert step_of("store", "before read of conversation_state") == "before load"
    assert step_of("store", "write to dedupe inbox timeline") == "phase 1"
    assert step_of("store", "after write to conversation_state") == "after phase 2"
    assert step_of("store", f"append to {EVENTS}") == "publish"
    assert step_of("gateway", f"before append to {COMMANDS}") == "before append"
    assert step_of("router", f"commit of {EVENTS}") == "commit"


def test_runs_that_met_too_little_prove_nothing():
    totals = Totals()
    totals.add(
        WHOLE, Report(faults=Counter(RATES.keys() - {WRITE_LOST}), strikes=Counter({("store", "after poll of x", CRASH): 1}))
    )
    missing = list(totals.missing())
    assert missing[0] == "no run had the fault 'write dropped'"
    assert "nothing went wrong at 'phase 1' of a store" in missing
    assert "nothing went wrong at 'poll' of a store" not in missing
    assert "no store had 'process paused' at 'poll'" in missing


def test_a_story_tells_what_became_of_its_message():
    mine, other = "a" * 32, "b" * 32
    trace = [
        f"1.0 alice-0: asks {mine} message in d_x",
        f"1.1 alice-0: asks {other} message in d_x",
        f"2.0 store-0.1: polled {COMMANDS}/0 [4, 5]",
        "2.1 store-0.1: write fails",
        "2.2 store-1.1: slow",
        f"3.0 store-0.1: polled {COMMANDS}/0 [6]",
        "3.1 store-0.1: wrote 3 rows",
    ]
    report = Report(trace=trace, positions={mine: [(0, 5)]})
    assert list(steps(f"lost: {mine} is not stored", report)) == [trace[0], trace[2], trace[3]]
    assert list(steps("G21: somebody waits", report)) == trace
    assert shortest(["a story", f"{mine} is lost", f"{mine} is lost, too"]) == f"{mine} is lost"


@pytest.mark.parametrize("words", [["--seed", "1", "--seeds", "2"], ["--trace"], ["--faults", "rain"]], ids=" ".join)
def test_what_can_not_be_meant_is_refused(words):
    assert CliRunner().invoke(main, ["simulate", *words]).exit_code == 2


KILLED_WITH_A_POOL = """
import os, signal
from parley_simulation.runs import open_pool

with open_pool(1) as pool:
    pool.call(os.getpid).result()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_the_processes_of_a_pool_end_with_their_parent_also_if_it_is_killed():
    # They hold their parent's output open: this returns once all have ended.
    done = subprocess.run([sys.executable, "-c", KILLED_WITH_A_POOL], stdout=subprocess.PIPE, timeout=50, check=False)
    assert done.returncode == -signal.SIGKILL
