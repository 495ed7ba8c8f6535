"""What the timeline on CQL does beyond the contract: few statements, large partitions, time to live, a name for its engine."""

import asyncio
import os
import uuid
from collections.abc import AsyncIterator

import pytest
from click.testing import CliRunner
from prometheus_client import CollectorRegistry

from chassis import timeline_cql
from chassis.timeline import Cell, Point, Row
from chassis.timeline_cql import CqlTimeline, open_cql_timeline
from chassis.timeline_cql_settings import CqlSettings
from parley_cli.__main__ import main

pytestmark = pytest.mark.engines("scylladb")


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
async def timeline(cql_database: CqlSettings, registry: CollectorRegistry) -> AsyncIterator[CqlTimeline]:
    async with open_cql_timeline(cql_database, ["events", "inbox"], schema_version=1, metrics=registry) as timeline:
        yield timeline


@pytest.fixture
def name() -> str:
    """Return the name of partitions that no other test has."""
    return str(uuid.uuid4())


def statements(registry: CollectorRegistry, kind: str) -> float:
    return registry.get_sample_value("parley_timeline_statement_seconds_count", {"kind": kind}) or 0.0


async def test_many_rows_are_few_statements(timeline: CqlTimeline, registry: CollectorRegistry, name: str) -> None:
    rows = [Row("events", f"{name}/{n}", b"k", bytes(100), 1) for n in range(200)]
    await timeline.write(rows)
    assert statements(registry, "write") == 1
    assert len(await timeline.read_points([Point(*row[:3]) for row in rows])) == 200
    assert statements(registry, "points") == 4
    assert len(await timeline.read_partitions("events", [row.partition for row in rows])) == 200
    assert statements(registry, "partitions") == 4
    await timeline.read_range("events", name, b"", b"z", 10)
    assert statements(registry, "range") == 1
    assert registry.get_sample_value("parley_timeline_rows_total", {"direction": "written"}) == 200
    assert registry.get_sample_value("parley_timeline_rows_total", {"direction": "read"}) == 400
    assert registry.get_sample_value("parley_timeline_in_flight") == 0


async def test_it_says_which_engine_it_runs_on(timeline: CqlTimeline, registry: CollectorRegistry) -> None:
    engine, version = timeline.engine.split(" ")
    assert engine in ("ScyllaDB", "Cassandra")
    assert registry.get_sample_value("parley_timeline_engine_info", {"engine": engine, "version": version}) == 1


async def test_a_row_with_a_time_to_live_goes(timeline: CqlTimeline, name: str) -> None:
    await timeline.write([Row("events", name, b"short", b"v", 1, ttl_seconds=1), Row("events", name, b"kept", b"v", 1)])
    async with asyncio.timeout(30):  # by the engine's clock, which nobody can move here
        while len((await timeline.read_partitions("events", [name]))[name]) == 2:
            pass
    assert (await timeline.read_partitions("events", [name]))[name] == [Cell(b"kept", b"v")]


async def test_a_user_with_5000_conversations_reads_them_at_one_moment(timeline: CqlTimeline, name: str) -> None:
    """And so does a read that finds his partition beside others, over several pages; with no more rows in memory than asked for."""
    keys = [b"%05d" % number for number in range(5_000)]
    for start in range(0, len(keys), 1_000):
        await timeline.write([Row("inbox", name, key, bytes(150), 1) for key in keys[start : start + 1_000]])
    await timeline.write([Row("inbox", f"{name}/{n}", b"k", b"v", 1) for n in range(100)])
    assert [cell.key for cell in (await timeline.read_partitions("inbox", [name]))[name]] == keys
    found = await timeline.read_partitions("inbox", [f"{name}/0", name, *(f"{name}/{n}" for n in range(1, 100))])
    assert [cell.key for cell in found[name]] == keys
    assert len(found) == 101
    assert [cell.key for cell in (await timeline.read_partitions("inbox", [name, f"{name}/0"], limit=4_000))[name]] == keys[:4_000]
    for descending in (False, True):
        cells = await timeline.read_range("inbox", name, b"", b"z", 10_000, descending=descending)
        assert [cell.key for cell in cells] == (keys[::-1] if descending else keys)


async def test_partitions_over_several_pages_are_whole_and_of_one_moment(
    timeline: CqlTimeline, registry: CollectorRegistry, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the page, whoever writes meanwhile: ScyllaDB ends one at 1 MB."""
    table = timeline._tables["events"]
    for statement in (table.partitions, table.limited, table.ascending):
        monkeypatch.setattr(statement, "fetch_size", 7)
    names = [f"{name}/{n}" for n in range(5)]

    async def write(stamp: int) -> None:
        await timeline.write(
            [Row("events", partition, b"%03d" % key, b"%d" % stamp, stamp) for partition in names for key in range(20)]
        )

    async def write_on() -> None:
        for stamp in range(2, 40):
            await write(stamp)

    await write(1)
    writing = asyncio.create_task(write_on())
    while not writing.done():
        for limit in (0, 15):
            found = await timeline.read_partitions("events", names, limit)
            assert sorted(found) == names
            for cells in found.values():
                assert [cell.key for cell in cells] == [b"%03d" % key for key in range(limit or 20)]
                assert len({cell.value for cell in cells}) == 1
        assert len(await timeline.read_range("events", names[0], b"", b"z", 18)) == 18
    await writing
    assert statements(registry, "range") >= 3
    assert timeline_cql._PAGE_ROWS == 5_000


async def test_the_far_end_of_a_million_events_is_as_near_as_the_first(
    timeline: CqlTimeline, registry: CollectorRegistry, name: str
) -> None:
    """Buckets are arithmetic: a page is one statement on one partition of 1,024 rows, wherever it lies. Ten of them are filled."""
    million, bucket = 1_000_000, 1_024
    buckets = [*range(5), *range(million // bucket - 4, million // bucket + 1)]
    for number in buckets:
        rows = [Row("events", f"{name}/{number}", (number * bucket + n).to_bytes(8, "big"), bytes(100), 1) for n in range(bucket)]
        await timeline.write(rows)
    for last in (1_000, million):
        before = statements(registry, "range")
        first = (last - 49).to_bytes(8, "big")
        cells = await timeline.read_range("events", f"{name}/{last // bucket}", first, last.to_bytes(8, "big"), 50, descending=True)
        assert [int.from_bytes(cell.key, "big") for cell in cells] == list(range(last, last - 50, -1))
        assert statements(registry, "range") == before + 1


def test_the_bench_measures_and_leaves_no_keyspace(cql_database: CqlSettings) -> None:
    arguments = ["bench", "timeline", "--hosts", cql_database.hosts, "--sizes", "1,16", "--seconds", "0.1", "--json"]
    result = CliRunner().invoke(main, [*arguments, "--engine-pid", str(os.getpid())])
    assert result.exit_code == 0, result.output
    figures = result.stdout
    assert '"write 16": {"rows_per_second": ' in figures
    assert "client_us_a_row" in figures
    assert "engine_us_a_row" in figures
