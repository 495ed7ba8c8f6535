"""`parley up` from its first line to its last, as a user runs it."""

import os
import re
import resource
import signal
import socket
import time
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from pathlib import Path
from urllib.request import urlopen

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from parley_process import Parley, Server, run


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "data"


def test_it_names_its_address_and_how_to_chat(data: Path) -> None:
    begin = time.monotonic()
    with Server(data) as server:
        ready_seconds = time.monotonic() - begin
        host, _, port = server.address.rpartition(":")
        with socket.create_connection((host, int(port)), timeout=5):
            pass
        server.expect(rf"parley_cli chat alice --with bob --server {re.escape(server.address)} --data ")
        server.expect(r"parley_cli chat bob --with alice ")
        server.signal(signal.SIGTERM)
        assert server.wait(5) == 0
        assert server.stdout.rest().count("ready") == 1
    assert ready_seconds < 10, "3 s on an idle machine; this one may be busy"


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_drains_it_within_five_seconds(data: Path, stop: signal.Signals) -> None:
    with Server(data) as server, Parley("chat", "alice", "--server", server.address, "--data", str(data), home=data.parent) as chat:
        chat.expect("connected")
        server.signal(stop)
        assert server.wait(5) == 0
        chat.expect("reconnecting")


def test_history_is_there_after_a_restart_and_after_sigkill(data: Path) -> None:
    for round_number in range(1, 4):
        with Server(data) as server:
            options = ["--server", server.address, "--data", str(data)]
            code, out, err = run("send", "--as", "alice", "--to", "bob", f"round {round_number}", *options, home=data.parent)
            assert (code, err) == (0, "")
            assert f"#{round_number} " in out
            code, out, err = run("history", "--as", "bob", "--with", "alice", *options, home=data.parent)
            assert (code, err) == (0, "")
            assert re.findall(r"round \d", out) == [f"round {number}" for number in range(1, round_number + 1)]
            if round_number == 2:
                server.kill()
            else:
                server.signal(signal.SIGINT)
                assert server.wait(5) == 0


FORMS = pytest.mark.parametrize("form", [(), ("--distributed",)], ids=["in one process", "distributed"])


@FORMS
def test_a_second_server_on_the_same_data_is_refused(data: Path, form: tuple[str, ...]) -> None:
    with Server(data) as server:
        code, out, err = run("up", *form, "--listen", "127.0.0.1:0", "--data", str(data), home=data.parent)
        assert code == 2
        assert out == ""
        assert re.fullmatch(rf"Error: the data folder .* is in use by process {server.pid}\.\n", err)


@FORMS
def test_an_address_in_use_is_one_clear_line(data: Path, form: tuple[str, ...]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        code, out, err = run("up", *form, "--listen", address, "--data", str(data), home=data.parent)
    assert (code, out) == (2, "")
    assert err.startswith("Error: ")
    assert address in err
    assert err.count("\n") == 1


def test_two_servers_never_share_a_port(data: Path) -> None:
    with Server(data) as server:
        other = data.parent / "other"
        code, out, err = run("up", "--listen", server.address, "--data", str(other), home=data.parent)
        assert (code, out) == (2, "")
        assert server.address in err


def test_a_data_folder_that_can_not_be_used_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    code, out, err = run("up", "--listen", "127.0.0.1:0", "--data", str(tmp_path / "file"), home=tmp_path)
    assert (code, out) == (2, "")
    assert re.fullmatch(r"Error: the data folder .*file can't be used: .*\n", err)


def test_all_bad_settings_are_named_at_once(data: Path) -> None:
    environment = {"PARLEY_LOG_LEVEL": "loud", "PARLEY_LOG_JSON": "perhaps", "PARLEY_METRICS_LISTEN": "nowhere"}
    code, out, err = run("up", "--listen", "127.0.0.1:0", "--data", str(data), home=data.parent, env=environment)
    assert (code, out) == (2, "")
    for key in environment:
        assert key in err
    assert "Traceback" not in err


def test_metrics_are_served_where_asked(data: Path) -> None:
    with Server(data, "--metrics", "127.0.0.1:0") as server:
        address = server.expect(r"metrics on http://(\S+)/metrics")[1]
        with urlopen(f"http://{address}/metrics", timeout=10) as answer:
            page = answer.read()
            for name in (
                b"parley_gateway_sessions 0.0",
                b"parley_store_records_total",
                b"parley_router_events_total",
                b"process_open_fds",
            ):
                assert name in page


def test_connections_are_not_bound_by_a_shells_limit_of_open_files(data: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        with Server(data) as server:
            assert resource.prlimit(server.pid, resource.RLIMIT_NOFILE)[0] > 256
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_second_signal_ends_it_at_once(data: Path) -> None:
    with Server(data) as server:
        os.kill(server.pid, signal.SIGSTOP)  # both signals are pending when it goes on: no race with a quick drain
        server.signal(signal.SIGINT)
        server.signal(signal.SIGTERM)
        os.kill(server.pid, signal.SIGCONT)
        assert server.wait(5) in {0, 130, 143, -signal.SIGINT, -signal.SIGTERM}


def test_tls_is_spoken_with_who_trusts_the_certificate(data: Path) -> None:
    data.mkdir()
    certificate, key = self_signed(data)
    with Server(data, "--tls-certificate", str(certificate), "--tls-key", str(key)) as server:
        code, out, err = server.run("send", "--as", "alice", "--to", "bob", "sealed", "--tls-ca", str(certificate))
        assert (code, err) == (0, "")
        assert out.startswith("#1 in d_")
        for plain_or_untrusted in ([], ["--tls"]):
            code, _, err = server.run("send", "--as", "alice", "--to", "bob", "sealed", *plain_or_untrusted)
            assert code == 1
            assert "no server answers" in err


def test_beyond_loopback_it_wants_tls_and_keys_of_ones_own(data: Path) -> None:
    code, out, err = run("up", "--listen", "0.0.0.0:0", "--data", str(data), home=data.parent)
    assert (code, out) == (2, "")
    assert "needs TLS_CERTIFICATE_FILE" in err
    assert "needs TOKEN_KEYS_FILE" in err


def self_signed(folder: Path) -> tuple[Path, Path]:
    """Make a certificate for 127.0.0.1 that lasts an hour."""
    private = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(private.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(IPv4Address("127.0.0.1"))]), critical=False)
        .sign(private, hashes.SHA256())
    )
    files = folder / "certificate.pem", folder / "key.pem"
    files[0].write_bytes(certificate.public_bytes(Encoding.PEM))
    files[1].write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return files
