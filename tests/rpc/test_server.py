"""What a server on a socket owes besides its handlers: health, reflection, TLS, clear refusals, robustness, an end."""

import asyncio
import datetime
import ipaddress
import re
from contextlib import AsyncExitStack, suppress

import grpc
import grpc.aio
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from structlog.testing import capture_logs

from chassis import server as server_module
from chassis import transport
from chassis.call_tasks import CallTasks, noting_tasks
from chassis.certificates import TlsError, TlsFiles
from chassis.channels import open_channel
from chassis.server import BindError, open_server, refuse_taken
from chassis.transport import TlsRoots

SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


async def echo(request, context):
    return request


async def echo_all(requests, context):
    async for request in requests:
        yield request


async def echo_and_linger(requests, context):
    """Echo, and at the end take a few turns of the loop."""
    try:
        async for request in requests:
            yield request
    finally:
        for _ in range(5):
            await asyncio.sleep(0)


def register(server):
    handlers = {"Echo": grpc.unary_unary_rpc_method_handler(echo), "EchoAll": grpc.stream_stream_rpc_method_handler(echo_all)}
    handlers["Linger"] = grpc.stream_stream_rpc_method_handler(echo_and_linger)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Echo", handlers),))
    server.add_registered_method_handlers("test.Echo", handlers)


@pytest.fixture
async def running():
    async with open_server(bind="127.0.0.1:0", register=register, stop_grace_seconds=0.1) as running:
        yield running


@pytest.fixture
async def channel(running):
    async with open_channel(running.address) as channel:
        yield channel


@pytest.fixture(scope="module")
def tls(tmp_path_factory):
    """Make a certificate for localhost and 127.0.0.1 that signs itself."""
    folder, key = tmp_path_factory.mktemp("tls"), ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    (folder / "cert.pem").write_bytes(certificate.public_bytes(pem))
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "key.pem").write_bytes(private)
    return TlsFiles(folder / "cert.pem", folder / "key.pem")


# Health and reflection


@pytest.mark.parametrize("service", ["", "test.Echo"])
async def test_health_answers_for_the_server_and_each_service(channel, service):
    answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=service))
    assert answer.status == SERVING


async def test_health_of_an_unknown_service_is_not_found(channel):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service="nothing"))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_health_watchers_learn_that_the_server_drains(running, channel):
    call = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service="test.Echo"))
    assert (await call.read()).status == SERVING
    await running.set_serving(False)
    assert (await call.read()).status == NOT_SERVING
    await running.set_serving(True)
    assert (await call.read()).status == SERVING
    call.cancel()


async def test_reflection_lists_what_is_served(channel):
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    call = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(iter([request]))
    [answer] = [answer async for answer in call]
    names = {service.name for service in answer.list_services_response.service}
    assert names == {"test.Echo", "grpc.reflection.v1alpha.ServerReflection", "grpc.health.v1.Health"}


async def test_reflection_describes_a_service(channel):
    request = reflection_pb2.ServerReflectionRequest(file_containing_symbol="grpc.health.v1.Health")
    call = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(iter([request]))
    [answer] = [answer async for answer in call]
    assert b"HealthCheckRequest" in answer.file_descriptor_response.file_descriptor_proto[0]


# Addresses and TLS


async def test_a_second_server_on_the_address_is_refused_by_name(running):
    with pytest.raises(BindError, match=rf"^can't listen on {re.escape(running.address)}: Address already in use$") as refused:
        await open_server(bind=running.address, register=register).__aenter__()
    with pytest.raises(BindError) as beforehand:
        refuse_taken(running.address)
    assert str(beforehand.value) == str(refused.value)


@pytest.mark.parametrize("bind", ["127.0.0.1:99999", "256.0.0.1:0", "nonsense", ":1", "192.0.2.1:0"])
async def test_an_address_that_can_not_be_bound_is_named(bind):
    with pytest.raises(BindError, match=re.escape(bind)):
        await open_server(bind=bind, register=register).__aenter__()


