"""`parley up --distributed` on the run's engines, with topics, tables and keys of its own."""

import os
import secrets
import signal
import time
from pathlib import Path
from typing import Self

from engine_fixtures import EnginesOfTheRun
from parley_process import Server

from parley_cluster.state_file import RunningProcess, read_state

ENGINES = ("kafka", "scylladb", "consul")
READY_SECONDS = 120.0  # ten on an idle machine
CHANGE_SECONDS = 60.0


def own_names() -> dict[str, str]:
    """Return settings that keep a cluster apart from others: the engines are shared by all tests of the run."""
    own = f"t{secrets.token_hex(4)}"
    return {
        "PARLEY_KAFKA_PREFIX": f"{own}.",
        "PARLEY_KAFKA_PARTITIONS": "4",
        "PARLEY_CQL_KEYSPACE": own,
        "PARLEY_CONSUL_PREFIX": own,
    }


class ClusterProcess(Server):
    """A running cluster; `address` names all gateways. An empty setting is left to `parley up`."""

    def __init__(self, data: Path, engines: EnginesOfTheRun, *arguments: str, **settings: str) -> None:
        for name in ENGINES:
            engines.started(name)
        given = {name: value for name, value in (own_names() | settings).items() if value}
        super().__init__(data, "--distributed", "--engines", str(engines.folder), *arguments, env=given)

    def __enter__(self) -> Self:
        try:
            self.address = self.expect(r"^parley is ready on (\S+)$", READY_SECONDS)[1]
        except BaseException:
            self.__exit__()
            raise
        return self

    def processes(self, role: str = "") -> dict[str, RunningProcess]:
        """Return the services that run now, by name."""
        return {
            process.name: process for process in read_state(self.data) if process.role not in ENGINES and role in ("", process.role)
        }

    def send(self, name: str, number: signal.Signals) -> int:
        """Send a signal to a service; return its process."""
        pid = self.processes()[name].pid
        os.kill(pid, number)
        return pid

    def wait_back(self, name: str, before: int) -> None:
        """Wait until a service runs and is ready again, as another process than before."""
        deadline = time.monotonic() + CHANGE_SECONDS
        while not ((now := self.processes().get(name)) and now.pid != before and now.ready):
            assert time.monotonic() < deadline, f"{name} is not back after {CHANGE_SECONDS:g} s\n{self.stderr.text[-3000:]}"
            time.sleep(0.1)
