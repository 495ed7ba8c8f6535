"""What a process does with signals, settings and logs, seen from outside."""

import json
import signal
import subprocess
import sys

import pytest

MAIN = """
import asyncio, sys
from chassis.app import run

async def main(stop):
    print("running", flush=True)
    await stop.wait()
    print("draining", flush=True)
    {drain}
    print("drained", flush=True)

run(main)
"""


@pytest.fixture
def start():
    started = []

    def start(code):
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def expect(process, line):
    assert process.stdout.readline().strip() == line


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_drains_and_ends_well(start, number):
    process = start(MAIN.format(drain="await asyncio.sleep(0)"))
    expect(process, "running")
    process.send_signal(number)
    output, errors = process.communicate(timeout=10)
    assert (output, errors, process.returncode) == ("draining\ndrained\n", "", 0)


@pytest.mark.parametrize("drain", ["await asyncio.Event().wait()", "while True: pass"], ids=["waiting", "blocking the loop"])
@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
def test_the_second_signal_ends_at_once(start, drain, second):
    process = start(MAIN.format(drain=drain))
    expect(process, "running")
    process.send_signal(signal.SIGTERM)
    expect(process, "draining")
    process.send_signal(second)
    output, _ = process.communicate(timeout=10)
    assert (output, process.returncode) == ("", 128 + second)


def test_an_error_ends_the_process_with_its_traceback(start):
    process = start("from chassis.app import run\nasync def main(stop):\n    raise ValueError('broken')\nrun(main)")
    _, errors = process.communicate(timeout=10)
    assert process.returncode == 1
    assert errors.endswith("ValueError: broken\n")


LOG = """
import logging, structlog
from chassis.logs import configure_logging

log = structlog.get_logger()
configure_logging(json={json}, level="info")
log.debug("hidden")
log.info("said", number=3)
logging.getLogger("some.library").warning("heard %s", "that")
logging.getLogger("some.library").debug("hidden")
def fail(secret):
    return 1 / 0

try:
    fail("sec" + "ret-token")
except ZeroDivisionError as error:
    log.error("failed", exc_info=error)
    logging.getLogger("some.library").exception("failed there")
"""


def test_json_logs_are_lines_of_json_also_from_libraries(start):
    output, errors = start(LOG.format(json=True)).communicate(timeout=10)
    assert output == ""
    lines = [json.loads(line) for line in errors.splitlines()]
    assert [(line["event"], line["level"]) for line in lines] == [
        ("said", "info"),
        ("heard that", "warning"),
        ("failed", "error"),
        ("failed there", "error"),
    ]
    assert lines[0]["number"] == 3
    assert all(line["timestamp"].endswith("Z") for line in lines)
    assert all(line["exception"][0]["exc_type"] == "ZeroDivisionError" for line in lines[2:])
    assert "secret-token" not in errors


def test_logs_for_a_person_are_text_with_tracebacks(start):
    output, errors = start(LOG.format(json=False)).communicate(timeout=10)
    assert output == ""
    assert "said" in errors
    assert "number=3" in errors
    assert "heard that" in errors
    assert "hidden" not in errors
    assert errors.count("ZeroDivisionError: division by zero") == 2
    assert "secret-token" not in errors


UNTIL_STDIN_ENDS = """
import asyncio, sys
from chassis.app import run

async def main(stop):
    print("running", flush=True)
    await stop.wait()
    print("draining", flush=True)
    print("draining", file=sys.stderr)
    open({file!r}, "w").write("drained")

run(main, until_stdin_ends=True)
"""


def test_a_process_ends_with_whoever_held_its_stdin_though_nobody_hears_it(tmp_path):
    file = tmp_path / "file"
    started = [sys.executable, "-c", UNTIL_STDIN_ENDS.format(file=str(file))]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(started, **pipes, text=True) as process:
        expect(process, "running")
        process.stdin.write("a word is no end\n")
        process.stdin.flush()
        process.stdout.close()
        process.stderr.close()
        process.stdin.close()
        assert process.wait(10) == 0
    assert file.read_text() == "drained"
