"""A test run tells the truth: what leaves something behind fails, and with CI=true so does what did not run."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
RUN_SECONDS = 100  # beyond what tests in such a run wait for each other


def run(folder: Path, source: str, *options: str, tier: str = "unit", **environ: str) -> str:
    """Run the source as a test file of a tier under our conftest and settings; return what pytest printed."""
    for name in ("conftest.py", "engine_fixtures.py", "workers.py"):
        shutil.copy(ROOT / "tests" / name, folder)
    (folder / tier).mkdir(exist_ok=True)
    file = folder / tier / "test_it.py"
    file.write_text(source)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-c",
        ROOT / "pyproject.toml",
        "--rootdir",
        folder,
        "-p",
        "no:cacheprovider",
        *options,
        file,
    ]
    clean = {name: value for name, value in os.environ.items() if name != "CI"}
    done = subprocess.run(
        command, cwd=folder, env=clean | environ, capture_output=True, text=True, timeout=RUN_SECONDS, check=False
    )
    return done.stdout


SKIPS = """
import pytest

def test_skips():
    pytest.skip("no engine here")

@pytest.mark.xfail(reason="not yet")
def test_is_expected_to_fail():
    assert False

def test_passes():
    pass
"""


MISSPELT = """
import pytest

@pytest.mark.engines("kafak")
def test_waits():
    pass
"""


def test_an_engine_that_is_none_is_named_with_the_test_that_asks_for_it(tmp_path):
    assert "test_it.py::test_waits is marked with an engine that is none: kafak" in run(tmp_path, MISSPELT)


def test_a_skip_is_reported_and_with_ci_a_failure(tmp_path):
    assert "1 passed, 1 skipped, 1 xfailed" in run(tmp_path, SKIPS)
    verdict = run(tmp_path, SKIPS, CI="true")
    assert "2 failed, 1 passed" in verdict
    assert "did not run, and CI=true: Skipped: no engine here" in verdict


def test_a_file_that_skips_itself_fails_with_ci(tmp_path):
    source = "import pytest\npytest.importorskip('no_such_module')\n"
    assert "1 error" in run(tmp_path, source, CI="true")


LEAKS = """
import asyncio, subprocess, sys, threading, time

kept = []

async def test_leaves_a_task():
    kept.append(asyncio.create_task(asyncio.Event().wait(), name="orphan"))

def test_leaves_a_process():
    kept.append(subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE))

def test_ends_the_process_of_another():
    kept[-1].communicate()

def test_leaves_a_thread(monkeypatch):
    monkeypatch.setattr("conftest.THREAD_END_SECONDS", 0)
    kept.append(threading.Event())
    threading.Thread(target=kept[-1].wait, name="lost").start()

def test_ends_the_thread_of_another():
    kept[-1].set()
"""


def test_what_is_left_behind_fails_the_test_that_left_it(tmp_path):
    output = run(tmp_path, LEAKS)
    assert "5 passed, 3 errors" in output
    for left in ("tasks left behind: ['orphan']", "left behind: process ", "left behind: thread lost"):
        assert left in output


HANGS = """
import asyncio, conftest

conftest.ASYNC_TEST_SECONDS = 0

async def test_waits_for_ever():
    await asyncio.Event().wait()

async def test_passes():
    pass
"""


def test_a_wait_without_end_fails_where_it_waits(tmp_path):
    output = run(tmp_path, HANGS)
    assert "1 failed, 1 passed" in output
    assert "await asyncio.Event().wait()" in output


NEEDS_AN_ENGINE = """
import pytest

@pytest.mark.engines("kafka")
def test_needs_it(engines):
    engines.address("kafka")

def test_forgot_its_mark(engines):
    with pytest.raises(LookupError, match="mark"):
        engines.address("consul")
"""


def test_without_the_tools_for_an_engine_its_tests_do_not_run_and_say_so(tmp_path):
    environ = {"PATH": "/nowhere", "JAVA_HOME": "", "XDG_CACHE_HOME": str(tmp_path)}
    said = run(tmp_path, NEEDS_AN_ENGINE, **environ)
    assert "1 passed, 1 skipped" in said
    assert "kafka can't be had, its tests will not run" in said
    assert "install Java 17" in said
    assert "1 failed, 1 passed" in run(tmp_path, NEEDS_AN_ENGINE, CI="true", **environ)


MANY = """
import multiprocessing, os, select, signal
import pytest

