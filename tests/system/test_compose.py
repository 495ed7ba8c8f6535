"""docker-compose.yml: valid, and every service of Parley in it starts natively with its command and settings and serves."""

import asyncio
import random
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import ExitStack
from pathlib import Path

import grpc
import grpc.aio
import pytest
import yaml
from compose_file import FILE, ROOT, compose_file, environment_of, parley_services
from engine_fixtures import EnginesOfTheRun
from grpc_health.v1 import health_pb2, health_pb2_grpc
from parley_process import Parley, run

from chassis.channels import open_channel
from parley_cli.__main__ import COMMANDS
from parley_cli.connection import local_token
from parley_client import MemoryStore, open_client
from parley_engines.ports import free_ports

HOST = "127.0.0.1"


def check_schema(file: Path) -> subprocess.CompletedProcess[str]:
    """Hold a file to the schema of the compose specification."""
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(file)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_file_is_valid_and_a_wrong_one_is_not(tmp_path: Path) -> None:
    done = check_schema(FILE)
    assert done.returncode == 0, done.stdout
    content = yaml.safe_load(FILE.read_text())
    content["services"]["store-1"]["helthcheck"] = {}
    (tmp_path / "wrong.yml").write_text(yaml.safe_dump(content))
    assert check_schema(tmp_path / "wrong.yml").returncode == 1


def test_what_services_wait_for_and_mount_is_there() -> None:
    content = compose_file({})
    services = content["services"]
    for name, service in services.items():
        for needed, how in service.get("depends_on", {}).items():
            assert needed in services, name
            ends = how["condition"] == "service_completed_successfully"
            assert ends == bool(services[needed].get("healthcheck", {}).get("disable")), f"{name} waits for {needed} the wrong way"
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert source in content["volumes"] or (ROOT / source).exists(), f"{name}: {source}"
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:"), f"{name} publishes {port} beyond this machine"


def test_no_image_names_where_it_comes_from() -> None:
    images = [service["image"] for service in compose_file({})["services"].values()]
    images += re.findall(r"^FROM (\S+)", (ROOT / "deploy" / "Dockerfile").read_text(), re.MULTILINE)
    assert images
    assert [image for image in images if "." in image.partition("/")[0] and "/" in image] == []


def test_prometheus_asks_every_process() -> None:
    asked = {
        target
        for job in yaml.safe_load((ROOT / "deploy" / "prometheus.yml").read_text())["scrape_configs"]
        for group in job["static_configs"]
        for target in group["targets"]
    }
    served = {
        f"{name}:{environment_of(service)['PARLEY_METRICS_LISTEN'].rpartition(':')[2]}"
        for name, service in parley_services(compose_file({})).items()
    }
    assert asked == served


def test_the_images_command_is_parleys_and_it_is_nobodys_process() -> None:
    text = (ROOT / "deploy" / "Dockerfile").read_text()
    assert 'ENTRYPOINT ["parley"]' in text
    assert re.search(r"^USER (?!root)\w+$", text, re.MULTILINE)
    assert "/healthz" in text
    content = compose_file({})
    for verb in {service["command"][0] for service in content["services"].values() if "parley" in service["image"]}:
        assert verb in COMMANDS


@pytest.mark.engines("kafka", "scylladb", "consul")
def test_every_service_starts_natively_with_its_command_and_settings(engines: EnginesOfTheRun, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    variables = {
        "KAFKA_SERVERS": engines.address("kafka"),
        "CQL_HOSTS": engines.address("scylladb"),
        "CONSUL_ADDRESS": engines.address("consul"),
        "KEYS": str(keys),
        "CERTS": str(tmp_path / "certs"),
    }
    names = list(parley_services(compose_file({})))
    ports = free_ports(HOST, [f"{name}/{what}" for name in names for what in ("public", "internal", "metrics")], random.Random())
    for name in names:
        own = name.upper().replace("-", "_")
        gateway = name.startswith("gateway")
        for what, variable in (
            ("public", "LISTEN" if gateway else ""),
            ("public", "ADDRESS" if gateway else ""),
            ("internal", "INTERNAL_LISTEN" if gateway else "LISTEN"),
            ("internal", "INTERNAL_ADDRESS" if gateway else "ADDRESS"),
            ("metrics", "METRICS_LISTEN"),
        ):
            if variable:
                variables[f"{own}_{variable}"] = f"{HOST}:{ports[f'{name}/{what}']}"
    content = compose_file(variables)
    for job in [*parley_services(content, "topics").values(), *parley_services(content, "schema").values()]:
        code, _, error = run(*job["command"], home=tmp_path, env=environment_of(job))
        assert code == 0, error
    for verb in ("key", "certs"):
        (job,) = parley_services(content, verb).values()
        assert run(*job["command"], home=tmp_path)[0] == 0
    with ExitStack() as running:
        started = {
            name: running.enter_context(Parley(*service["command"], home=tmp_path, env=environment_of(service)))
            for name, service in parley_services(content).items()
        }
        for program in started.values():
            program.expect("is ready on", 60)
        health = {name: f"http://{HOST}:{ports[f'{name}/metrics']}/healthz" for name in names}
        for name in names:
            wait_health(health[name], '"ready": true')
        asyncio.run(converse([variables[f"GATEWAY_{number}_ADDRESS"] for number in (1, 2)], keys))
        for role in ("gateway", "store", "router"):
            asyncio.run(refuse_strangers(f"{HOST}:{ports[f'{role}-1/internal']}"))
        for name in names:
            if name.startswith("store"):
                started[name].signal(signal.SIGTERM)
        for name in ("gateway-1", "router-1"):
            wait_health(health[name], "no store answers")


def wait_health(url: str, words: str) -> None:
    """Ask what the image's health check asks until it says these words: processes find each other meanwhile."""
    deadline, said = time.monotonic() + 60, ""
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:
                said = answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                said = error.read().decode()
        if words in said:
            return
        time.sleep(0.1)
    raise AssertionError(f"{url} says: {said}")


async def refuse_strangers(address: str) -> None:
    """Ask an internal port without a certificate."""
    async with open_channel(address) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def converse(addresses: list[str], keys: Path) -> None:
    """Let two users talk, each by way of another gateway first."""
    address = ",".join(addresses)
    other = ",".join(reversed(addresses))
    async with (
        open_client(address, token=local_token(keys, "alice", ""), device_id="phone", store=MemoryStore()) as alice,
        open_client(other, token=local_token(keys, "bob", ""), device_id="laptop", store=MemoryStore()) as bob,
    ):
        accepted = await (await alice.send(to_user="bob", body=b"hello")).accepted()
        events = bob.events()
        event = await anext(events)
        assert (event.seq, event.event.message.body) == (accepted.seq, b"hello")
        answer = await (await bob.send(to_user="alice", body=b"hi")).accepted()
        assert answer.seq == accepted.seq + 1
