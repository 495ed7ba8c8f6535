"""Apache Cassandra: it speaks ScyllaDB's CQL, and can be had where ScyllaDB can't be installed."""

import socket
import struct
from collections.abc import Sequence
from typing import Final

from parley_engines.engine import HOST, Engine, Place, build_with_maven
from parley_engines.provision import Recipe
from parley_engines.tools import JAVA, MAVEN

_HEAP: Final = "640m"
_PROBE_SECONDS: Final = 3.0
# Worker threads that have nothing to do wake up to look for work, tens of thousands of times a second (SEPWorker.doWaitSpin): at a
# few hundred statements a second that is a fifth of a core, which others lack. With timers that are this much late they do so
# every millisecond or two, which is what a statement that none of them is awake for waits.
_TIMER_SLACK_SECONDS: Final = 0.001

# commitlog_sync periodic: group or batch would cap writes at concurrent_writes per window, whatever the CPU does (measured: 2,100
# mutations/s). But a SIGKILL of this one node may lose what it took in the last 100 ms, for its replay ends at the last sync marker
# (CASSANDRA-13987; chaos showed it), and a power loss the last second: production has three replicas. Who kills it on purpose and
# wants nothing lost sets KEEPS_ALL.
# Batches of up to 40 KB over many partitions are meant: a warning for each would cost server and client more than the batch.
_CONFIGURATION: Final = """\
cluster_name: parley
num_tokens: 1
partitioner: org.apache.cassandra.dht.Murmur3Partitioner
seed_provider:
  - class_name: org.apache.cassandra.locator.SimpleSeedProvider
    parameters:
      - seeds: "{host}:{storage}"
{sync}
commitlog_segment_size: 8MiB
endpoint_snitch: SimpleSnitch
listen_address: {host}
rpc_address: {host}
storage_port: {storage}
native_transport_port: {client}
start_native_transport: true
authenticator: AllowAllAuthenticator
authorizer: AllowAllAuthorizer
auto_bootstrap: false
auto_snapshot: false
disk_failure_policy: die
commit_failure_policy: die
memtable_heap_space: 64MiB
memtable_offheap_space: 64MiB
concurrent_reads: 8
concurrent_writes: 64
batch_size_warn_threshold: 50KiB
unlogged_batch_across_partitions_warn_threshold: 10000
cdc_enabled: false
"""

_LOGGING: Final = """\
<configuration>
  <appender name="S" class="ch.qos.logback.core.ConsoleAppender">
    <encoder><pattern>%-5level %date{HH:mm:ss,SSS} %logger{20} - %msg%n</pattern></encoder>
  </appender>
  <root level="WARN"><appender-ref ref="S"/></root>
</configuration>
"""

# What Cassandra needs of Java 17's inside: conf/jvm17-server.options of its distribution.
_OPENED: Final = """
java.io java.lang java.lang.module java.lang.reflect java.math java.net java.nio java.util java.util.concurrent
java.util.concurrent.atomic jdk.internal.loader jdk.internal.math jdk.internal.module jdk.internal.reflect
jdk.internal.util.jar jdk.internal.misc jdk.internal.ref sun.nio.ch
"""
_EXPORTED: Final = """
java.management.rmi/com.sun.jmx.remote.internal.rmi java.rmi/sun.rmi.registry java.rmi/sun.rmi.server
java.rmi/sun.rmi.transport.tcp java.sql/java.sql jdk.attach/sun.tools.attach jdk.compiler/com.sun.tools.javac.file
jdk.unsupported/sun.misc
"""


KEEPS_ALL: Final = (
    "PARLEY_ENGINES_KEEP_ALL"  # in the environment, with any text: each write is on the disk before it is acknowledged
)
_SYNC: Final = {True: "commitlog_sync: batch", False: "commitlog_sync: periodic\ncommitlog_sync_period: 1000ms"}


def _prepare(place: Place) -> Sequence[str]:
    configuration, logging = place.folder / "cassandra.yaml", place.folder / "logback.xml"
    sync = _SYNC[bool(place.environ.get(KEEPS_ALL))]
    ports = {"client": place.ports["client"], "storage": place.ports["storage"]}
    configuration.write_text(_CONFIGURATION.format(host=HOST, sync=sync, **ports))
    logging.write_text(_LOGGING)
    inside = [f"--add-{verb}=java.base/{package}=ALL-UNNAMED" for package in _OPENED.split() for verb in ("opens", "exports")]
    inside += [f"--add-exports={package}=ALL-UNNAMED" for package in _EXPORTED.split()]
    inside += ["--add-opens=jdk.management/com.sun.management.internal=ALL-UNNAMED"]
    (agent,) = place.files.glob("jamm-*.jar")
    properties = {
        "java.security.manager": "allow",
        "java.net.preferIPv4Stack": "true",
        "logback.configurationFile": str(logging),
        "cassandra.config": configuration.as_uri(),
        "cassandra.storagedir": str(place.folder / "data"),
        "cassandra-foreground": "yes",
        # One node: there is nobody to wait for.
        "cassandra.skip_wait_for_gossip_to_settle": "0",
        "cassandra.initial_token": "0",
        "cassandra.ring_delay_ms": "1000",
    }
    return [
        place.programs["java"],
        *(f"-Xm{which}{_HEAP}" for which in "xs"),
        "-Xss512k",
        "-XX:+UseSerialGC",
        "-XX:+ExitOnOutOfMemoryError",
        *inside,
        f"-javaagent:{agent}",
        *(f"-D{name}={value}" for name, value in properties.items()),
        "-cp",
        f"{place.files}/*",
        "org.apache.cassandra.service.CassandraDaemon",
    ]


def _probe(port: int) -> None:
    """Ask for a row by CQL. By hand (native protocol v4): a driver's session costs a second of CPU and threads for each try."""
    with socket.create_connection((HOST, port), _PROBE_SECONDS) as connection:
        stream = connection.makefile("rwb")

        def call(opcode: int, body: bytes) -> int:
            stream.write(struct.pack(">BBhBi", 4, 0, 0, opcode, len(body)) + body)
            stream.flush()
            head = stream.read(9)
            if len(head) < 9:
                raise ConnectionError("closed")
            *_, answer, length = struct.unpack(">BBhBi", head)
            stream.read(length)
            return int(answer)

        def text(value: str) -> bytes:
            return struct.pack(">h", len(value)) + value.encode()

        query = b"SELECT release_version FROM system.local"
        if call(0x01, struct.pack(">h", 1) + text("CQL_VERSION") + text("3.0.0")) != 0x02:  # STARTUP, READY
            raise ValueError("no READY")
        if call(0x07, struct.pack(">i", len(query)) + query + struct.pack(">hB", 1, 0)) != 0x08:  # QUERY at ONE, RESULT
            raise ValueError("no RESULT")


CASSANDRA: Final = Engine(
    name="scylladb",
    title="Apache Cassandra 5.0.6 in place of ScyllaDB",
    recipe=Recipe("cassandra", "5.0.6", "70 MB, some 10 s", build_with_maven),
    run_tools=(JAVA,),
    build_tools=(JAVA, MAVEN),
    ports=("client", "storage"),
    prepare=_prepare,
    probe=_probe,
    start_seconds=120,
    stop_seconds=30,
    timer_slack_seconds=_TIMER_SLACK_SECONDS,
)
