"""Apache Kafka: one node that is broker and controller (KRaft)."""

import asyncio
import socket
import subprocess
import uuid
from collections.abc import Sequence
from typing import Final

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError

from parley_engines.engine import HOST, Engine, Place, build_with_maven
from parley_engines.errors import EngineError
from parley_engines.provision import Recipe
from parley_engines.tools import JAVA, MAVEN

LOGIN_USER: Final = "parley"  # and the password, on the port "login"
_SCRAM: Final = f"SCRAM-SHA-512=[name={LOGIN_USER},password={LOGIN_USER}]"
_HEAP: Final = "384m"
_PROBE_MS: Final = 2_000
_CONFIGURATION: Final = """\
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@{host}:{controller}
listeners=PLAINTEXT://{host}:{client},LOGIN://{host}:{login},CONTROLLER://{host}:{controller}
advertised.listeners=PLAINTEXT://{host}:{client},LOGIN://{host}:{login}
controller.listener.names=CONTROLLER
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,LOGIN:SASL_PLAINTEXT,CONTROLLER:PLAINTEXT
# No secret, and of no use from elsewhere: it is there to try logins, right and wrong ones.
sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-512
listener.name.login.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required user_{user}="{user}";
listener.name.login.scram-sha-512.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;
log.dirs={data}
# One node: nothing can be kept twice.
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
# A request goes from thread to thread and back, each of which may have to be woken: the usual 3 and 8 take a fifth more CPU.
num.network.threads=1
num.io.threads=2
# Nobody else comes that one would have to wait for.
group.initial.rebalance.delay.ms=0
# Topics are made by `parley topics apply`, with their partitions and settings.
auto.create.topics.enable=false
"""


def _prepare(place: Place) -> Sequence[str]:
    data = place.folder / "data"
    configuration = place.folder / "server.properties"
    configuration.write_text(_CONFIGURATION.format(host=HOST, data=data, user=LOGIN_USER, **place.ports))
    java = [
        place.programs["java"],
        "-XX:+UseSerialGC",
        "-XX:+ExitOnOutOfMemoryError",
        "-cp",
        f"{place.files}/*",
        "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
    ]
    if not (data / "meta.properties").exists():
        identity = uuid.uuid4().bytes.hex()[:22]
        done = subprocess.run(
            [*java, "kafka.tools.StorageTool", "format", "-t", identity, "-c", str(configuration), "--add-scram", _SCRAM],
            capture_output=True, text=True, check=False, env=dict(place.environ),
        )  # fmt: skip
        if done.returncode:
            raise EngineError(f"kafka: can't prepare {data}: {done.stdout}{done.stderr}")
    stamps = ["-Dorg.slf4j.simpleLogger.showDateTime=true", "-Dorg.slf4j.simpleLogger.dateTimeFormat=HH:mm:ss.SSS"]
    return [*java, *stamps, f"-Xmx{_HEAP}", "kafka.Kafka", str(configuration)]


def _probe(port: int) -> None:
    """Ask who is in the cluster and who coordinates groups: the latter is there seconds after the port is open."""
    socket.create_connection((HOST, port), _PROBE_MS / 1_000).close()  # else the client would log each port that is not open yet

    async def ask() -> None:
        admin = AIOKafkaAdminClient(bootstrap_servers=f"{HOST}:{port}", request_timeout_ms=_PROBE_MS)
        try:
            await admin.start()
            await admin.find_coordinator("parley-probe")
        except KafkaError as error:
            raise OSError(f"{error}") from error
        finally:
            await admin.close()

    # A loop of its own that nobody else knows of: asyncio.run would take away the one that a caller has set.
    loop = asyncio.new_event_loop()
    try:
        loop.run_until_complete(ask())
    finally:
        loop.close()


KAFKA: Final = Engine(
    name="kafka",
    title="Apache Kafka 4.1.1",
    recipe=Recipe("kafka", "4.1.1", "50 MB, some 10 s", build_with_maven),
    run_tools=(JAVA,),
    build_tools=(JAVA, MAVEN),
    ports=("client", "login", "controller"),
    prepare=_prepare,
    probe=_probe,
    start_seconds=90,
    stop_seconds=30,
)
