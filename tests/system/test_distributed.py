"""The distributed form as a user runs it: engines, and every service a process of its own."""

import json
import re
import signal
from collections.abc import Iterator

import pytest
from cluster_process import CHANGE_SECONDS, ENGINES, ClusterProcess
from engine_fixtures import EnginesOfTheRun

from parley_engines.processes import identify

pytestmark = pytest.mark.engines(*ENGINES)


@pytest.fixture(scope="module")
def cluster(engines: EnginesOfTheRun, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterProcess]:
    with ClusterProcess(tmp_path_factory.mktemp("cluster") / "data", engines) as cluster:
        yield cluster


def test_bench_splits_cpu_by_process(cluster: ClusterProcess) -> None:
    code, out, error = cluster.run("bench", "messages", "--pairs", "4", "--seconds", "1", "--warm", "0", "--json")
    assert code == 0, error
    result = json.loads(out)
    assert (result["lost"], result["duplicated"], result["misordered"]) == (0, 0, 0)
    parts = result["server_cpu_us_per_message_by_process"]
    assert set(parts) == {"gateway-1", "gateway-2", "router-1", "store-1", "kafka", "scylladb", "consul", "supervisor"}


@pytest.mark.parametrize(("role", "most_seconds"), [("gateway", 20.0), ("store", 15.0), ("router", 15.0)])
def test_what_is_killed_is_felt_for_so_long_at_most(cluster: ClusterProcess, role: str, most_seconds: float) -> None:
    """A killed gateway's users are back and caught up within that, and no message is later; `docs/performance.md` has figures."""
    before = {name: process.pid for name, process in cluster.processes().items()}
    options = ["--users", "100", "--kill", role, "--rate", "20", "--seconds", "3", "--json"]
    code, out, error = cluster.run("bench", "recovery", *options)
    assert code == 0, out + error
    result = json.loads(out)
    cluster.wait_back(result["killed"], before[result["killed"]])
    assert (result["not_back"], result["lost"], result["unanswered"]) == (0, 0, 0)
    assert (result["cut"] > 20) == (role == "gateway")
    if role == "gateway":
        assert result["back_ms"]["max"] < 1e3 * most_seconds
    assert 0 < result["delivery_latency_ms"]["max"] < 1e3 * most_seconds


def test_users_talk_through_any_gateway_and_all_ends_in_order(cluster: ClusterProcess) -> None:
    """Ctrl-C drains all of it in bounded time, and nothing stays behind; engines that ran before go on."""
    gateways = cluster.address.split(",")
    assert len(gateways) == 2
    cluster.expect(r"chat alice --with bob --server ")
    assert re.search("Kafka .*, (Apache Cassandra .* in place of )?ScyllaDB.*, Consul ", cluster.expect("^engines: (.*)$")[1])
    for number, gateway in enumerate(gateways, 1):
        options = ["--server", gateway, "--data", str(cluster.data)]
        code, out, error = cluster.run("send", "--as", "alice", "--to", "bob", f"by gateway {number}", *options)
        assert (code, error) == (0, "")
        assert out.startswith(f"#{number} ")
    for gateway in gateways:
        code, out, _ = cluster.run("history", "--as", "bob", "--with", "alice", "--server", gateway)
        assert re.findall(r"by gateway \d", out) == ["by gateway 1", "by gateway 2"]
    processes = cluster.processes()
    assert sorted(processes) == ["gateway-1", "gateway-2", "router-1", "store-1"]
    cluster.signal(signal.SIGINT)
    assert cluster.wait(CHANGE_SECONDS) == 0
    assert [name for name, process in processes.items() if identify(process.pid) is not None] == []
    assert cluster.processes() == {}
