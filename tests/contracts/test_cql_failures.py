"""The timeline while its database is restarted, hangs, is cut off, overloaded or does not let us in."""

import asyncio
import os
import signal
import ssl
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
from cassandra import OperationTimedOut, Unavailable, WriteFailure, WriteTimeout
from cassandra.cluster import NoHostAvailable
from cassandra.protocol import OverloadedErrorMessage
from engine_fixtures import EnginesOfTheRun
from prometheus_client import CollectorRegistry
from pydantic import SecretStr
from tls_files import make_tls_files

from chassis.timeline import Point, Row, Timeline, TimelineSetupError, TimelineUnavailableError
from chassis.timeline_cql import CqlTimeline, open_cql_timeline
from chassis.timeline_cql_metrics import Failure
from chassis.timeline_cql_session import failure_of
from chassis.timeline_cql_settings import CqlSettings

ROW = Row("events", "failures", b"k", b"v", 1)
SECONDS = 1.0  # for a request
BACK_SECONDS = 30.0  # the bound for traffic to flow again; it takes 5 at most where the machine is not crowded


class Proxy:
    """Between the driver and the database; cuts connections, or lets bytes lie."""

    def __init__(self, target: str) -> None:
        self._host, _, self._port = target.rpartition(":")
        self._connections: set[asyncio.StreamWriter] = set()
        self._flows = asyncio.Event()
        self._flows.set()
        self._pumps: set[asyncio.Task[None]] = set()
        self.accepts = True
        self.held = asyncio.Event()  # something waits since the last `hold`

    def hold(self) -> None:
        self._flows.clear()
        self.held.clear()

    def release(self) -> None:
        self._flows.set()

    def cut(self) -> None:
        for writer in self._connections:
            writer.transport.abort()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not self.accepts:
            writer.transport.abort()
            return
        there, theirs = await asyncio.open_connection(self._host, int(self._port))
        self._connections |= {writer, theirs}
        pumps = {asyncio.create_task(self._pump(reader, theirs)), asyncio.create_task(self._pump(there, writer))}
        self._pumps |= pumps
        await asyncio.wait(pumps)
        self._pumps -= pumps
        self._connections -= {writer, theirs}

    async def _pump(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await source.read(65536):
                self.held.set()
                await self._flows.wait()
                target.write(data)
                await target.drain()
        target.close()

    async def end(self) -> None:
        self._flows.set()
        self.cut()
        if self._pumps:
            await asyncio.wait(self._pumps)


@asynccontextmanager
async def open_proxy(target: str) -> AsyncIterator[tuple[Proxy, str]]:
    proxy = Proxy(target)
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    try:
        yield proxy, f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        await proxy.end()


@asynccontextmanager
async def opened(settings: CqlSettings) -> AsyncIterator[CqlTimeline]:
    async with open_cql_timeline(settings, ["events"], schema_version=1, metrics=CollectorRegistry()) as timeline:
        yield timeline


async def longest_stall(during: Callable[[], Awaitable[None]]) -> float:
    """Return for how long the loop stood still at most."""
    longest = 0.0

    async def watch() -> None:
        nonlocal longest
        last = time.monotonic()
        while True:
            await asyncio.sleep(0.01)
            now = time.monotonic()
            longest, last = max(longest, now - last), now

    watching = asyncio.create_task(watch())
    try:
        await during()
    finally:
        watching.cancel()
    return longest


async def until_it_works(timeline: Timeline) -> None:
    """Write and read until both work."""
    async with asyncio.timeout(BACK_SECONDS):
        while True:
            try:
                await timeline.write([ROW])
                assert await timeline.read_points([Point(*ROW[:3])]) == {Point(*ROW[:3]): ROW.value}
            except TimelineUnavailableError:
                await asyncio.sleep(0.05)
            else:
                return


async def until_it_fails(timeline: Timeline) -> None:
    """Write until that fails: what the database answered before it was killed may still arrive."""
    with suppress(TimelineUnavailableError):
        while True:
            await timeline.write([ROW])


def within_deadline(settings: CqlSettings) -> asyncio.Timeout:
    """Wait for what ends by the request's deadline; the rest is for a crowded machine."""
    return asyncio.timeout(settings.request_seconds + 10)


@pytest.mark.engines("scylladb")
async def test_after_a_restart_it_goes_on_by_itself(cql_database: CqlSettings, engines: EnginesOfTheRun) -> None:
    """Killed, nothing waits beyond the deadline; what was written before is there when it is back, and so is the service."""
    settings = cql_database.model_copy(update={"request_seconds": SECONDS})
    async with opened(settings) as timeline:
        await timeline.write([ROW])
        os.kill(engines.started("scylladb").pid, signal.SIGKILL)
        async with within_deadline(settings):
            await until_it_fails(timeline)
        for _ in range(20):
            async with within_deadline(settings):
                with pytest.raises(TimelineUnavailableError):
                    await timeline.read_points([Point(*ROW[:3])])
        assert engines.started("scylladb").address == settings.hosts  # started again, with the same data
        await until_it_works(timeline)


@pytest.mark.engines("scylladb")
async def test_a_database_that_hangs_is_given_up_in_time(cql_database: CqlSettings, engines: EnginesOfTheRun) -> None:
    settings = cql_database.model_copy(update={"request_seconds": SECONDS, "requests_in_flight": 2})
    async with opened(settings) as timeline:
        pid = engines.started("scylladb").pid
        os.kill(pid, signal.SIGSTOP)
        try:
            async with within_deadline(settings):  # those that wait for their turn are not given a second deadline
                writes = [timeline.write([ROW._replace(partition=f"hang {n}")]) for n in range(10)]
                failures = await asyncio.gather(*writes, return_exceptions=True)
            assert {type(failure) for failure in failures} == {TimelineUnavailableError}
        finally:
            os.kill(pid, signal.SIGCONT)
        await until_it_works(timeline)


@pytest.mark.engines("scylladb")
async def test_cut_connections_never_block_the_loop(cql_database: CqlSettings) -> None:
    """The driver waits up to 2 s for a better connection than a closed one: not on our loop."""
    async with open_proxy(cql_database.hosts) as (proxy, address):
        settings = cql_database.model_copy(update={"hosts": address, "request_seconds": SECONDS})
        async with opened(settings) as timeline:
            await timeline.write([ROW])

            async def lose_it() -> None:
                proxy.accepts = False
                proxy.cut()
                async with asyncio.timeout(SECONDS):
                    while timeline._session._is_connected():  # noqa: ASYNC110  # the driver notices on its own thread
                        await asyncio.sleep(0.001)
                for _ in range(50):
                    with suppress(TimelineUnavailableError):
                        await timeline.write([ROW])
                    await asyncio.sleep(0.01)

            assert await longest_stall(lose_it) < 1.5
            proxy.accepts = True
            await until_it_works(timeline)


@pytest.mark.engines("scylladb")
async def test_a_connection_that_ends_under_a_question_is_no_end(cql_database: CqlSettings) -> None:
    """Chaos found it: a store that asked for the log epoch at that moment ended."""
    async with open_proxy(cql_database.hosts) as (proxy, address):
        settings = cql_database.model_copy(update={"hosts": address, "request_seconds": SECONDS})
        async with open_cql_timeline(settings, ["events"], schema_version=1, metrics=CollectorRegistry()) as timeline:
            proxy.hold()
            asking = asyncio.create_task(timeline.read_facts())
            await proxy.held.wait()
            proxy.cut()
            with pytest.raises(TimelineUnavailableError):
                await asking
            proxy.release()
            await until_it_works(timeline)


@pytest.mark.engines("scylladb")
async def test_a_cancelled_caller_leaves_nothing_behind(cql_database: CqlSettings) -> None:
    """Its requests go on and give their places back; the errors that they end with are nobody's."""
    async with open_proxy(cql_database.hosts) as (proxy, address):
        settings = cql_database.model_copy(update={"hosts": address, "request_seconds": SECONDS, "requests_in_flight": 4})
        async with opened(settings) as timeline:
            proxy.hold()
            writes = [asyncio.create_task(timeline.write([ROW])) for _ in range(12)]
            await asyncio.sleep(0)
            for write in writes:
                write.cancel()
            assert all(isinstance(each, asyncio.CancelledError) for each in await asyncio.gather(*writes, return_exceptions=True))
            proxy.release()
            await until_it_works(timeline)


async def test_a_start_without_a_database_gives_up_with_what_is_wrong() -> None:
    settings = CqlSettings(hosts="127.0.0.1:1", connect_seconds=0.6)  # tcpmux: nobody has it, and nobody unprivileged can
    with pytest.raises(TimelineUnavailableError, match=r"no database answers at 127\.0\.0\.1:1 \(waited 0\.6 s\)"):
        async with opened(settings):
            pass


async def test_a_cancelled_start_ends_at_once_and_whole() -> None:
    asked = asyncio.Event()

    def turn_away(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.abort()
        asked.set()

    async with await asyncio.start_server(turn_away, "127.0.0.1", 0) as server:
        settings = CqlSettings(hosts=f"127.0.0.1:{server.sockets[0].getsockname()[1]}", connect_seconds=600)
        starting = asyncio.create_task(opened(settings).__aenter__())
        await asked.wait()
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting


async def refuse_login(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Speak as much CQL (native protocol v4) as a server that knows nobody of this name."""
    supported = struct.pack(">H", 2) + _text("CQL_VERSION") + struct.pack(">H", 1) + _text("3.0.0")
    supported += _text("COMPRESSION") + struct.pack(">H", 0)
    authenticate = _text("org.apache.cassandra.auth.PasswordAuthenticator")
    bad_credentials = struct.pack(">i", 0x0100) + _text("Provided username x and/or password are incorrect")
    answers = {0x05: (0x06, supported), 0x01: (0x03, authenticate), 0x0F: (0x00, bad_credentials)}
    with suppress(asyncio.IncompleteReadError, ConnectionError):
        while True:
            version, _, stream, opcode, length = struct.unpack(">BBhBi", await reader.readexactly(9))
            await reader.readexactly(length)
            kind, body = answers[opcode]
            writer.write(struct.pack(">BBhBi", version | 0x80, 0, stream, kind, len(body)) + body)
    writer.close()


def _text(value: str) -> bytes:
    return struct.pack(">H", len(value)) + value.encode()


async def test_wrong_credentials_end_the_start_at_once() -> None:
    server = await asyncio.start_server(refuse_login, "127.0.0.1", 0)
    async with server:
        settings = CqlSettings(
            hosts=f"127.0.0.1:{server.sockets[0].getsockname()[1]}", username="x", password=SecretStr("secret"), connect_seconds=600
        )
        with pytest.raises(TimelineSetupError, match="refuses the login") as refused:
            async with opened(settings):
                pass
        assert "secret" not in str(refused.value)


async def test_over_tls_it_trusts_whom_it_should_and_shows_who_it_is(tmp_path: Path) -> None:
    for name in ("own", "other"):
        make_tls_files(tmp_path / name)
    certificate, key = tmp_path / "own" / "cert.pem", tmp_path / "own" / "key.pem"
    served = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=certificate)
    served.load_cert_chain(certificate, key)
    served.verify_mode = ssl.CERT_REQUIRED
    server = await asyncio.start_server(refuse_login, "127.0.0.1", 0, ssl=served)

    async def refusal(expected: type[Exception], ca: str, shown: str = "") -> str:
        own = {f"tls_{what}_file": tmp_path / shown / file for what, file in (("certificate", "cert.pem"), ("key", "key.pem"))}
        settings = CqlSettings(
            hosts=f"127.0.0.1:{server.sockets[0].getsockname()[1]}", username="x", password=SecretStr("y"), connect_seconds=0,
            tls_ca_file=tmp_path / ca / "cert.pem", **(own if shown else {}),
        )  # fmt: skip
        with pytest.raises(expected) as refused:
            async with opened(settings):
                pass
        return str(refused.value)

    async with server:
        assert "refuses the login" in await refusal(TimelineSetupError, "own", "own")  # it got as far as that
        assert "no database answers" in await refusal(TimelineUnavailableError, "own")
        assert "no database answers" in await refusal(TimelineUnavailableError, "own", "other")
        assert "no database answers" in await refusal(TimelineUnavailableError, "other", "own")
        assert "PARLEY_CQL_TLS_... can't be used" in await refusal(TimelineSetupError, "nosuch")
        assert "PARLEY_CQL_TLS_... can't be used" in await refusal(TimelineSetupError, "own", "nosuch")


@pytest.mark.parametrize(
    ("error", "failure"),
    [
        (OperationTimedOut(), Failure.TIMEOUT),
        (WriteTimeout("no answer", write_type=0), Failure.TIMEOUT),
        (Unavailable("too few", required_replicas=2, alive_replicas=1), Failure.UNAVAILABLE),
        (OverloadedErrorMessage(0x1001, "busy", None), Failure.OVERLOADED),
        (WriteFailure("disk full", write_type=0), Failure.REFUSED),
        (NoHostAvailable("none", {}), Failure.UNREACHABLE),
        (NoHostAvailable("none", {"a": ConnectionRefusedError()}), Failure.UNREACHABLE),
        (NoHostAvailable("none", {"a": OverloadedErrorMessage(0x1001, "busy", None)}), Failure.OVERLOADED),
        (NoHostAvailable("none", {"a": Unavailable("too few")}), Failure.UNAVAILABLE),
    ],
)
def test_every_failure_has_its_name(error: Exception, failure: Failure) -> None:
    why, unavailable = failure_of(error)
    assert why is failure
    assert isinstance(unavailable, TimelineUnavailableError)
    assert str(unavailable)
