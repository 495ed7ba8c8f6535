"""What docs/client.md tells app developers to paste works."""

import json
import re
import subprocess
import sys
from base64 import b64decode
from collections.abc import Iterator
from pathlib import Path

import pytest
from parley_process import Parley, Program, Server, environment, run

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "client.md").read_text()
ADDRESS = "127.0.0.1:7080"  # as the document has it
BLOCKS = re.findall(r"^```(\w[\w ]*)\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with Server(tmp_path / "data") as server:
        yield server


def block(kind: str) -> str:
    (found,) = [script for name, script in BLOCKS if name == kind]
    return str(found)


def test_the_bot_answers_also_what_was_said_while_it_was_away(server: Server) -> None:
    home = server.home
    (home / "echo.py").write_text(block("python").replace(ADDRESS, server.address))
    start, chat = block("sh").splitlines()
    assert server.run("send", "--as", "alice", "--to", "echo", "are you there?")[0] == 0
    code, token, _ = run("token", "echo", "--data", str(server.data), home=home)
    assert code == 0
    assert start == "PARLEY_TOKEN=$(.venv/bin/parley token echo --ttl 30d) .venv/bin/python echo.py"
    assert chat == ".venv/bin/parley chat alice --with echo"
    variables = {"PARLEY_TOKEN": token.strip()}
    with Parley("chat", "alice", "--with", "echo", *server.client_options, home=home) as alice:
        for text in ("are you there?", "hello"):
            with Program(sys.executable, "echo.py", home=home, env=variables, directory=home) as bot:
                alice.expect(rf"echo: {re.escape(text)}$")
                bot.kill()
            alice.type("hello\n")
        alice.expect("alice: hello")
        assert alice.stdout.text.count("echo: ") == 2


def test_a_generic_client_submits_syncs_and_reads(server: Server) -> None:
    tools = server.home / "tools"
    tools.mkdir()
    grpcurl = tools / "grpcurl"
    grpcurl.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{Path(__file__).parent / "generic_client.py"}" "$@"\n')
    grpcurl.chmod(0o755)
    script = block("sh grpcurl").replace(ADDRESS, server.address)
    variables = environment(server.home, {"PARLEY_DATA_DIR": str(server.data)})
    variables["PATH"] = f"{tools}:{variables['PATH']}"
    done = subprocess.run(
        ["bash", "-eu", "-c", script], cwd=ROOT, env=variables, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    decoder, answers, rest = json.JSONDecoder(), [], done.stdout.strip()
    while rest:
        answer, end = decoder.raw_decode(rest)
        answers.append(answer)
        rest = rest[end:].lstrip()
    submitted, synced, listed = answers
    assert submitted["accepted"]["seq"] == "1"
    assert synced["conversations"][0]["conversation_id"] == submitted["accepted"]["conversation_id"]
    (event,) = listed["events"]
    assert (b64decode(event["message"]["body"]), event["actor_device_id"]) == (b"hello", "phone")


def test_every_block_is_run_by_this_file() -> None:
    assert sorted(kind for kind, _ in BLOCKS) == ["python", "sh", "sh grpcurl"]
