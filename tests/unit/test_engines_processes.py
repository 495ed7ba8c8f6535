"""Processes of engines: the right one is ended, and none outlives who holds it on a leash."""

import os
import random
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from parley_engines import processes
from parley_engines.docker import DockerEngines
from parley_engines.errors import EngineError
from parley_engines.native import engines_of
from parley_engines.ports import free_ports, is_free
from parley_engines.processes import ProcessIdentity
from parley_engines.state import Started, locked, read_state, write_state

ENVIRON = {"PATH": "/bin:/usr/bin"}
SLEEPER = [sys.executable, "-c", "import sys, time; print('up', flush=True); time.sleep(300)"]
STUBBORN = [
    sys.executable,
    "-c",
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(300)",
]


def start(tmp_path: Path, command: list[str]) -> ProcessIdentity:
    return processes.start(command, tmp_path, ENVIRON, tmp_path / "log", leashed=True)


def wait_up(tmp_path: Path, process: ProcessIdentity) -> None:
    while "up" not in (tmp_path / "log").read_text():
        assert not processes.wait_ended(process, 0.02)


def test_a_process_is_ended_when_asked(tmp_path: Path) -> None:
    process = start(tmp_path, SLEEPER)
    assert processes.is_running(process)
    assert not processes.wait_ended(process, 0.01)
    processes.stop(process, 10)
    assert not processes.is_running(process)


def test_one_that_does_not_listen_is_killed(tmp_path: Path) -> None:
    process = start(tmp_path, STUBBORN)
    wait_up(tmp_path, process)
    processes.stop(process, 0.2)
    assert not processes.is_running(process)


def test_another_process_with_the_same_pid_is_left_alone(tmp_path: Path) -> None:
    process = start(tmp_path, SLEEPER)
    processes.stop(process._replace(started="in another life"), 1)
    assert processes.is_running(process)
    processes.stop(process, 10)


PARENT = """
import sys
from pathlib import Path
from parley_engines import processes
folder = Path(sys.argv[1])
process = processes.start([sys.executable, "-c", "import time; time.sleep(300)"], folder, {}, folder / "log", leashed=True)
print(process.pid, process.started, flush=True)
sys.stdin.read()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has the leash")
def test_who_kills_the_holder_kills_what_is_on_the_leash(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        pid, started = parent.stdout.readline().split()
        child = ProcessIdentity(int(pid), started)
        assert processes.is_running(child)
        parent.send_signal(signal.SIGKILL)
    assert processes.wait_ended(child, 10)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has timer slack")
def test_timers_may_be_late_as_told(tmp_path: Path) -> None:
    code = "print(open('/proc/self/timerslack_ns').read(), flush=True)"
    output = tmp_path / "log"
    command = [sys.executable, "-c", code]
    process = processes.start(command, tmp_path, ENVIRON, output, leashed=True, timer_slack_seconds=0.001)
    assert processes.wait_ended(process, 10)
    assert output.read_text().strip() == "1000000"


def test_ports_are_free_and_distinct() -> None:
    ports = free_ports("127.0.0.1", ["a", "b", "c"], random.Random(1))
    assert len(set(ports.values())) == 3
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert not is_free("127.0.0.1", server.getsockname()[1])


def entry(pid: int, started: str) -> Started:
    return Started("kafka", "Apache Kafka", pid, started, {"client": 1, "controller": 2}, "127.0.0.1:1", "log")


def test_the_state_is_read_as_it_was_written_and_never_half(tmp_path: Path) -> None:
    assert read_state(tmp_path) == {}
    write_state(tmp_path, {"kafka": entry(1, "then")})
    assert read_state(tmp_path) == {"kafka": entry(1, "then")}
    (tmp_path / "engines.json").write_text("{")
    with pytest.raises(EngineError, match=r"engines\.json"):
        read_state(tmp_path)


def test_two_commands_do_not_start_and_stop_at_once(tmp_path: Path) -> None:
    with locked(tmp_path), pytest.raises(EngineError, match="another command"), locked(tmp_path):
        pass


def test_down_never_touches_a_process_that_is_not_its_own(tmp_path: Path) -> None:
    write_state(tmp_path, {"kafka": entry(os.getpid(), "in another life")})
    said: list[str] = []
    engines_of(tmp_path, said.append, ENVIRON).down(["kafka"])
    assert said == []
    assert engines_of(tmp_path, said.append, ENVIRON).status(["kafka"])["kafka"][1] == "stopped"


DOCKER = """#!/bin/sh
echo "$@" >> {calls}
case "$*" in
  info) exit {info} ;;
  *" ps "*) echo '{{"Service": "kafka", "State": "running", "Health": "healthy"}}'
            echo '{{"Service": "consul", "State": "running", "Health": "starting"}}' ;;
esac
"""


@pytest.fixture
def docker(tmp_path: Path) -> DockerEngines:
    """A docker program that notes what it is asked, in place of the real one."""
    (tmp_path / "docker-compose.yml").touch()
    (tmp_path / "docker").write_text(DOCKER.format(calls=tmp_path / "calls", info=0))
    (tmp_path / "docker").chmod(0o700)
    return DockerEngines(tmp_path / "docker-compose.yml", {"PATH": f"{tmp_path}:/bin:/usr/bin"}, print)


def calls(tmp_path: Path) -> list[str]:
    return (tmp_path / "calls").read_text().splitlines()


def test_with_docker_compose_does_it(tmp_path: Path, docker: DockerEngines) -> None:
    assert docker.is_usable()
    docker.up(["kafka", "scylladb"])
    docker.logs(["kafka"], 7, follow=False)
    docker.down(["kafka", "scylladb"])
    compose = f"compose --file {tmp_path / 'docker-compose.yml'}"
    assert calls(tmp_path) == [
        "compose version",
        "info",
        f"{compose} up --detach --wait kafka scylladb",
        f"{compose} logs --tail 7 kafka",
        f"{compose} stop kafka scylladb",
    ]
    assert docker.status(["kafka", "scylladb", "consul"]) == {
        "kafka": "ready",
        "scylladb": "stopped",
        "consul": "not ready: starting",
    }


def test_docker_without_its_engine_or_without_the_file_is_of_no_use(tmp_path: Path, docker: DockerEngines) -> None:
    (tmp_path / "docker").write_text(DOCKER.format(calls=tmp_path / "calls", info=1))
    assert not docker.is_usable()
    (tmp_path / "docker").write_text(DOCKER.format(calls=tmp_path / "calls", info=0))
    (tmp_path / "docker-compose.yml").unlink()
    assert not docker.is_usable()
