"""Trust between services, over real sockets: who gets in, who does not and why, and certificates that are renewed meanwhile."""

import asyncio
import datetime
import inspect
import shutil
import ssl
from contextlib import asynccontextmanager

import grpc
import grpc.aio
import mutation
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status
from structlog.testing import capture_logs

from chassis import callers, channels, renewed_channel
from chassis import certificates as certificates_module
from chassis import server as server_module
from chassis.certificates import ROLE_DOMAIN, Certificates, TlsError, TlsFiles
from chassis.channels import open_channel
from chassis.errors import reason_of
from chassis.server import open_server
from chassis.transport import Callers, Peer
from parley_cli.certificates import make_authority, make_leaves

DAY = datetime.timedelta(days=1)
SERVING = health_pb2.HealthCheckResponse.SERVING
CALLERS = frozenset({"gateway", "router"})


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return new_authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def foreign(tmp_path_factory):
    return new_authority(tmp_path_factory.mktemp("foreign"))


def new_authority(folder):
    make_authority(folder)
    make_leaves(folder, DAY)
    return folder


def certificates(folder, role, ca=None):
    return Certificates(TlsFiles(folder / f"{role}.pem", folder / f"{role}-key.pem", (ca or folder) / "ca.pem"))


def serial(pem):
    return x509.load_pem_x509_certificate(pem).serial_number


async def echo(request, context):
    return request


async def echo_each(requests, context):
    async for request in requests:
        yield request


