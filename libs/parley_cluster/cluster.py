"""A cluster on one machine: engines, then services as processes, then their end in order."""

import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from chassis.embedded import hold_folder
from parley_cluster.state_file import RunningProcess, remove_state, write_state
from parley_cluster.supervisor import Supervisor, open_supervisor
from parley_cluster.topology import DRAIN_ORDER, GATEWAY, START_ORDER, Topology
from parley_engines.errors import EngineError
from parley_engines.native import ENGINES, NativeEngines
from parley_engines.state import Started
from services.gateway.keys import KEY_FILE_NAME, load_or_create_key

PUBLIC_KEY_FILE: Final = "token-key.pub.pem"  # what gateways get of the development key
ENGINES_FOLDER: Final = "engines"


class Cluster:
    """A running cluster; made by `open_cluster`."""

    def __init__(self, data: Path, engines: Mapping[str, Started], supervisor: Supervisor) -> None:
        self.data = data
        self.supervisor = supervisor
        self._engines = engines

    @property
    def address(self) -> str:
        """Return the gateways' addresses, as clients take them."""
        return ",".join(child.addresses[""] for child in self.supervisor.children.values() if child.spec.role == GATEWAY)

    def note(self) -> None:
        """Write down which processes run now."""
        processes = [
            RunningProcess(child.spec.name, child.spec.role, child.pid, child.ready.is_set(), child.addresses)
            for child in self.supervisor.children.values()
            if child.pid
        ]
        engines = [
            RunningProcess(name, name, started.pid, addresses={"": started.address}) for name, started in self._engines.items()
        ]
        write_state(self.data, processes + engines)

    async def drain(self) -> None:
        """Stop all services, devices' side first."""
        for role in DRAIN_ORDER:
            await self.supervisor.stop([name for name, child in self.supervisor.children.items() if child.spec.role == role])


@contextmanager
def running_engines(engines: NativeEngines) -> Iterator[Mapping[str, Started]]:
    """Have Kafka, ScyllaDB and Consul running; leaving stops those that were not before. Blocks. Raises EngineError.

    Call it on the main thread: engines that are on a leash end with the thread that started them.
    """
    before = {name: started for name, (started, state) in engines.status(list(ENGINES)).items() if started and state == "ready"}
    missing = [name for name in ENGINES if name not in before]
    try:
        yield {**before, **(engines.up(missing) if missing else {})}
    finally:
        if missing:
            engines.down(missing)


@asynccontextmanager
async def open_cluster(
    topology: Topology, data: Path, engines: Mapping[str, Started], say: Callable[[str, str], None]
) -> AsyncIterator[Cluster]:
    """Run the services on engines whose topics and tables are there; leaving drains them.

    `say` gets the lines that processes log. Raises DataFolderError, KeyFileError, ProcessFailedError.
    """
    with hold_folder(data):
        public_key_file(data)
        cluster: Cluster | None = None

        def changed() -> None:
            if cluster is not None:
                cluster.note()

        try:
            async with open_supervisor(say, changed) as supervisor:
                cluster = Cluster(data, engines, supervisor)
                for roles in START_ORDER:
                    await supervisor.start(spec for role in roles for spec in topology.specs(role))
                try:
                    yield cluster
                finally:
                    await cluster.drain()
        finally:
            remove_state(data)


def public_key_file(data: Path) -> Path:
    """Write the public half of the data folder's key, made if it is not there, where gateways read it. Raises KeyFileError."""
    key = load_or_create_key(data / KEY_FILE_NAME)
    file = data / PUBLIC_KEY_FILE
    file.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return file


def engine_settings(engines: Mapping[str, Started]) -> dict[str, str]:
    """Return the settings that lead to engines."""
    return {
        "PARLEY_KAFKA_SERVERS": engines["kafka"].address,
        "PARLEY_CQL_HOSTS": engines["scylladb"].address,
        "PARLEY_CONSUL_ADDRESS": engines["consul"].address,
    }


def prepare(environ: Mapping[str, str]) -> None:
    """Make topics and tables, as one does by hand: `parley topics apply`, `parley schema apply`. Blocks. Raises EngineError."""
    known = tuple(f"PARLEY_{what}_" for what in ("KAFKA", "CQL", "CLUSTER"))
    settings = {name: value for name, value in environ.items() if not name.startswith("PARLEY_") or name.startswith(known)}
    for job in (["topics", "apply"], ["schema", "apply", "--replication", "1"]):
        command = [sys.executable, "-m", "parley_cli", *job]
        done = subprocess.run(command, env=settings, capture_output=True, text=True, check=False)
        if done.returncode:
            raise EngineError(f"parley {' '.join(job)} failed: {(done.stderr or done.stdout).strip()}")
