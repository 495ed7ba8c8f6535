"""The supervisor: ready lines, restarts with backoff on pinned addresses, an end in order, and no process left behind."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from parley_cluster import supervisor as module
from parley_cluster.state_file import RunningProcess, read_state, remove_state, write_state
from parley_cluster.supervisor import ProcessFailedError, Spec, Supervisor, open_supervisor, ready_addresses
from parley_engines.processes import identify, wait_ended

# Binds where PARLEY_INTERNAL_LISTEN says, tells, notes its end in a file; how it ends is its argument.
CHILD = """
import os, signal, socket, sys, time
name, how, notes = sys.argv[1:]
host, port = os.environ.get("LISTEN", "127.0.0.1:0").split(":")
server = socket.create_server((host, int(port)))
def end(*_):
    with open(notes, "a") as file:
        file.write(f"{name} ended\\n")
    sys.exit(0)
signal.signal(signal.SIGTERM, signal.SIG_IGN if how == "stubborn" else end)
if how == "refused":
    print("Error: LISTEN is not host:port", file=sys.stderr)
    sys.exit(2)
print("a word on stderr", file=sys.stderr)
print(f"gateway is ready on 127.0.0.1:{server.getsockname()[1]}", flush=True)
if how == "dies":
    sys.exit(1)
time.sleep(300)
"""


class World:
    """A supervisor and what it said."""

    def __init__(self, folder: Path) -> None:
        self.notes = folder / "notes"
        self.said: list[tuple[str, str]] = []
        self.moved = asyncio.Event()
        self.supervisor: Supervisor

    def changed(self) -> None:
        self.moved.set()

    def spec(self, name: str, how: str = "well") -> Spec:
        command = (sys.executable, "-c", CHILD, name, how, str(self.notes))
        return Spec(name, "gateway", command, dict(os.environ), {"": "LISTEN"})

    async def wait_starts(self, name: str, starts: int) -> None:
        """Wait until a process is ready for the nth time."""
        child = self.supervisor.children[name]
        while not (child.starts >= starts and child.ready.is_set()):
            self.moved.clear()
            await self.moved.wait()


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    world = World(tmp_path)
    async with open_supervisor(lambda name, line: world.said.append((name, line)), world.changed) as world.supervisor:
        yield world


def runs(pid: int) -> bool:
    return identify(pid) is not None


@pytest.mark.parametrize(
    ("line", "addresses"),
    [
        ("gateway is ready on 127.0.0.1:80", {"": "127.0.0.1:80"}),
        (
            "gateway is ready on h:1, internal on [::1]:2, metrics on http://127.0.0.1:3/metrics",
            {"": "h:1", "internal": "[::1]:2", "metrics": "127.0.0.1:3"},
        ),
        ("nothing is ready", None),
    ],
)
def test_a_ready_line_is_read(line: str, addresses: dict[str, str] | None) -> None:
    assert ready_addresses(line) == addresses


async def test_it_starts_passes_on_what_is_said_and_stops_in_order(world: World) -> None:
    await world.supervisor.start([world.spec("a"), world.spec("b")])
    children = world.supervisor.children
    pids = [child.pid for child in children.values()]
    assert all(map(runs, pids))
    await world.supervisor.stop(["b"])
    await world.supervisor.stop(["a"])
    assert world.notes.read_text() == "b ended\na ended\n"
    assert not any(map(runs, pids))
    assert {("a", "a word on stderr"), ("b", "a word on stderr")} <= set(world.said)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
async def test_what_ends_comes_back_at_its_address(world: World, number: signal.Signals) -> None:
    await world.supervisor.start([world.spec("a")])
    child = world.supervisor.children["a"]
    pid, addresses = child.pid, child.addresses
    os.kill(pid, number)
    await world.wait_starts("a", 2)
    assert child.pid != pid
    assert child.addresses == addresses


async def test_one_that_ends_again_and_again_waits_longer_each_time(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(module.log, "warning", lambda *_, **told: pauses.append(told["again_in"]))
    monkeypatch.setattr(module, "_FIRST_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(module, "_LAST_PAUSE_SECONDS", 0.03)
    await world.supervisor.start([world.spec("a", "dies")])
    while len(pauses) < 4:
        world.moved.clear()
        await world.moved.wait()
    assert pauses[:4] == [0.01, 0.02, 0.03, 0.03]


async def test_one_that_can_not_begin_fails_the_start_with_its_words(world: World) -> None:
    with pytest.raises(ProcessFailedError, match=r"b can't begin\n  Error: LISTEN is not host:port"):
        await world.supervisor.start([world.spec("a"), world.spec("b", "refused")])


async def test_one_that_does_not_end_is_killed(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "KILL_SECONDS", 0.3)
    await world.supervisor.start([world.spec("a", "stubborn")])
    pid = world.supervisor.children["a"].pid
    await world.supervisor.stop(["a"])
    assert not runs(pid)


PARENT = """
import asyncio, os, sys
from parley_cluster.supervisor import Spec, open_supervisor

async def main():
    command = [sys.executable, "-c", "import os, time; print(f'x is ready on h:{os.getpid()}', flush=True); time.sleep(300)"]
    async with open_supervisor(lambda *_: None, lambda: None) as supervisor:
        await supervisor.start([Spec("a", "x", command, dict(os.environ))])
        print(supervisor.children["a"].pid, flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has the leash")
def test_processes_end_with_a_supervisor_that_is_killed() -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        process = identify(int(parent.stdout.readline()))
        assert process is not None
        parent.kill()
    assert wait_ended(process, 10)


FORKED = """
import asyncio, ctypes, os, sys
import uvloop
from parley_cluster.supervisor import Spec, open_supervisor

os.register_at_fork(after_in_child=os.abort)
if sys.platform == "linux":  # what pthread_atfork is there
    libc = ctypes.CDLL(None)
    libc.__register_atfork(None, None, libc.abort, None)

async def main():
    command = [sys.executable, "-c", "print('x is ready on h:1', flush=True)"]
    async with open_supervisor(lambda *_: None, lambda: None) as supervisor:
        await supervisor.start([Spec("a", "x", command, dict(os.environ))])

uvloop.run(main())
"""


def test_nothing_of_the_supervisor_runs_in_a_child() -> None:
    """Handlers in forked children, Python's and the libraries', were what died of SIGSEGV beside gRPC's threads."""
    done = subprocess.run([sys.executable, "-c", FORKED], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_state_file_is_read_as_written(tmp_path: Path) -> None:
    assert read_state(tmp_path) == []
    processes = [RunningProcess("gateway-1", "gateway", 7, False, {"": "127.0.0.1:7080"}), RunningProcess("kafka", "kafka", 8)]
    write_state(tmp_path, processes)
    assert read_state(tmp_path) == processes
    remove_state(tmp_path)
    assert read_state(tmp_path) == []
