"""The commands of docs/operations.md do what it says."""

import re
import signal
import subprocess
from pathlib import Path

from parley_process import Server, environment

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "operations.md").read_text()


def script(kind: str) -> str:
    match = re.search(rf"^```sh {kind}\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
    assert match, kind
    return match[1]


def test_a_backup_of_a_running_server_can_be_restored(tmp_path: Path) -> None:
    backup = tmp_path / "backup"
    with Server(tmp_path / "data") as server:
        assert server.run("send", "--as", "alice", "--to", "bob", "kept")[0] == 0
        variables = environment(tmp_path, {"DATA": str(server.data), "BACKUP": str(backup)})
        subprocess.run(["bash", "-eu", "-c", script("backup")], cwd=ROOT, env=variables, check=True, timeout=60)
        assert server.run("send", "--as", "alice", "--to", "bob", "too late")[0] == 0
    with Server(backup) as restored:
        code, out, _ = restored.run("history", "--as", "bob", "--with", "alice")
        assert (code, re.findall(r"alice: (.*)", out)) == (0, ["kept"])
        assert restored.run("send", "--as", "alice", "--to", "bob", "goes on")[1].startswith("#2 ")
        restored.signal(signal.SIGTERM)
        assert restored.wait(5) == 0
    assert [path.name for path in backup.iterdir() if path.stat().st_mode & 0o077] == []


def test_every_block_of_commands_is_run() -> None:
    assert set(re.findall(r"^```(\w.*)$", TEXT, re.MULTILINE)) == {"sh backup", "ini"}
