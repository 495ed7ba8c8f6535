"""How a process connects to ScyllaDB or Cassandra: policies, patience, and the driver's settings with their reasons."""

import asyncio
import logging
import random
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

import structlog
from cassandra import AuthenticationFailed, ConsistencyLevel
from cassandra.auth import PlainTextAuthProvider
from cassandra.cluster import EXEC_PROFILE_DEFAULT, Cluster, DefaultConnection, ExecutionProfile, NoHostAvailable, Session
from cassandra.policies import DCAwareRoundRobinPolicy, ExponentialReconnectionPolicy, RetryPolicy, TokenAwarePolicy
from cassandra.query import tuple_factory

from chassis.backoff import Backoff
from chassis.executor import ThreadExecutor
from chassis.timeline import TimelineSetupError, TimelineUnavailableError
from chassis.timeline_cql_metrics import CqlMetrics
from chassis.timeline_cql_session import CqlSession, text_of
from chassis.timeline_cql_settings import CqlSettings

_CONNECT_SECONDS: Final = 5.0  # to a node that is there: milliseconds; one that is not must not hold up the others
_RECONNECT_SECONDS: Final = (
    0.2,
    5.0,
)  # the first wait for a node that went away, and the longest: traffic flows soon after it is back
_HEARTBEAT_SECONDS: Final = 5.0  # a node that is silent this long, twice, is taken for gone
_SCHEMA_AGREEMENT_SECONDS: Final = 30.0
_SOCKET_BYTES: Final = 64 * 1024  # a batch goes out in one piece: 40 KB and what its statements add
_RETRY_SECONDS: Final = 0.25, 5.0  # between tries to connect at the start, as above

_log = structlog.get_logger()


class _Connection(DefaultConnection):  # type: ignore[misc]  # the driver has no types
    """libev where the driver's wheel has it: measured against its asyncio reactor, half the CPU for single statements.

    The driver cuts what it sends into pieces of 4 kB. With Nagle's algorithm, which it leaves on, the second piece of a batch waits
    40 ms for the first one's acknowledgement.
    """

    out_buffer_size = in_buffer_size = _SOCKET_BYTES


_SOCKET_OPTIONS: Final = [(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)]


class _RetryIdempotent(RetryPolicy):  # type: ignore[misc]  # likewise
    """Once more at the next node, if that can't do harm; the request's own deadline bounds all of it."""

    def on_read_timeout(self, query: Any, *args: Any, **kwargs: Any) -> tuple[int, None]:
        return self._again(query, kwargs["retry_num"])

    def on_write_timeout(self, query: Any, *args: Any, **kwargs: Any) -> tuple[int, None]:
        return self._again(query, kwargs["retry_num"])

    def on_unavailable(self, query: Any, *args: Any, **kwargs: Any) -> tuple[int, None]:
        return self._again(query, kwargs["retry_num"])

    def on_request_error(self, query: Any, consistency: int, error: Exception, retry_num: int) -> tuple[int, None]:
        return self._again(query, retry_num)

    def _again(self, query: Any, retry_num: int) -> tuple[int, None]:
        again = query is not None and query.is_idempotent and retry_num == 0
        return (self.RETRY_NEXT_HOST if again else self.RETHROW), None


@asynccontextmanager
async def open_cql_session(settings: CqlSettings, metrics: CqlMetrics) -> AsyncIterator[CqlSession]:
    """Connect, waiting for the database as long as the settings say. Threads are started: fork before, not after.

    Raises TimelineSetupError: it is there and does not want us; TimelineUnavailableError: it is not there.
    """
    driver_log = logging.getLogger("cassandra")
    if not driver_log.isEnabledFor(logging.DEBUG):
        driver_log.setLevel(logging.CRITICAL)  # it logs with a traceback, often twice, what we raise or log in one line
    executor = ThreadExecutor("cql")
    try:
        cluster, session = await _connect(settings, executor)
        try:
            yield CqlSession(session, executor, settings, metrics)
        finally:
            await executor.run(cluster.shutdown)  # what is under way fails
    finally:
        await executor.close()


async def _connect(settings: CqlSettings, executor: ThreadExecutor) -> tuple[Cluster, Session]:
    loop = asyncio.get_running_loop()
    deadline = loop.time() + settings.connect_seconds
    backoff = Backoff(*_RETRY_SECONDS, random.Random())
    while True:
        opening = asyncio.ensure_future(executor.run(_open, settings))
        try:
            return await asyncio.shield(opening)
        except asyncio.CancelledError:
            with suppress(Exception):  # a thread can't be cancelled, but it is bound to end; and nobody wants what it opened
                cluster, _ = await opening
                await executor.run(cluster.shutdown)
            raise
        except NoHostAvailable as error:
            reasons = [each for each in error.errors.values() if isinstance(each, Exception)]
            refused = next((each for each in reasons if isinstance(each, AuthenticationFailed)), None)
            if refused is not None:
                raise TimelineSetupError(f"the database at {settings.hosts} refuses the login: {text_of(refused)}") from error
            delay = backoff.failed(0)
            if loop.time() + delay > deadline:
                why = "; ".join(dict.fromkeys(text_of(each) for each in reasons)) or text_of(error)
                raise TimelineUnavailableError(
                    f"no database answers at {settings.hosts} (waited {settings.connect_seconds:g} s): {why}"
                ) from error
            _log.warning("timeline.waiting", hosts=settings.hosts, error=text_of(error), retry_in=delay)
            await asyncio.sleep(delay)


def _open(settings: CqlSettings) -> tuple[Cluster, Session]:
    """Connect once; blocks."""
    nodes = settings.nodes()
    profile = ExecutionProfile(
        load_balancing_policy=TokenAwarePolicy(DCAwareRoundRobinPolicy(settings.datacenter)),
        consistency_level=ConsistencyLevel.LOCAL_QUORUM,
        request_timeout=settings.request_seconds,
        retry_policy=_RetryIdempotent(),
        row_factory=tuple_factory,
    )
    try:
        tls = settings.tls()
    except OSError as error:
        raise TimelineSetupError(f"the files of PARLEY_CQL_TLS_... can't be used: {error}") from error
    cluster = Cluster(
        [host for host, _ in nodes],
        port=nodes[0][1],
        protocol_version=4,  # what ScyllaDB and Cassandra both speak
        execution_profiles={EXEC_PROFILE_DEFAULT: profile},
        auth_provider=PlainTextAuthProvider(settings.username, settings.password.get_secret_value()) if settings.username else None,
        ssl_context=tls,
        compression=False,  # bodies are small or compressed, and it costs both sides CPU
        connection_class=_Connection,
        sockopts=_SOCKET_OPTIONS,
        connect_timeout=_CONNECT_SECONDS,
        control_connection_timeout=_CONNECT_SECONDS,
        reconnection_policy=ExponentialReconnectionPolicy(*_RECONNECT_SECONDS),
        idle_heartbeat_interval=_HEARTBEAT_SECONDS,
        idle_heartbeat_timeout=_HEARTBEAT_SECONDS,
        max_schema_agreement_wait=_SCHEMA_AGREEMENT_SECONDS,
        driver_config_reporting_enabled=False,
    )
    try:
        return cluster, cluster.connect(wait_for_all_pools=True)
    except BaseException:
        cluster.shutdown()
        raise
