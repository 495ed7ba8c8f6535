"""Settings: what is refused at start."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from chassis.addresses import is_loopback
from chassis.config import ConfigError, load_settings
from services.gateway.config import GatewaySettings

TLS: dict[str, Any] = {"tls_certificate_file": Path("cert.pem"), "tls_key_file": Path("key.pem")}
KEYS: dict[str, Any] = {"token_keys_file": Path("keys.json")}


@pytest.mark.parametrize("address", ["127.0.0.1:1", "127.9.9.9:1", "[::1]:1", "localhost:1"])
def test_loopback_needs_neither_tls_nor_real_keys(address: str):
    assert is_loopback(address)
    assert GatewaySettings(listen=address).listen == address


@pytest.mark.parametrize("address", ["0.0.0.0:1", "[::]:1", "192.0.2.1:1", "chat.example.org:1"])
def test_beyond_loopback_needs_tls_and_real_keys(address: str):
    assert not is_loopback(address)
    with pytest.raises(ValidationError, match=r"needs TLS_CERTIFICATE_FILE.*needs TOKEN_KEYS_FILE"):
        GatewaySettings(listen=address)
    with pytest.raises(ValidationError, match="needs TOKEN_KEYS_FILE"):
        GatewaySettings(listen=address, **TLS)
    with pytest.raises(ValidationError, match="needs TLS_CERTIFICATE_FILE"):
        GatewaySettings(listen=address, **KEYS)
    GatewaySettings(listen=address, **TLS, **KEYS)


def test_both_can_be_allowed_on_purpose():
    GatewaySettings(listen="0.0.0.0:1", allow_plaintext_beyond_loopback=True, allow_development_key_beyond_loopback=True)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tls_key_file": Path("key.pem")}, "belong together"),
        ({"commands_burst": 10}, "COMMANDS_BURST"),
        ({"frame_bytes": 1000}, "FRAME_BYTES"),
        ({"group_members": 1_000_000}, "group_members"),
        ({"heartbeat_seconds": 0}, "heartbeat_seconds"),
        ({"heartbeat_seconds": float("inf")}, "heartbeat_seconds"),
        ({"listen": "nowhere"}, "is not host:port"),
        ({"listen": "127.0.0.1:70000"}, "is not host:port"),
    ],
)
def test_settings_that_can_not_work_are_refused(settings: dict[str, Any], message: str):
    with pytest.raises(ValidationError, match=message):
        GatewaySettings(**settings)


def test_environment_sets_them(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PARLEY_GATEWAY_HEARTBEAT_SECONDS", "7")
    assert GatewaySettings().heartbeat_seconds == 7


def test_every_bad_key_is_listed_at_once():
    environ = {"PARLEY_GATEWAY_HEARTBEAT_SECONDS": "-1", "PARLEY_GATEWAY_MAX_STREAMS": "many", "PARLEY_GATEWAY_LISTN": "x"}
    with pytest.raises(ConfigError) as error:
        load_settings(GatewaySettings, environ)
    assert [problem.partition(":")[0] for problem in error.value.problems] == sorted(environ)