async def test_tls_serves_whom_the_client_trusts(tls):
    async with open_server(bind="127.0.0.1:0", register=register, tls=tls, stop_grace_seconds=0.1) as running:
        async with open_channel(running.address, TlsRoots(tls.certificate)) as channel:
            assert await channel.unary_unary("/test.Echo/Echo")(b"hi", timeout=10) == b"hi"
        for distrusting in (TlsRoots(), None):
            async with open_channel(running.address, distrusting) as channel:
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await channel.unary_unary("/test.Echo/Echo")(b"hi", timeout=10)
                assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize("broken", ["missing", "garbage", "other key"])
async def test_tls_files_that_can_not_be_used_are_named(tls, tmp_path, broken):
    key = tmp_path / "bad.pem"
    if broken == "garbage":
        key.write_bytes(b"nothing")
    if broken == "other key":
        other = ec.generate_private_key(ec.SECP256R1())
        private = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        key.write_bytes(other.private_bytes(serialization.Encoding.PEM, *private))
    with pytest.raises(TlsError, match=r"bad\.pem"):
        await open_server(bind="127.0.0.1:0", register=register, tls=TlsFiles(tls.certificate, key)).__aenter__()


async def test_trusted_certificates_that_can_not_be_read_are_named(tmp_path):
    with pytest.raises(TlsError, match=r"none\.pem"):
        await open_channel("127.0.0.1:1", TlsRoots(tmp_path / "none.pem")).__aenter__()


# Robustness


async def connect(address):
    host, port = address.rsplit(":", 1)
    return await asyncio.open_connection(host, int(port))


HTTP2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS = b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"


@pytest.mark.parametrize(
    "garbage",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        bytes(range(256)) * 50,
        b"\x16\x03\x01\x02\x00\x01",  # begins like TLS
        HTTP2_PREFACE + bytes(range(255, -1, -1)) * 50,
        HTTP2_PREFACE + SETTINGS + b"\x00\x40\x00\x01\x04\x00\x00\x00\x01" + b"\xff" * 0x4000,  # headers that are none
        HTTP2_PREFACE + SETTINGS + b"\x00\x00\x08\x06\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00" * 1000,  # a ping flood
        HTTP2_PREFACE + SETTINGS + b"\x00\x00\x04\x03\x00\x00\x00\x00\x01\x00\x00\x00\x08" * 1000,  # resets of no stream
    ],
    ids=["http1", "any bytes", "tls", "after the preface", "headers", "pings", "resets"],
)
async def test_garbage_on_the_port_ends_its_own_connection_and_hurts_no_other(running, channel, garbage):
    echo = channel.unary_unary("/test.Echo/Echo")
    assert await echo(b"before") == b"before"
    reader, writer = await connect(running.address)
    writer.write(garbage)
    with suppress(ConnectionError):  # the server may hang up while it is being written to
        await writer.drain()
    assert await echo(b"during") == b"during"
    with suppress(OSError):  # or have hung up
        writer.write_eof()
        await reader.read()
    writer.close()
    with suppress(ConnectionError):
        await writer.wait_closed()
    assert await echo(b"after") == b"after"


async def test_a_connection_that_says_nothing_or_is_cut_hurts_no_other(running, channel):
    echo = channel.unary_unary("/test.Echo/Echo")
    for opening in (b"", HTTP2_PREFACE[:10], HTTP2_PREFACE + SETTINGS[:5]):
        _, writer = await connect(running.address)
        writer.write(opening)
        await writer.drain()
        assert await echo(b"still here") == b"still here"
        writer.transport.abort()
    assert await echo(b"after") == b"after"


async def test_a_client_that_pings_as_often_as_it_may_keeps_its_stream(monkeypatch):
    monkeypatch.setattr(transport, "MIN_PING_INTERVAL_MS", 500)  # gRPC's default, 5 min, would end the stream at the third ping
    monkeypatch.setattr(transport, "CLIENT_KEEPALIVE_MS", 1000)  # gRPC pings no faster
    async with (
        open_server(bind="127.0.0.1:0", register=register, stop_grace_seconds=0.1) as running,
        open_channel(running.address) as channel,
    ):
        call = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        assert (await call.read()).status == SERVING
        await asyncio.sleep(3.3)  # time for three pings, which nobody sees
        await running.set_serving(False)
        assert (await call.read()).status == NOT_SERVING
        call.cancel()