all_are_at_work = multiprocessing.get_context("fork").Barrier(3 if WITH_OWN else 2)
met = []

@pytest.mark.parametrize("number", range(100))
def test_each(number, request):
    if not met:
        met.append(all_are_at_work.wait(60))
    with open("ran", "a") as file:
        print(number, multiprocessing.current_process().name, file=file)
    print("said by", number)
    if number in FAIL:
        pytest.fail("on purpose")
    if DIE:
        DIE(request)

def alone(request):
    if multiprocessing.current_process().name == "worker-1":
        os.kill(os.getpid(), signal.SIGKILL)

def in_the_midst_of_a_word(request):
    if multiprocessing.current_process().name == "worker-1":
        (end,) = (plugin._end for plugin in request.config.pluginmanager.get_plugins() if type(plugin).__name__ == "Teller")
        os.write(end.fileno(), (100).to_bytes(4, "big") + b"half")  # of a word of 100 bytes
        os.kill(os.getpid(), signal.SIGKILL)

def with_pytest_itself(request):
    pytest_itself = os.pidfd_open(multiprocessing.parent_process().pid)
    signal.pidfd_send_signal(pytest_itself, signal.SIGKILL)
    select.select([pytest_itself], [], [])  # until it has ended
"""


def ran(folder: Path) -> list[list[str]]:
    return [line.split() for line in (folder / "ran").read_text().splitlines()]


def test_workers_share_the_tests_and_all_is_reported_by_one(tmp_path):
    output = run(tmp_path, "FAIL, DIE, WITH_OWN = {3, 97}, None, False" + MANY, "--workers=2")
    assert "2 failed, 98 passed" in output
    assert sorted(int(number) for number, _ in ran(tmp_path)) == list(range(100))
    assert {by for _, by in ran(tmp_path)} == {"worker-1", "worker-2"}
    assert output.count("said by ") == 2
    assert "said by 3\n" in output
    assert "unit          100 tests" in output


def test_a_failure_ends_workers_too_if_it_is_to_end_the_run(tmp_path):
    output = run(tmp_path, "FAIL, DIE, WITH_OWN = range(100), None, False" + MANY, "--workers=2", "-x")
    assert re.search(r"stopping after \d failures", output), output
    assert len(ran(tmp_path)) <= 2  # each worker ends with its first


HOLD = """
import multiprocessing
import pytest

both_are_at_work = multiprocessing.get_context("fork").Barrier(2)

@pytest.fixture(scope="module")
def held():
    both_are_at_work.wait(60)
    yield
    with open("let go", "a") as file:
        print(multiprocessing.current_process().name, file=file)

@pytest.mark.parametrize("number", range(100))
def test_each(number, held):
    assert number != 1
"""


def test_workers_of_a_run_that_ends_early_let_go_of_what_they_hold(tmp_path):
    output = run(tmp_path, HOLD, "--workers=2", "-x")
    assert "1 failed" in output
    assert sorted((tmp_path / "let go").read_text().split()) == ["worker-1", "worker-2"]


@pytest.mark.parametrize("die", ["alone", "in_the_midst_of_a_word"])
def test_a_worker_that_dies_fails_the_run_and_its_test_is_named(tmp_path, die):
    output = run(tmp_path, f"FAIL, DIE, WITH_OWN = (), lambda request: {die}(request), False{MANY}", "--workers=2")
    assert re.search(r"2 tests have no result: worker-1 ended with -9 in unit/test_it\.py::test_each\[\d+\]", output), output
    assert "98 passed" in output


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells of the end of a process that is no child")
def test_workers_end_with_a_pytest_that_is_killed(tmp_path):
    source = f"FAIL, DIE, WITH_OWN = (), lambda request: with_pytest_itself(request), False{MANY}"
    run(tmp_path, source, "--workers=2")  # returns when nobody holds its output any more
    assert len(ran(tmp_path)) == 2  # each ends with its first: there is nobody to tell


OWN = """
@pytest.fixture
def runs():
    return None

def test_of_pytest_itself(runs):
    all_are_at_work.wait(60)
    assert multiprocessing.parent_process() is None
"""


def test_what_only_pytest_itself_can_run_does_not_wait_for_what_workers_run(tmp_path):
    output = run(tmp_path, "FAIL, DIE, WITH_OWN = (), None, True" + MANY + OWN, "--workers=2")
    assert "101 passed" in output
    assert len(ran(tmp_path)) == 100
