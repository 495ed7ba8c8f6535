"""What the README tells people to type works, in its order, and what it points to is there."""

import contextlib
import re
import shlex
import signal
from pathlib import Path

import pytest
from cluster_process import ENGINES, READY_SECONDS, own_names
from engine_fixtures import EnginesOfTheRun
from parley_process import Parley, Program, run

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
# The info string of a block: `sh` runs to its end, `sh server` until it is stopped, `sh chat` is typed into.
CTRL_C = "\x03"
BLOCKS = re.findall(r"^```sh ?(\w*)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def commands(script: str) -> list[str]:
    return [line for line in script.splitlines() if line and not line.startswith("#")]


def test_every_block_of_commands_is_run_by_this_file() -> None:
    fences = re.findall(r"^```(\S.*)$", README, re.MULTILINE)
    assert {fence for fence in fences if not fence.startswith("sh")} <= {"text"}, "a block that nobody runs"
    assert {kind for kind, _ in BLOCKS} == {"", "server", "chat", "cluster"}
    assert BLOCKS[0] == ("server", "make run\n"), "all others need it"


def test_a_reader_who_types_it_all_gets_through(tmp_path: Path) -> None:
    with contextlib.ExitStack() as running:
        environment = {"PARLEY_GATEWAY_LISTEN": "127.0.0.1:0"}
        server: Parley | None = None
        for kind, script in BLOCKS:
            if kind == "cluster":
                continue  # below: it takes engines
            for command in commands(script):
                if kind == "server":
                    server = running.enter_context(
                        Program(*shlex.split(command), home=tmp_path, env=environment, directory=ROOT, terminal=True)
                    )
                    environment["PARLEY_SERVER"] = server.expect(r"^parley is ready on (\S+)$", 120)[1]
                    continue
                program = running.enter_context(Program(*shlex.split(command), home=tmp_path, env=environment, directory=ROOT))
                if kind == "chat":
                    program.expect("connected")
                else:
                    program.end_input()
                    assert program.wait(300) == 0, f"{command}\n{program.stdout.rest()}\n{program.stderr.rest()}"
        assert server is not None
        server.type(CTRL_C)
        assert server.wait(10) == 0


@pytest.mark.engines(*ENGINES)
def test_the_cluster_comes_up_and_the_commands_work_against_it(engines: EnginesOfTheRun, tmp_path: Path) -> None:
    for name in ENGINES:
        engines.started(name)
    (script,) = [script for kind, script in BLOCKS if kind == "cluster"]
    (command,) = commands(script)
    data = tmp_path / "data"
    settings = {"PARLEY_GATEWAY_LISTEN": "127.0.0.1:0", "PARLEY_DATA_DIR": str(data), **own_names()}
    more = ["--engines", str(engines.folder)]  # those of this run of tests; a reader's own are in his data folder
    with Program(*shlex.split(command), *more, home=tmp_path, env=settings, directory=ROOT) as cluster:
        address = cluster.expect(r"^parley is ready on (\S+)$", READY_SECONDS)[1]
        options = ["--server", address, "--data", str(data)]
        with Parley("chat", "alice", "--with", "bob", *options, home=tmp_path) as chat:
            chat.expect("connected")
        for words in (["send", "--as", "alice", "--to", "bob", "hello", *options], ["demo", "--messages", "30", *options]):
            code, out, error = run(*words, home=tmp_path)
            assert code == 0, out + error
        cluster.signal(signal.SIGINT)
        assert cluster.wait(60) == 0


@pytest.mark.parametrize("target", sorted(set(re.findall(r"`make (\w+)`", README))))
def test_every_make_target_that_it_names_is_there(target: str) -> None:
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\(([^)#]+)\)", README))))
def test_every_link_leads_somewhere(link: str) -> None:
    assert (ROOT / link).exists()


def test_it_is_short_enough_to_be_read() -> None:
    assert README.count("\n") <= 120
