"""The distributed form as a user runs it: engines, and every service a process of its own."""

import json
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from cluster_process import CHANGE_SECONDS, ENGINES, ClusterProcess
from engine_fixtures import EnginesOfTheRun
from grpc_health.v1 import health_pb2, health_pb2_grpc

from chassis.channels import open_channel
from parley_engines.processes import identify

pytestmark = pytest.mark.engines(*ENGINES)
END_SECONDS = (
    40.0  # gateways wait 8 s for heirs and 6 s for what can't be appended, then all in turn let go of what does not answer
)


@pytest.fixture(scope="module")
def cluster(engines: EnginesOfTheRun, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterProcess]:
    with ClusterProcess(tmp_path_factory.mktemp("cluster") / "data", engines, PARLEY_KAFKA_PARTITIONS="") as cluster:
        yield cluster


def test_bench_splits_cpu_by_process(cluster: ClusterProcess) -> None:
    code, out, error = cluster.run("bench", "messages", "--pairs", "4", "--seconds", "1", "--warm", "0", "--json")
    assert code == 0, error
    result = json.loads(out)
    assert (result["lost"], result["duplicated"], result["misordered"]) == (0, 0, 0)
    parts = result["server_cpu_us_per_message_by_process"]
    assert set(parts) == {"gateway-1", "gateway-2", "router-1", "store-1", "kafka", "scylladb", "consul", "supervisor"}


@pytest.mark.parametrize(("role", "most_seconds"), [("gateway", 40.0), ("store", 30.0), ("router", 30.0)])
def test_what_is_killed_is_felt_for_so_long_at_most(cluster: ClusterProcess, role: str, most_seconds: float) -> None:
    """A killed gateway's users are back and caught up within that, and no message is later.

    Twice what is asked for of a machine of its own: on a crowded one processes start late. `docs/performance.md` has figures.
    """
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


async def test_services_take_no_call_without_a_certificate(cluster: ClusterProcess) -> None:
    addresses = [process.addresses["internal" if process.role == "gateway" else ""] for process in cluster.processes().values()]
    assert len(addresses) == 4
    for address in addresses:
        async with open_channel(address) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


def test_users_talk_through_any_gateway_and_all_ends_in_order(cluster: ClusterProcess) -> None:
    """Ctrl-C drains all of it in bounded time, and nothing stays behind; engines that ran before go on."""
    gateways = cluster.address.split(",")
    assert len(gateways) == 2
    cluster.expect(r"chat alice --with bob --server ")
    assert re.search("Kafka .*, (Apache Cassandra .* in place of )?ScyllaDB.*, Consul ", cluster.expect("^engines: (.*)$")[1])
    cluster.expect("^partitions of the log: 1$")
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


def test_it_ends_in_time_though_its_engines_are_gone(engines: EnginesOfTheRun, tmp_path: Path) -> None:
    with ClusterProcess(tmp_path / "data", engines) as cluster:
        for name in ENGINES:
            engines.kill(name)
        cluster.signal(signal.SIGINT)
        assert cluster.wait(END_SECONDS) == 0
        assert cluster.processes() == {}
