"""The compiled modules do what their sources do, and `parley up` uses them. All other tests run on the sources."""

import subprocess
import sys
from pathlib import Path

import pytest

from chassis.compiled import why_not
from services import compile as compile_script

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "build" / "compiled"
UNIT_TESTS = [
    str(path) for pattern in ("test_store_*.py", "test_gateway_*.py") for path in sorted((ROOT / "tests" / "unit").glob(pattern))
]


@pytest.fixture(scope="module")
def form() -> str:
    """Return the form that `parley up` uses on this machine once `make compiled` has run: without a C compiler the sources."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "services" / "compile.py")], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    if "No C compiler" in done.stdout:
        return "sources"
    assert why_not(FOLDER, ROOT) == ""
    return "compiled"


def run(form: str, *tests: str) -> str:
    command = [sys.executable, str(Path(__file__).with_name("compiled_run.py")), form, *tests]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_equal_seeds_give_equal_traces_in_both_forms(form):
    *traces, file = run(form).splitlines()
    *source_traces, source_file = run("sources").splitlines()
    assert traces == source_traces
    assert len(traces) >= 8
    assert source_file == str(ROOT / "services" / "store" / "decide.py")
    assert form == "sources" or file.startswith(str(FOLDER))


def test_the_unit_tests_pass_on_the_compiled_form(form):
    assert " passed" in run(form, *UNIT_TESTS, "-k", "not planted")  # bugs are planted into sources only


def test_without_a_compiler_that_is_said_and_nothing_left_behind(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(compile_script, "FOLDER", tmp_path / "compiled")
    monkeypatch.setenv("CC", "no-such-compiler -O2")
    compile_script.main()
    assert capsys.readouterr().out.startswith("No C compiler (no-such-compiler)")
    assert list(tmp_path.iterdir()) == []