def register(server):
    handlers = {"Echo": grpc.unary_unary_rpc_method_handler(echo), "EchoEach": grpc.stream_stream_rpc_method_handler(echo_each)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Store", handlers),))
    server.add_registered_method_handlers("test.Store", handlers)


@asynccontextmanager
async def store(folder, role="store"):
    tls = Callers(certificates(folder, role), CALLERS)
    async with open_server(bind="127.0.0.1:0", register=register, tls=tls, stop_grace_seconds=0.1) as running:
        yield running.address


async def call(channel, body=b"hi"):
    return await channel.unary_unary("/test.Store/Echo")(body, timeout=10)


async def refusal(channel):
    """Return the code, the reason and the detail of a call that must fail."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(channel)
    status = rpc_status.from_call(caught.value)
    return caught.value.code(), status and reason_of(status), caught.value.details()


# Who gets in


@pytest.mark.parametrize("role", sorted(CALLERS))
async def test_services_of_one_authority_whose_role_is_welcome_talk(authority, role):
    async with store(authority) as address, open_channel(address, Peer(certificates(authority, role), "store")) as channel:
        assert await call(channel) == b"hi"
        stream = channel.stream_stream("/test.Store/EchoEach")(timeout=10)
        await stream.write(b"1")
        assert await stream.read() == b"1"
        await stream.done_writing()


@pytest.mark.parametrize("role", ["store", "presence", "push"])
async def test_another_role_is_told_that_it_may_not(authority, role):
    async with store(authority) as address, open_channel(address, Peer(certificates(authority, role), "store")) as channel:
        assert await refusal(channel) == (
            grpc.StatusCode.PERMISSION_DENIED,
            "CALLER_NOT_ALLOWED",
            f"/test.Store/Echo: a {role} may not call it, only gateway, router may",
        )
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await channel.stream_stream("/test.Store/EchoEach")(timeout=10).read()
        assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED


async def test_every_service_of_the_authority_may_ask_for_health(authority):
    async with store(authority) as address, open_channel(address, Peer(certificates(authority, "push"), "store")) as channel:
        assert (await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10)).status == SERVING


async def test_a_certificate_without_a_role_is_nobody_s(authority, tmp_path):
    sign(authority, tmp_path, "nobody", names=[])
    peer = Peer(certificates(tmp_path, "nobody", authority), "store")
    async with store(authority) as address, open_channel(address, peer) as channel:
        assert (await refusal(channel))[:2] == (grpc.StatusCode.UNAUTHENTICATED, "CALLER_UNKNOWN")


async def test_without_a_certificate_nobody_gets_in(authority):
    async with store(authority) as address:
        async with open_channel(address) as channel:
            assert (await refusal(channel))[0] is grpc.StatusCode.UNAVAILABLE
        async with bare_channel(address, authority) as channel:
            assert (await refusal(channel))[0] is grpc.StatusCode.UNAVAILABLE


@asynccontextmanager
async def bare_channel(address, ca, folder=None, name=""):
    """Connect as a client that checks nothing of its own: what it can't do, the server has refused."""
    pair = (None, None) if folder is None else ((folder / f"{name}-key.pem").read_bytes(), (folder / f"{name}.pem").read_bytes())
    credentials = grpc.ssl_channel_credentials((ca / "ca.pem").read_bytes(), *pair)
    options = [("grpc.ssl_target_name_override", f"store{ROLE_DOMAIN}"), ("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.secure_channel(address, credentials, options) as channel:
        yield channel


async def test_a_certificate_of_another_authority_does_not_get_in(authority, foreign):
    async with store(authority) as address, bare_channel(address, authority, authority, "gateway") as channel:
        assert await call(channel) == b"hi"
    async with store(authority) as address, bare_channel(address, authority, foreign, "gateway") as channel:
        assert (await refusal(channel))[0] is grpc.StatusCode.UNAVAILABLE


async def test_an_expired_certificate_is_named_at_the_start_and_does_not_get_in(authority, tmp_path):
    sign(authority, tmp_path, "gateway", names=["gateway"], until=-DAY)
    with pytest.raises(TlsError, match=rf"{tmp_path}/gateway\.pem expired on \d{{4}}-"):
        certificates(tmp_path, "gateway", authority)
    async with store(authority) as address, bare_channel(address, authority, tmp_path, "gateway") as channel:
        assert (await refusal(channel))[0] is grpc.StatusCode.UNAVAILABLE


async def test_who_connects_expects_a_role_and_an_authority(authority, foreign):
    gateway = Peer(certificates(authority, "gateway"), "store")
    async with store(authority, role="router") as address, open_channel(address, gateway) as channel:
        assert (await refusal(channel))[0] is grpc.StatusCode.UNAVAILABLE
    async with store(foreign) as address, open_channel(address, gateway) as channel:
        assert (await refusal(channel))[0] is grpc.StatusCode.UNAVAILABLE


async def test_the_authority_certifies_nothing_but_roles(authority, tmp_path):
    """Also with a stolen key: a name of the Internet, signed by it, is refused."""
    sign(authority, tmp_path, "gateway", names=[], dns=["gateway.parley.internal", "bank.test"])
    async with store(authority) as address, bare_channel(address, authority, tmp_path, "gateway") as channel:
        assert (await refusal(channel))[0] is grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize("role", ["router", "gate", ""])
def test_a_certificate_for_another_role_is_named_at_the_start(authority, role):
    certificates(authority, "gateway").require_role("gateway")
    with pytest.raises(
        TlsError, match=rf"gateway\.pem is a certificate for gateway, and this is a {role}: it needs {role}\.parley"
    ):
        certificates(authority, "gateway").require_role(role)


def sign(authority, folder, file, *, names, dns=(), until=DAY):
    """Sign what `make_leaves` would not."""
    ca = x509.load_pem_x509_certificate((authority / "ca.pem").read_bytes())
    ca_key = serialization.load_pem_private_key((authority / "ca-key.pem").read_bytes(), None)
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder().subject_name(x509.Name([])).issuer_name(ca.subject).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(now - 2 * DAY).not_valid_after(now + until)
    if all_names := [*(name + ROLE_DOMAIN for name in names), *dns]:
        builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(name) for name in all_names]), critical=True)
    pem, private = serialization.Encoding.PEM, (serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / f"{file}.pem").write_bytes(builder.sign(ca_key, hashes.SHA256()).public_bytes(pem))
    (folder / f"{file}-key.pem").write_bytes(key.private_bytes(pem, *private))


# Renewal


@pytest.fixture
def renewable(authority, tmp_path):
    return shutil.copytree(authority, tmp_path / "renewable")


async def served(address, ca):
    """Return the serial number of the certificate that a new connection gets."""
    context = ssl.create_default_context(cafile=ca / "ca.pem")
    context.set_alpn_protocols(["h2"])
    _, writer = await asyncio.open_connection(*address.split(":"), ssl=context, server_hostname=f"store{ROLE_DOMAIN}")
    shown = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.transport.abort()
    return x509.load_der_x509_certificate(shown).serial_number


async def test_a_new_authority_takes_over_while_calls_run(renewable, foreign, monkeypatch):
    monkeypatch.setattr(renewed_channel, "_LOOK_SECONDS", 0.0)
    async with store(renewable) as address, open_channel(address, Peer(certificates(renewable, "gateway"), "store")) as channel:
        echo, each = channel.unary_unary("/test.Store/Echo"), channel.stream_stream("/test.Store/EchoEach")
        assert await echo(b"before", timeout=10) == b"before"
        running = each(timeout=20)
        await running.write(b"1")
        assert await running.read() == b"1"
        for file in foreign.iterdir():
            shutil.copy(file, renewable)
        assert await echo(b"after", timeout=10) == b"after"  # made by the same multicallable: stubs need not know
        async with bare_channel(address, foreign, foreign, "router") as other:
            assert await call(other) == b"hi"
        await running.write(b"2")
        assert await running.read() == b"2"
        await running.done_writing()


