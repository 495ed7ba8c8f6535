"""The compiled modules do what their sources do, and servers use them. All other tests run on the sources."""

import os
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


# Whose processes have modules that may be compiled, and one of them. A router has none of its own.
SERVERS = [
    *(("services.store", [], "services.store.decide"), ("services.gateway", [], "services.gateway.commands")),
    ("parley_cli", ["serve", "store"], "services.store.decide"),
]
# Runs a module as `python -m` does, and says at the end where another one was imported from.
LOOK = """
import atexit, runpy, sys
_, wanted, module, *arguments = sys.argv
atexit.register(lambda: print(sys.modules[wanted].__file__))
sys.argv = [module, *arguments]
runpy.run_module(module, run_name="__main__", alter_sys=True)
"""


def form_of(wanted: str, module: str, *arguments: str, **settings: str) -> str:
    """Start a server that is told nonsense, which it notices once all is imported; return which form of a module it has."""
    environ = {name: value for name, value in os.environ.items() if name != "PARLEY_COMPILED"}
    environ |= {"PARLEY_CLUSTER_NONSENSE": "1", **settings}
    command = [sys.executable, "-c", LOOK, wanted, module, *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2, done.stderr
    assert "PARLEY_CLUSTER_NONSENSE" in done.stderr
    assert "compiled modules are not used" not in done.stderr
    return "compiled" if done.stdout.startswith(str(FOLDER)) else "sources"


@pytest.mark.parametrize(("module", "arguments", "wanted"), SERVERS)
def test_services_of_a_cluster_run_on_it(form, module, arguments, wanted):
    assert form_of(wanted, module, *arguments) == form
    assert form_of(wanted, module, *arguments, PARLEY_COMPILED="0") == "sources"


@pytest.mark.usefixtures("form")
def test_the_command_explains_itself_on_it():
    environ = {name: value for name, value in os.environ.items() if name != "PARLEY_COMPILED"}
    command = [sys.executable, "-m", "parley_cli", "--help"]
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "Commands:" in done.stdout
    assert done.stderr == ""


def test_what_chaos_breaks_runs_on_its_sources(form):
    assert form_of("services.store.decide", "parley_chaos.service", CHAOS_ROLE="store") == "sources"


def test_without_a_compiler_that_is_said_and_nothing_left_behind(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(compile_script, "FOLDER", tmp_path / "compiled")
    monkeypatch.setenv("CC", "no-such-compiler -O2")
    compile_script.main()
    assert capsys.readouterr().out.startswith("No C compiler (no-such-compiler)")
    assert list(tmp_path.iterdir()) == []
