"""`parley demo` keeps its promise, tells so in its last line, and leaves nothing behind."""

import re
import time
from pathlib import Path

from parley_process import run


def test_it_ends_with_the_contract_line_and_exit_code_0(tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    begin = time.monotonic()
    code, out, err = run("demo", "--messages", "100", home=tmp_path, env={"TMPDIR": str(scratch)})
    assert (code, err) == (0, ""), f"{out}\n{err}"
    assert time.monotonic() - begin < 60
    last = out.splitlines()[-1]
    match = re.fullmatch(r"acked (\d+), stored (\d+), lost 0, duplicated 0, misordered 0", last)
    assert match, last
    assert match[1] == match[2] == str(2 * 100 + 1 + 5)
    for word in ("ready", "delivered", "read", "is switched off", "has all 5", "KILLED", "started again"):
        assert word in out
    assert not list(scratch.iterdir())