async def test_a_call_that_outlives_two_renewals_is_ended(renewable, monkeypatch):
    monkeypatch.setattr(renewed_channel, "_LOOK_SECONDS", 0.0)
    async with store(renewable) as address, open_channel(address, Peer(certificates(renewable, "gateway"), "store")) as channel:
        running = channel.stream_stream("/test.Store/EchoEach")(timeout=20)
        await running.write(b"1")
        assert await running.read() == b"1"
        for _ in range(2):
            make_leaves(renewable, DAY, replace=True)
            assert await call(channel) == b"hi"
        with pytest.raises(asyncio.CancelledError):
            await running.read()


async def test_files_that_do_not_belong_together_change_nothing_until_they_do(renewable, authority, tmp_path):
    held = certificates(renewable, "store")
    before = held.current()
    renewed = shutil.copytree(authority, tmp_path / "renewed")
    make_leaves(renewed, DAY, replace=True)
    with capture_logs() as logs:
        shutil.copy(renewed / "store-key.pem", renewable)
        assert held.current() == held.current() == before
        assert [entry["event"] for entry in logs] == ["tls.files_unusable"]
        shutil.copy(renewed / "store.pem", renewable)
        after = held.current()
    assert after.certificate == (renewed / "store.pem").read_bytes()
    assert after.version == before.version + 1
    (renewable / "store.pem").unlink()
    assert held.current() == after


async def test_a_public_port_serves_renewed_files_to_those_who_come_later(renewable):
    tls = TlsFiles(renewable / "store.pem", renewable / "store-key.pem")
    options = {"register": register, "tls": tls, "stop_grace_seconds": 0.1}
    async with open_server(bind="127.0.0.1:0", **options) as running, bare_channel(running.address, renewable) as first:
        assert await call(first) == b"hi"
        before = await served(running.address, renewable)
        assert before == serial((renewable / "store.pem").read_bytes())
        make_leaves(renewable, DAY, ["store"], replace=True)
        after = await served(running.address, renewable)
        assert after == serial((renewable / "store.pem").read_bytes()) != before
        assert await call(first) == b"hi"


def test_a_certificate_that_ends_soon_is_told(authority):
    with capture_logs() as logs:
        certificates(authority, "gateway")
    assert [entry["event"] for entry in logs] == ["tls.certificate_expires"]


def test_roots_that_are_no_certificates_are_named(authority, tmp_path):
    (tmp_path / "ca.pem").write_text("nothing")
    with pytest.raises(TlsError, match=rf"{tmp_path}/ca\.pem"):
        certificates(authority, "gateway", tmp_path)
    with pytest.raises(TlsError, match=r"none\.pem"):
        Certificates(TlsFiles(authority / "gateway.pem", authority / "gateway-key.pem", authority / "none.pem"))


# Rules broken on purpose


BROKEN_RULES = {
    "any role may": (callers, "admitting", "callers & allowed or", "True or", test_another_role_is_told_that_it_may_not),
    "no role is a role": (callers, "admitting", "if not callers:", "if False:", test_a_certificate_without_a_role_is_nobody_s),
    "no certificate is needed": (
        certificates_module,
        "dynamic_server_credentials",
        "pems.ca is not None",
        "False",
        test_without_a_certificate_nobody_gets_in,
    ),
    "another role is expected": (
        channels,
        "_mutual",
        "peer.role + ROLE_DOMAIN",
        '"router" + ROLE_DOMAIN',
        test_who_connects_expects_a_role_and_an_authority,
    ),
}


@pytest.mark.parametrize("rule", BROKEN_RULES)
async def test_a_broken_rule_of_trust_is_found(monkeypatch, authority, foreign, tmp_path, rule):
    owner, name, old, new, found_by = BROKEN_RULES[rule]
    mutation.replace(monkeypatch, owner, name, old, new)
    monkeypatch.setattr(server_module, "admitting", callers.admitting)
    monkeypatch.setattr(server_module, "dynamic_server_credentials", certificates_module.dynamic_server_credentials)
    given = {"authority": authority, "foreign": foreign, "tmp_path": tmp_path, "role": "push"}
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        await found_by(**{name: given[name] for name in inspect.signature(found_by).parameters})
