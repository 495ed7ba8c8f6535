"""Tokens, durations and settings as they are typed."""

import json
import os
import sys
import time
from base64 import urlsafe_b64decode
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from parley_cli.__main__ import COMMANDS, main
from parley_cli.durations import duration
from parley_cli.failures import SetupError
from parley_cli.up import read_settings, up
from services.gateway.keys import KEY_FILE_NAME, load_or_create_key


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


def claims_of(token: str) -> dict[str, Any]:
    part = token.strip().split(".")[1]
    claims: dict[str, Any] = json.loads(urlsafe_b64decode(part + "=" * (-len(part) % 4)))
    return claims


@pytest.fixture
def data(tmp_path: Path) -> Path:
    load_or_create_key(tmp_path / KEY_FILE_NAME)
    return tmp_path


def test_a_token_is_all_that_is_printed(data: Path) -> None:
    result = run("token", "alice", "--device", "phone", "--ttl", "90s", "--data", str(data))
    assert result.exit_code == 0
    assert result.stdout.count("\n") == 1
    claims = claims_of(result.stdout)
    assert (claims["sub"], claims["device"]) == ("alice", "phone")
    assert claims["exp"] - claims["iat"] == 90
    assert abs(claims["iat"] - time.time()) < 60


def test_without_a_device_no_device_is_pinned(data: Path) -> None:
    assert "device" not in claims_of(run("token", "alice", "--data", str(data)).stdout)


def test_no_key_is_made_by_asking_for_a_token(tmp_path: Path) -> None:
    result = run("token", "alice", "--data", str(tmp_path))
    assert result.exit_code == 2
    assert "run `parley up` first" in result.stderr
    assert not list(tmp_path.iterdir())


def test_a_key_that_others_may_read_is_refused(data: Path) -> None:
    (data / KEY_FILE_NAME).chmod(0o644)
    result = run("token", "alice", "--data", str(data))
    assert result.exit_code == 2
    assert "can be read by others" in result.stderr


@pytest.mark.parametrize("user", ["", "two words", "ünïcode", "x" * 129, "new\nline"])
def test_a_user_id_that_can_be_none_is_refused(data: Path, user: str) -> None:
    assert run("token", user, "--data", str(data)).exit_code == 2


@pytest.mark.parametrize(("text", "seconds"), [("90", 90), ("90s", 90), ("1.5m", 90), ("12h", 43_200), ("30d", 2_592_000)])
def test_durations_are_read(text: str, seconds: float) -> None:
    assert duration(text) == seconds


@pytest.mark.parametrize("text", ["", "0", "-1s", "1w", "s", "1e9", "99999999d", "nan"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(click.BadParameter):
        duration(text)


def test_settings_have_defaults_and_are_read_from_the_environment() -> None:
    settings, gateway = read_settings({})
    assert (settings.metrics_listen, settings.log_level, gateway.listen) == ("", "warning", "127.0.0.1:7080")
    settings, gateway = read_settings({"PARLEY_LOG_LEVEL": "info", "PARLEY_GATEWAY_LISTEN": "127.0.0.1:0"})
    assert (settings.log_level, gateway.listen) == ("info", "127.0.0.1:0")


def test_every_bad_setting_is_named_at_once() -> None:
    bad = {"PARLEY_LOG_LEVEL": "loud", "PARLEY_METRICS_LISTEN": "nowhere", "PARLEY_GATEWAY_HEARTBEAT_SECONDS": "-1"}
    with pytest.raises(SetupError) as refusal:
        read_settings(bad)
    for name in bad:
        assert name in refusal.value.message


def test_a_setting_that_is_none_is_named_and_those_of_clients_are_let_be() -> None:
    with pytest.raises(SetupError) as refusal:
        read_settings({"PARLEY_METRIC_LISTEN": "127.0.0.1:0", "PARLEY_GATEWAY_LISTN": "x", "PATH": "/bin"})
    assert refusal.value.message == "PARLEY_GATEWAY_LISTN: no such setting\nPARLEY_METRIC_LISTEN: no such setting"
    read_settings({"PARLEY_SERVER": "127.0.0.1:1", "PARLEY_TOKEN": "x", "PARLEY_DATA_DIR": "data"})


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(name: str) -> None:
    result = run(name, "--help")
    assert result.exit_code == 0
    assert f"Usage: main {name} " in result.stdout


@pytest.mark.parametrize(
    ("arguments", "asked"), [(["--help"], 0), ([], 0), (["token", "--help"], 0), (["up", "--help"], 1), (["serve", "--help"], 1)]
)
def test_only_a_server_asks_for_the_compiled_form_and_once(
    monkeypatch: pytest.MonkeyPatch, arguments: list[str], asked: int
) -> None:
    roots: list[Path] = []
    monkeypatch.setattr("parley_cli.__main__.serve_compiled", roots.append)
    result = run(*arguments)
    assert "Usage: main" in result.output
    assert len(roots) == asked


@pytest.mark.parametrize("is_open", [False, True], ids=["closed", "no pipe"])
def test_a_stdin_whose_end_never_comes_is_refused(monkeypatch: pytest.MonkeyPatch, data: Path, is_open: bool) -> None:
    with open(os.devnull) as nothing:
        monkeypatch.setattr(sys, "stdin", nothing if is_open else None)
        with pytest.raises(SetupError, match="needs a pipe as stdin"):
            up.main(["--until-stdin-ends", "--data", str(data)], standalone_mode=False)


def test_an_unknown_command_is_refused() -> None:
    assert run("nonsense").exit_code == 2


def test_a_file_without_certificates_is_named(data: Path) -> None:
    (data / "ca.pem").write_text("no certificate")
    result = run("send", "--as", "alice", "--to", "bob", "hi", "--data", str(data), "--tls-ca", str(data / "ca.pem"))
    assert (result.exit_code, result.stderr) == (2, f"Error: {data / 'ca.pem'} holds no certificate in PEM.\n")
