"""Chaos with real processes, short: the contract is kept over faults of every family, and a broken build is found out."""

import json
from pathlib import Path
from typing import Any

import pytest
from cluster_process import ENGINES
from engine_fixtures import EnginesOfTheRun
from parley_process import Parley

from parley_chaos.watch import is_own_error

pytestmark = pytest.mark.engines(*ENGINES)
SERVICES = ("store-1", "store-2", "router-1", "router-2", "gateway-1", "gateway-2")
LINKS = (*(f"to-{name}" for name in SERVICES), "store-1-to-scylladb", "store-2-to-scylladb", "devices-to-gateway-1")
TARGETS = (*SERVICES, *LINKS, "kafka", "scylladb", "store", "router", "devices")  # of each kind one that costs seconds
RESUMED_SECONDS = 30  # after an engine is back, everything flows again
ERROR_LINES = 80  # of a stack among what others say meanwhile
SECONDS = 280  # three times what an idle machine takes; a run of tests is ended after 300 s of silence


def chaos(tmp_path: Path, engines: EnginesOfTheRun, *arguments: str) -> tuple[int, dict[str, Any]]:
    """Run the command on engines of its own, whose files this run has provisioned."""
    kept = tmp_path / "chaos"
    arguments = ("chaos", "--json", "--keep", str(kept), *arguments)
    with Parley(*arguments, home=tmp_path, env={"XDG_CACHE_HOME": str(engines.cache_home)}) as program:
        code = program.wait(SECONDS)
        assert code in (0, 1), program.stderr.rest()
        report: dict[str, Any] = json.loads(program.stdout.rest())
        if code:
            report["said"] = program.stderr.rest() + errors_in((kept / "services.log").read_text())
        return code, report


def errors_in(log: str) -> str:
    """Return what services said of their own errors, with the lines that follow: where it came from."""
    lines = log.splitlines()
    errors = [number for number, line in enumerate(lines) if is_own_error(line)]
    return "".join("\n".join(["", *lines[number : number + ERROR_LINES]]) for number in errors)


def test_a_short_run_keeps_the_contract(tmp_path: Path, engines: EnginesOfTheRun) -> None:
    kinds = ("kill", "stop", "cut", "blackhole", "drain", "kill_engine", "clock_ahead", "rebalance")
    arguments = [word for kind in kinds for word in ("--only", kind)] + [word for name in TARGETS for word in ("--on", name)]
    code, report = chaos(tmp_path, engines, "--seed", "9", "--faults", str(len(kinds)), *arguments)
    assert code == 0, "\n".join([*report["problems"], *report["stories"], report.get("said", "")])
    assert (report["faults"], report["kinds"]) == (len(kinds), len(kinds))
    assert report["overlapping"] >= 2
    assert (report["lost"], report["duplicated"], report["misordered"], report["unanswered"]) == (0, 0, 0, 0)
    assert report["acked"] == report["stored"] > 100
    assert all(done["proof"] for done in report["done"])
    assert all(report["guarantees"][name]["judged"] for name in ("G14", "G20", "G21"))
    resumed = [done["flowed_after_seconds"] for done in report["done"] if done["kind"] == "kill_engine"]
    assert max(resumed) < RESUMED_SECONDS


def test_devices_sent_away_by_a_lost_session_are_found_out(tmp_path: Path, engines: EnginesOfTheRun) -> None:
    """G15, in one round: what `parley chaos` judges whenever Consul alone is away."""
    code, report = chaos(
        tmp_path, engines, "--seed", "1", "--faults", "1", "--only", "forget", "--broken", "slots-end-with-session"
    )
    assert code == 1
    assert report["guarantees"]["G15"]["broken"], report


def test_a_store_that_commits_before_it_writes_is_found_out(tmp_path: Path, engines: EnginesOfTheRun) -> None:
    code, report = chaos(
        tmp_path, engines, "--seed", "1", "--faults", "6", "--only", "kill", "--patience", "60", "--broken", "offset-before-write"
    )
    assert code == 1
    assert report["lost"] or report["misordered"] or report["duplicated"], report  # found out, not only slow
