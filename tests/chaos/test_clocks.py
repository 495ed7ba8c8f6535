"""Wall clocks of other processes that jump, and go on as if nothing had been."""

import subprocess
import sys
import time
from pathlib import Path
from typing import IO

import pytest

from parley_chaos.clocks import DeviceClock, build_preload

HOUR = 3600
ASK = "import sys, time\nfor _ in sys.stdin: print(time.time(), time.monotonic(), flush=True)"


def ask(asked: IO[str], answers: IO[str]) -> tuple[float, float]:
    asked.write("\n")
    asked.flush()
    wall, monotonic = answers.readline().split()
    return float(wall), float(monotonic)


@pytest.mark.parametrize("seconds", [HOUR, -HOUR])
def test_a_processs_wall_clock_jumps_and_its_timers_do_not(tmp_path: Path, seconds: int) -> None:
    preload = build_preload(tmp_path, tmp_path / "engines")
    assert preload.works, "needs Linux and a C compiler, as the compiled form does"
    environ, clocks = preload.service("store-1")
    clock = clocks["store-1"]
    with subprocess.Popen(
        [sys.executable, "-c", ASK], env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        before, monotonic_before = ask(process.stdin, process.stdout)
        assert abs(before - time.time()) < HOUR / 2
        assert clock.told() == 0
        clock.jump(seconds)
        jumped, monotonic_after = ask(process.stdin, process.stdout)
        assert abs(jumped - seconds - time.time()) < HOUR / 2
        assert 0 <= monotonic_after - monotonic_before < HOUR / 2
        assert clock.told() > 0
        clock.jump(0)
        after, _ = ask(process.stdin, process.stdout)
        assert abs(after - time.time()) < HOUR / 2
        process.stdin.close()


def test_without_a_compiler_no_process_is_touched(tmp_path: Path) -> None:
    preload = build_preload(tmp_path, tmp_path / "engines", {"CC": "no-such-compiler"})
    assert not preload.works
    assert (preload.engines(), preload.engines_clocks, preload.service("store-1")) == ({}, {}, ({}, {}))


def test_devices_clocks_jump() -> None:
    clock = DeviceClock()
    clock.jump(HOUR)
    assert abs(clock.wall_ms() / 1000 - HOUR - time.time()) < HOUR / 2
    assert clock.told() == 1
