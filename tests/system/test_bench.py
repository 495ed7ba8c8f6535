"""Every `parley bench` for a moment: it runs, its figures have their names, it leaves nothing behind. No time is judged."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from parley_process import Parley, Server, run

from parley_cli.server_process import pid_of_server
from parley_engines.processes import identify, wait_ended

CONTRACT = {"acked", "stored", "lost", "duplicated", "misordered", "invented", "corrupted", "gaps", "unanswered", "rejected"}
BROKEN = ("lost", "duplicated", "misordered", "invented", "corrupted", "gaps", "disagreeing", "leaked", "contradicted")
LATENCY = {"p50", "p99", "p999", "max"}


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    folder = tmp_path / "scratch"
    folder.mkdir()
    return folder


def bench(scratch: Path, *arguments: str) -> dict[str, Any]:
    """Run a benchmark with a server of its own; return its JSON."""
    code, out, err = run("bench", *arguments, "--json", home=scratch.parent, env={"TMPDIR": str(scratch)})
    assert code == 0, f"{out}\n{err}"
    assert not list(scratch.iterdir())
    result: dict[str, Any] = json.loads(out)
    return result


def assert_contract_kept(result: dict[str, Any]) -> None:
    assert result.keys() >= CONTRACT
    assert result["stories"] == []
    assert result["acked"] == result["stored"] > 0
    assert not any(result[name] for name in (*BROKEN, "unanswered", "rejected"))


@pytest.mark.parametrize("load", [["--window", "1"], ["--window", "8", "--no-receipts"], ["--rate", "200"]], ids=" ".join)
def test_messages(scratch: Path, load: list[str]) -> None:
    result = bench(scratch, "messages", "--pairs", "5", "--seconds", "1", "--warm", "0.5", *load)
    assert_contract_kept(result)
    assert result["messages_per_second"] > 0
    assert result["server_cpu_us_per_message"] > 0
    assert result["latency_ms"].keys() == LATENCY
    assert 0 < result["latency_ms"]["p50"] <= result["latency_ms"]["p99"] <= result["latency_ms"]["max"]
    assert result["receipts"] is ("--no-receipts" not in load)


def test_connections(scratch: Path) -> None:
    result = bench(scratch, "connections", "--count", "60", "--pairs", "5", "--seconds", "0.5", "--flow", "0.5")
    assert_contract_kept(result)
    assert result["errors"] == 0
    assert result["server_kb_per_connection"] > 0
    assert result["messages_per_second"] > 0


def test_group(scratch: Path) -> None:
    result = bench(scratch, "group", "--members", "40", "--rate", "10", "--seconds", "1", "--warm", "0.5")
    assert_contract_kept(result)
    assert result["deliveries_per_second"] > 0
    assert result["server_cpu_us_per_delivery"] > 0
    assert result["last_member_latency_ms"].keys() == LATENCY


def test_group_churn(scratch: Path) -> None:
    result = bench(scratch, "group", "--members", "30", "--churn", "--warm", "0.2")
    assert_contract_kept(result)
    for phase in ("join", "leave"):
        assert result[phase]["deliveries"] == 30 * 29 // 2
        assert result[phase]["longest_gap_ms"] > 0
        assert result[phase]["latency_beside_ms"].keys() == LATENCY
    assert result["acked"] > 1 + 2 * 29, "those who look on are judged, too"


def test_history(scratch: Path) -> None:
    result = bench(scratch, "history", "--sizes", "100,1500", "--rate", "50", "--seconds", "0.5")
    assert result["sizes"].keys() == {"100", "1500"}
    for figures in result["sizes"].values():
        assert figures["pages_per_second"] > 0
        assert figures["latency_ms"].keys() == LATENCY


def test_sync(scratch: Path) -> None:
    result = bench(scratch, "sync", "--conversations", "20", "--changed", "2", "--rounds", "3")
    assert result["first"]["bytes"] > result["after_changes"]["bytes"] > result["unchanged"]["bytes"]
    assert result["unchanged"]["latency_ms"]["p99"] > 0


def test_soak(scratch: Path) -> None:
    result = bench(scratch, "soak", "--messages", "1000", "--connections", "100")
    assert_contract_kept(result)
    assert result["flat"] is None, "too short to say"
    assert len(result["rss_mb_over_messages"]) > 1
    assert "kb_per_100k_messages" in result
    assert "kb_per_1000_connections" in result


def test_a_running_server_is_measured_where_it_runs(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with Server(data) as server:
        options = ["--server", server.address, "--data", str(data), "--json"]
        code, out, err = run(
            "bench", "messages", "--pairs", "2", "--window", "1", "--seconds", "1", "--warm", "0", *options, home=tmp_path
        )
        assert code == 0, err
        result = json.loads(out)
        assert_contract_kept(result)
        assert result["server_cpu_us_per_message"] > 0, "read from the process that holds the data folder"


def test_ctrl_c_ends_the_server_and_removes_its_folder(scratch: Path) -> None:
    arguments = ("bench", "messages", "--pairs", "2", "--seconds", "60")
    with Parley(*arguments, home=scratch.parent, env={"TMPDIR": str(scratch)}) as running:
        running.stderr.expect("of measuring")
        children = Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split()
        assert children
        assert os.sched_getscheduler(running.pid) & ~os.SCHED_RESET_ON_FORK == os.SCHED_BATCH, "the server goes first"
        running.signal(signal.SIGINT)
        assert running.wait() == 1
    assert not list(scratch.iterdir())
    for pid in children:
        with pytest.raises(ProcessLookupError):
            os.kill(int(pid), 0)


def test_a_server_whose_benchmark_is_killed_ends_in_order(scratch: Path) -> None:
    data = scratch / "data"
    arguments = ("bench", "messages", "--pairs", "2", "--seconds", "60", "--data", str(data))
    with Parley(*arguments, home=scratch.parent) as running:
        running.stderr.expect("of measuring")
        pid = pid_of_server(data)
        assert pid is not None
        server = identify(pid)
        assert server is not None
        assert list(data.glob("*-wal")), "it is at work"
        running.signal(signal.SIGKILL)
        running.wait()
    assert wait_ended(server, 10)
    assert not list(data.glob("*-wal")), "its databases were closed"


def test_a_server_without_its_data_folder_is_one_clear_line(tmp_path: Path) -> None:
    code, out, err = run("bench", "messages", "--server", "127.0.0.1:1", home=tmp_path)
    assert (code, out) == (2, "")
    assert err == f"Error: no key in {tmp_path / '.local' / 'share' / 'parley'}: is it the data folder of the server?\n"
