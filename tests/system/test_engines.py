"""`parley engines` as a user runs it, with the engine that starts fastest."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from engine_fixtures import ENVIRON, KILL_SECONDS, EnginesOfTheRun
from parley_process import run

from parley_engines.processes import is_running, wait_ended
from parley_engines.provision import default_cache_dir
from parley_engines.state import read_state

pytestmark = pytest.mark.engines("consul")


class Engines:
    """The command on a data folder."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.data = home / "engines"

    def __call__(self, *arguments: str) -> tuple[int, str, str]:
        options = ["--data", str(self.data), "--by", "native"]
        cache = default_cache_dir(ENVIRON).parent.parent  # where this run provisioned it
        return run("engines", *arguments, *options, home=self.home, env={"XDG_CACHE_HOME": str(cache)})


@pytest.fixture
def command(tmp_path: Path, engines: EnginesOfTheRun) -> Iterator[Engines]:
    engines.started("consul")  # skips where it can't be had
    command = Engines(tmp_path)
    yield command
    command("down")


def test_engines_are_started_watched_and_stopped(command: Engines) -> None:
    assert command("status")[0] == 1
    code, out, err = command("up", "consul")
    assert (code, out.split()[0]) == (0, "consul"), err
    assert "consul: ready on 127.0.0.1:" in err
    first = read_state(command.data)["consul"]
    (row,) = json.loads(command("status", "consul", "--json")[1])
    assert (row["state"], row["address"], row["pid"]) == ("ready", first.address, first.pid)

    assert command("up", "consul")[0] == 0  # runs already
    assert read_state(command.data)["consul"] == first
    assert first.log in command("logs", "consul")[1]

    os.kill(first.pid, signal.SIGKILL)
    assert wait_ended(first.process, KILL_SECONDS)
    code, out, _ = command("status", "consul")
    assert (code, out.split()) == (1, ["consul", "stopped"])
    assert command("up", "consul")[0] == 0
    second = read_state(command.data)["consul"]
    assert (second.address, second.pid != first.pid) == (first.address, True)

    code, _, err = command("down")
    assert (code, err) == (0, "consul: stopped\n")
    assert not is_running(second.process)
    assert command("down") == (0, "", "")


def test_an_engine_that_ends_while_it_starts_is_told_with_its_last_words(command: Engines) -> None:
    (command.data / "consul" / "data").mkdir(parents=True)
    (command.data / "consul" / "data" / "raft").touch()  # in the place of its folder
    code, _, err = command("up", "consul")
    assert (code, "consul ended while it started" in err, "raft" in err) == (1, True, True), err


def test_what_is_no_engine_is_refused(command: Engines) -> None:
    code, _, err = command("up", "postgres")
    assert (code, "'kafka', 'scylladb', 'consul'" in err) == (2, True)
