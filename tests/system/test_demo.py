"""`parley demo` keeps its promise, tells so in its last line, and leaves nothing behind."""

import json
import re
import time
from pathlib import Path

from parley_process import Server, run


def test_it_ends_with_the_contract_line_and_exit_code_0(tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    begin = time.monotonic()
    record = tmp_path / "demo.jsonl"
    code, out, err = run("demo", "--messages", "100", "--record", str(record), home=tmp_path, env={"TMPDIR": str(scratch)})
    assert (code, err) == (0, ""), f"{out}\n{err}"
    assert time.monotonic() - begin < 60
    last = out.splitlines()[-1]
    match = re.fullmatch(r"acked (\d+), stored (\d+), lost 0, duplicated 0, misordered 0", last)
    assert match, last
    assert match[1] == match[2] == str(2 * 100 + 1 + 5)
    for word in ("ready", "delivered", "read", "is switched off", "has all 5", "KILLED", "started again"):
        assert word in out
    assert not list(scratch.iterdir())

    code, out, err = run("check", str(record), home=tmp_path)
    assert (code, err) == (0, ""), f"{out}\n{err}"
    assert out.splitlines()[-1] == last
    judged = [line.split()[0] for line in out.splitlines() if ", broken 0 times" in line]
    assert judged == ["G1", "G2", "G3", "G4", "G5", "G6", "G7", "G8", "G9", "G11", "G12"]

    lines = record.read_text().splitlines(keepends=True)
    shown = next(line for line in lines if line.startswith('{"device":["bob","tablet"],"shown"') and '"alice"' in line)
    record.write_text("".join(line for line in lines if line != shown))
    code, out, err = run("check", str(record), "--json", home=tmp_path)
    assert code == 1
    assert "G7 lost: " in err
    assert json.loads(out)["broken"]["G7"] >= 1


def test_it_plays_on_a_server_that_runs_with_the_key_of_its_folder(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with Server(data) as server:
        options = ("--server", server.address, "--messages", "10")
        code, out, err = run("demo", *options, home=tmp_path, env={"PARLEY_DATA_DIR": str(data)})
    assert (code, err) == (0, ""), f"{out}\n{err}"
    assert re.fullmatch(r"acked 26, stored 26, lost 0, duplicated 0, misordered 0", out.splitlines()[-1])
    code, out, err = run("demo", "--data", str(data), home=tmp_path)
    assert (code, out) == (2, "")
    assert err == "Error: --data is the folder of a server that runs: name that one, too, by --server.\n"