async def test_a_connection_that_nobody_uses_is_closed_and_made_anew_when_it_is_needed(monkeypatch):
    monkeypatch.setattr(transport, "MAX_IDLE_MS", 200)
    async with open_server(bind="127.0.0.1:0", register=register) as running, open_channel(running.address) as channel:
        echo = channel.unary_unary("/test.Echo/Echo")
        watching = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        assert (await watching.read()).status == SERVING
        await asyncio.sleep(0.5)  # more than the bound, which nobody sees: the stream counts as use
        assert channel.get_state() is grpc.ChannelConnectivity.READY
        watching.cancel()
        async with asyncio.timeout(10):
            await channel.wait_for_state_change(grpc.ChannelConnectivity.READY)
        assert await echo(b"again", timeout=10) == b"again"


async def test_leaving_does_not_hang_on_a_handler_that_ignores_its_cancellation(monkeypatch):
    monkeypatch.setattr(server_module, "_STOP_LIMIT_SECONDS", 0.2)
    release, started = asyncio.Event(), asyncio.Event()
    before = asyncio.all_tasks()

    async def stubborn(request, context):
        started.set()
        while not release.is_set():
            with suppress(asyncio.CancelledError):
                await release.wait()
        return request

    def register_stubborn(server):
        handlers = {"Hold": grpc.unary_unary_rpc_method_handler(stubborn)}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Hold", handlers),))

    try:
        with capture_logs() as logs:
            async with (
                open_server(bind="127.0.0.1:0", register=register_stubborn, stop_grace_seconds=0.1) as running,
                open_channel(running.address) as channel,
            ):
                call = channel.unary_unary("/test.Hold/Hold")(b"")
                await started.wait()
                call.cancel()
        assert [entry["event"] for entry in logs] == ["server did not stop in time"]
        assert [name for name in logs[0]["tasks"] if "/test.Hold/Hold" in name]
    finally:
        release.set()
        await asyncio.wait(asyncio.all_tasks() - before)


def is_of_server(task):
    """Tell gRPC's tasks for calls that it serves from those of the client."""
    return task.get_name() == "rpc_task" or task.get_name().startswith("HandleExceptions")


@pytest.mark.parametrize("streams", [100, 1], ids=["that have begun", "that begin at that moment"])
async def test_leaving_waits_for_the_tasks_of_all_streams(streams):
    """Those which gRPC has not told of: a handler that has not begun, and what is done after a handler has ended."""
    before = asyncio.all_tasks()
    with capture_logs() as logs:
        for _ in range(1 if streams > 1 else 50):
            await leave_amid(streams, before)
    assert logs == []


async def leave_amid(streams, before):
    server = AsyncExitStack()
    running = await server.enter_async_context(open_server(bind="127.0.0.1:0", register=register, stop_grace_seconds=0.05))
    async with open_channel(running.address) as channel:
        await channel.channel_ready()
        calls = [channel.stream_stream("/test.Echo/Linger")() for _ in range(streams)]
        if streams > 1:
            for call in calls:
                await call.write(b"hi")
                assert await call.read() == b"hi"
            assert len([task for task in asyncio.all_tasks() - before if is_of_server(task)]) == 2 * streams
        else:
            await asyncio.sleep(0)  # a turn: the call is on its way
        await server.aclose()
        assert [task.get_name() for task in asyncio.all_tasks() - before if is_of_server(task)] == []
        for call in calls:
            await call.code()


async def test_leaving_waits_for_what_a_task_of_a_call_makes():
    """As gRPC's first task of a call makes the second, in which the handler runs."""
    ended = []

    async def turns():
        for _ in range(5):
            await asyncio.sleep(0)

    async def second():
        await turns()
        ended.append("second")

    async def first():
        await turns()
        asyncio.create_task(second())  # noqa: RUF006 - as gRPC: the server knows it by its factory

    class Stopped:
        async def stop(self, grace):
            with noting_tasks(calls):
                asyncio.create_task(first())  # noqa: RUF006

    calls: CallTasks = {}
    with capture_logs() as logs:
        await server_module._stop(Stopped(), calls, 0.1)
    assert (ended, logs, calls) == (["second"], [], {})


async def test_an_address_is_free_again_once_the_server_has_stopped():
    async with open_server(bind="127.0.0.1:0", register=register) as first:
        address = first.address
    async with open_server(bind=address, register=register) as second, open_channel(second.address) as channel:
        assert await channel.unary_unary("/test.Echo/Echo")(b"hi", timeout=10) == b"hi"
