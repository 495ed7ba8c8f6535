"""What every service does as a process: settings, health, engines that are not there, signals, exit codes."""

import json
import re
import signal
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from parley_process import Program

from parley_cli.certificates import make_authority, make_leaves

# A service that stands on an engine which is there once a file is; `drain` is what it does when told to stop.
SERVICE = """
import asyncio, sys
from contextlib import asynccontextmanager
from pathlib import Path
from prometheus_client import Counter
from chassis.eventlog import LogUnavailableError
from chassis.service import run_service

engine = Path(sys.argv[1])

@asynccontextmanager
async def opening(metrics):
    Counter("engine_tries", "Each try counts in a place of its own.", registry=metrics).inc()
    if not engine.exists():
        raise LogUnavailableError(f"no broker at {engine.name}")
    yield

async def ping():
    if not engine.exists():
        raise LogUnavailableError("the broker went away")

async def serve(host):
    async with host.engine("Kafka", opening, absent=LogUnavailableError, seconds=float(sys.argv[2])):
        async with host.internal_server(lambda server: None) as server:
            failing = asyncio.Event().wait if sys.argv[3] != "break" else broken
            await host.serve(server.address, failing(), {"log": ping})
            if sys.argv[3] == "hang":
                await asyncio.Event().wait()

async def broken():
    raise ValueError("a bug")

import chassis.service
chassis.service.STOP_SECONDS = 0.5
run_service("store", (), serve)
"""

Start = Callable[..., Program]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    started: list[Program] = []

    def start(*, seconds: float = 30, how: str = "well", **environ: str) -> Program:
        environ = {"PARLEY_METRICS_LISTEN": "127.0.0.1:0", "PARLEY_LOG_JSON": "true"} | environ
        command = (sys.executable, "-c", SERVICE, str(tmp_path / "engine"), str(seconds), how)
        started.append(Program(*command, home=tmp_path, env=environ))
        return started[-1]

    yield start
    for program in started:
        program.__exit__()


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    (tmp_path / "engine").touch()
    return tmp_path / "engine"


def health(address: str) -> tuple[int, dict[str, object]]:
    try:
        with urllib.request.urlopen(f"http://{address}/healthz", timeout=10) as answer:
            return 200, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def test_it_says_that_it_is_ready_and_where_and_ends_well(start: Start, engine: Path) -> None:
    service = start()
    metrics = service.expect(r"^store is ready on 127\.0\.0\.1:\d+, metrics on http://(\S+)/metrics$")[1]
    with urllib.request.urlopen(f"http://{metrics}/metrics", timeout=10) as answer:
        assert b"process_resident_memory_bytes" in answer.read()
    service.signal(signal.SIGTERM)
    assert service.wait(10) == 0


def test_health_follows_the_engine(start: Start, engine: Path) -> None:
    service = start()
    metrics = service.expect(r"metrics on http://(\S+)/metrics$")[1]
    while health(metrics)[0] != 200:
        time.sleep(0.05)
    engine.unlink()
    while (found := health(metrics))[0] == 200:
        time.sleep(0.05)
    assert "the broker went away" in str(found)
    engine.touch()
    while health(metrics)[0] != 200:
        time.sleep(0.05)


def test_it_waits_for_an_engine_and_says_so(start: Start, tmp_path: Path) -> None:
    service = start()
    line = json.loads(service.stderr.expect(r"^(.*service\.waiting.*)$")[1])
    assert (line["engine"], line["service"], line["why"]) == ("Kafka", "store", "no broker at engine")
    (tmp_path / "engine").touch()
    metrics = service.expect(r"metrics on http://(\S+)/metrics$")[1]
    service.stderr.expect("service.waited")
    with urllib.request.urlopen(f"http://{metrics}/metrics", timeout=10) as answer:
        assert b"engine_tries_total 1.0" in answer.read()


def test_it_gives_up_after_its_bound_with_a_clear_error(start: Start) -> None:
    service = start(seconds=0.5)
    assert service.wait(20) == 75
    assert service.stderr.rest().splitlines()[-1] == "Error: Kafka is not there after 0.5 s: no broker at engine."


def test_it_can_be_stopped_while_it_waits(start: Start) -> None:
    service = start()
    service.stderr.expect("service.waiting")
    service.signal(signal.SIGTERM)
    assert service.wait(10) == 0


def test_every_bad_setting_is_named_at_once(start: Start) -> None:
    bad = {"PARLEY_LOG_LEVEL": "loud", "PARLEY_INTERNAL_LISTEN": "0.0.0.0:7081", "PARLEY_INTERNAL_LISTN": "x", "PARLEY_METRIC": "y"}
    service = start(**bad)
    assert service.wait(20) == 2
    said = service.stderr.rest()
    assert all(name in said for name in bad if name != "PARLEY_INTERNAL_LISTEN")
    assert "LISTEN 0.0.0.0:7081 is every address: ADVERTISE_ADDRESS must say which one others connect to" in said
    assert all(line.startswith("Error: ") for line in said.splitlines())


def test_an_address_in_use_is_one_clear_line(start: Start, engine: Path) -> None:
    first = start()
    address = first.expect(r"ready on (\S+),")[1]
    second = start(PARLEY_INTERNAL_LISTEN=address)
    assert second.wait(20) == 2
    assert re.fullmatch(rf"Error: can't listen on {re.escape(address)}: .*\.\n", second.stderr.rest())


def test_another_role_s_certificate_is_one_clear_line(start: Start, tmp_path: Path) -> None:
    make_authority(tmp_path)
    make_leaves(tmp_path, timedelta(days=1))
    files = {"CA": "ca.pem", "CERTIFICATE": "gateway.pem", "KEY": "gateway-key.pem"}
    service = start(**{f"PARLEY_INTERNAL_TLS_{what}_FILE": str(tmp_path / name) for what, name in files.items()})
    assert service.wait(20) == 2
    assert (
        service.stderr.rest().splitlines()[-1].startswith(f"Error: {tmp_path}/gateway.pem is a certificate for gateway, and this")
    )


def test_a_service_that_breaks_ends_with_one(start: Start, engine: Path) -> None:
    service = start(how="break")
    assert service.wait(20) == 1
    last = json.loads(service.stderr.rest().splitlines()[-1])
    assert (last["event"], last["exception"][0]["exc_value"]) == ("service.broke", "a bug")


def test_a_drain_that_hangs_is_cut(start: Start, engine: Path) -> None:
    service = start(how="hang")
    service.expect("ready on")
    service.signal(signal.SIGTERM)
    assert service.wait(10) == 1
    assert "service.stop_took_too_long" in service.stderr.rest()
