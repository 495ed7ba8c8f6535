"""What benchmarks count with: places in a timeline, percentiles, slopes, moments."""

import asyncio
import json
import random
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parley.api.v1.events_pb2 import Event
from parley_cli.bench_messages import MessageLoad, Pair, Tally
from parley_cli.bench_pacer import arrivals
from parley_cli.bench_report import percentiles_ms, show, slope
from parley_cli.bench_stream import Follower
from parley_cli.bench_target import Target
from parley_client.ack_state import SMALL_INTERVAL_SECONDS


@given(st.lists(st.integers(1, 12)), st.sets(st.integers(1, 12)))
def test_a_follower_shows_each_once_in_order_without_gaps(arriving: list[int], own: set[int]):
    follower, shown = Follower(), []
    for seq in arriving:
        shown += [event.seq for event in follower.take([] if seq in own else [Event(seq=seq)], [seq] if seq in own else [])]
    have = 0
    while have + 1 in arriving:
        have += 1
    assert follower.have == have
    assert shown == [seq for seq in range(1, have + 1) if seq not in own]
    assert follower.repeated == len(arriving) - len(set(arriving))


def test_percentiles_are_of_the_sample_and_in_milliseconds():
    figures = percentiles_ms([number / 1000 for number in range(1000, 0, -1)])
    assert figures == {"p50": 501.0, "p99": 991.0, "p999": 1000.0, "max": 1000.0}
    assert percentiles_ms([0.002]) == {"p50": 2.0, "p99": 2.0, "p999": 2.0, "max": 2.0}
    assert percentiles_ms([]) == {"p50": None, "p99": None, "p999": None, "max": None}


def test_a_slope_is_that_of_the_fitted_line():
    assert slope([(0, 5), (1, 7), (2, 9)]) == 2.0
    assert slope([(0, 1), (1, 3), (2, 1)]) == 0.0
    assert slope([(4, 1), (4, 9)]) == 0.0


async def test_arrivals_are_never_early_and_none_is_left_out():
    begin, count = time.monotonic(), 0
    async for due in arrivals(500.0, 0.2, random.Random(7)):
        assert begin <= due <= time.monotonic()
        count += 1
    rng, expected, at = random.Random(7), 0, 0.0
    while (at := at + rng.expovariate(500.0)) < 0.2:
        expected += 1
    assert count == expected > 50


RESULT = {
    "rule": "flat: over the second half the line fitted to the memory rises by no more than it may",
    "flat": None,
    "rss_mb": [84.6, 93.3],
    "join": {"seconds": 0.7, "gap": None},
    "lossless": True,
    "stories": ["alice has #1 twice", "bob lacks #2"],
    "errors": [],
}


def test_a_result_is_a_line_a_figure_and_stays_one_where_programs_read(capsys: pytest.CaptureFixture[str]):
    show(RESULT, as_json=True)
    assert json.loads(capsys.readouterr().out) == RESULT
    show(RESULT, as_json=False)
    assert capsys.readouterr().out.splitlines() == [
        f"rule      {RESULT['rule']}",
        "flat      -",
        "rss_mb    84.6 93.3",
        "join      seconds 0.7  gap -",
        "lossless  yes",
        "stories   alice has #1 twice",
        "          bob lacks #2",
        "errors    none",
    ]


def test_what_a_terminal_has_no_room_for_goes_on_below_itself(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "60")
    show(RESULT, as_json=False)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "rule      flat: over the second half the line fitted to the"
    assert lines[1] == "          memory rises by no more than it may"
    assert max(map(len, lines)) <= 60


async def test_devices_acknowledge_out_of_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """All at the same moment would be a burst that real devices do not make, and all who wait would wait behind it."""
    target = Target("", Path(), lambda user: user, None, "run", random.Random(1))
    pairs = [Pair(target, index, Tally(), MessageLoad(100, 1, 1.0)) for index in range(100)]
    firsts: list[float] = []

    async def sleep(seconds: float) -> None:
        firsts.append(seconds)
        raise asyncio.CancelledError

    monkeypatch.setattr(asyncio, "sleep", sleep)
    for pair in pairs:
        with suppress(asyncio.CancelledError):
            await pair.keep_acking()
    assert all(0 <= first <= SMALL_INTERVAL_SECONDS for first in firsts)
    tenths = {int(first / SMALL_INTERVAL_SECONDS * 10) for first in firsts}
    assert len(tenths) == 10
