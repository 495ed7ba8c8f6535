"""Every service of a cluster is killed under load, one after the other: the delivery contract, judged from what devices saw."""

import asyncio
import random
import signal
from collections.abc import Iterator

import pytest
from cluster_process import ENGINES, ClusterProcess
from engine_fixtures import EnginesOfTheRun

from parley_chaos.load import Load, open_load
from parley_checker.judge import judge
from parley_cli.connection import local_token

pytestmark = pytest.mark.engines(*ENGINES)
FLOW_SECONDS = 60.0
TEST_SECONDS = 400.0


@pytest.fixture
def cluster(engines: EnginesOfTheRun, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterProcess]:
    data = tmp_path_factory.mktemp("rolling") / "data"
    with ClusterProcess(data, engines, "--gateways", "2", "--stores", "2", "--routers", "2") as cluster:
        yield cluster


async def restart_all(cluster: ClusterProcess, number: signal.Signals, load: Load) -> None:
    """End each service in turn; go on once it is back and everybody has new answers."""
    for name in sorted(cluster.processes()):
        pid = await asyncio.to_thread(cluster.send, name, number)
        await load.wait_flowing(FLOW_SECONDS)
        await asyncio.to_thread(cluster.wait_back, name, pid)


async def under_load(cluster: ClusterProcess, number: signal.Signals) -> None:
    """Restart everything while users write, then judge what they saw."""
    async with open_load(cluster.address, lambda user: local_token(cluster.data, user, ""), f"-{number.name}") as load:
        load.begin(random.Random(1))
        await load.wait_flowing(FLOW_SECONDS)
        await restart_all(cluster, number, load)
        await load.settle(FLOW_SECONDS)
        for gateway in cluster.address.split(","):
            load.history.readings[gateway] = await load.read_back(gateway, lambda user: local_token(cluster.data, user, ""))
    verdict = judge(load.history)
    assert verdict.stories == []
    assert verdict.kept
    assert (verdict.unanswered, verdict.rejected) == (0, 0)
    assert verdict.acked == verdict.stored > 100


def test_any_service_may_be_killed_under_load(cluster: ClusterProcess) -> None:
    """On a loop of its own: it takes longer than an async test that only waits may."""

    async def bounded() -> None:
        async with asyncio.timeout(TEST_SECONDS):
            await under_load(cluster, signal.SIGKILL)

    asyncio.run(bounded())
