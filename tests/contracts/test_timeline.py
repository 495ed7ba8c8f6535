"""What every Timeline owes."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from worlds import TimelineWorld

from chassis.timeline import PARTITION_WRITE_BYTES, Cell, Point, Row, Timeline

TABLES = ("events", "inbox")
NAMES = ["a", "A", "it's", 'say "x"', "ünïcödé", "מילה", "🙂", "a\x00b", "x" * 1_000]  # partitions are text of any kind
KEYS = [b"", b"\x00", b"\x00\x00", b"\x01", b"a", b"a\x00", b"a\xff", b"b", b"\x7f", b"\x80", b"\xff", b"\xff\x00"]


@pytest.fixture
async def timeline(timeline_world: TimelineWorld) -> AsyncIterator[Timeline]:
    async with timeline_world.open(TABLES) as timeline:
        yield timeline


def row(partition: str, key: bytes, value: bytes = b"v", stamp: int = 1, table: str = "events", ttl_seconds: int = 0) -> Row:
    return Row(table, partition, key, value, stamp, ttl_seconds)


async def value_of(timeline: Timeline, partition: str, key: bytes) -> bytes | None:
    point = Point("events", partition, key)
    return (await timeline.read_points([point])).get(point)


async def test_points_are_read_back_and_missing_ones_are_absent(timeline: Timeline) -> None:
    rows = [row(name, key, name.encode() + b"/" + key) for name in NAMES for key in KEYS]
    rows += [row("p", b"k", b"of the inbox", table="inbox"), row("p", b"k", b"")]
    await timeline.write(rows)
    wanted = {Point(r.table, r.partition, r.key): r.value for r in rows}
    missing = [Point("events", "p", b"nosuch"), Point("inbox", "a", b"a"), Point("events", "nosuch", b"a")]
    assert await timeline.read_points([*wanted, *missing, *wanted]) == wanted
    assert await timeline.read_points(missing) == {}
    assert await timeline.read_points([]) == {}


async def test_a_lower_stamp_is_ignored_and_an_equal_one_changes_nothing(timeline: Timeline) -> None:
    stamp = 1_700_000_000_000_000
    for value, offset, expected in [(b"b", 0, b"b"), (b"c", -1, b"b"), (b"b", 0, b"b"), (b"a", 1, b"a"), (b"b", 0, b"a")]:
        await timeline.write([row("p", b"k", value, stamp + offset)])
        assert await value_of(timeline, "p", b"k") == expected


async def test_stamps_are_compared_row_by_row(timeline: Timeline) -> None:
    await timeline.write([row("p", b"%03d" % n, b"old", stamp=2 * n + 1) for n in range(100)])
    await timeline.write([row("p", b"%03d" % n, b"new", stamp=50) for n in range(100)])
    cells = (await timeline.read_partitions("events", ["p"]))["p"]
    assert [cell.value for cell in cells] == [b"new"] * 25 + [b"old"] * 75


async def test_rows_are_ordered_by_the_bytes_of_their_keys(timeline: Timeline) -> None:
    await timeline.write([row("p", key, key) for key in reversed(KEYS)])
    expected = [Cell(key, key) for key in sorted(KEYS)]
    assert (await timeline.read_partitions("events", ["p"]))["p"] == expected
    assert await timeline.read_range("events", "p", b"", b"\xff" * 9, 100) == expected
    assert await timeline.read_range("events", "p", b"", b"\xff" * 9, 100, descending=True) == expected[::-1]


async def test_whole_partitions_are_read_in_one_go(timeline: Timeline) -> None:
    names = [f"p{number}" for number in range(150)]
    await timeline.write([row(name, b"%d" % key) for name in names for key in range(5)])
    found = await timeline.read_partitions("events", [*names, "nosuch", "p0"])
    assert set(found) == set(names)
    assert all([cell.key for cell in cells] == [b"0", b"1", b"2", b"3", b"4"] for cells in found.values())
    assert await timeline.read_partitions("inbox", names) == {}
    assert await timeline.read_partitions("events", []) == {}


@pytest.mark.parametrize("count", [1, 2, 3, 64, 65, 131])
async def test_a_limit_cuts_each_partition(timeline: Timeline, count: int) -> None:
    names = [f"p{number}" for number in range(count)]
    await timeline.write([row(name, b"%d" % key) for name in names for key in range(5)])
    found = await timeline.read_partitions("events", [*names, "p0", "nosuch"], limit=2)
    assert set(found) == set(names)
    assert all([cell.key for cell in cells] == [b"0", b"1"] for cells in found.values())


async def test_a_range_includes_its_ends_and_obeys_its_limit(timeline: Timeline) -> None:
    await timeline.write([row("p", b"%02d" % n) for n in range(50)] + [row("q", b"15"), row("p", b"15", table="inbox")])

    async def keys(first: bytes, last: bytes, limit: int, *, descending: bool = False) -> list[bytes]:
        return [cell.key for cell in await timeline.read_range("events", "p", first, last, limit, descending=descending)]

    assert await keys(b"10", b"13", 100) == [b"10", b"11", b"12", b"13"]
    assert await keys(b"10", b"20", 2) == [b"10", b"11"]
    assert await keys(b"10", b"20", 2, descending=True) == [b"20", b"19"]
    assert await keys(b"48", b"99", 100) == [b"48", b"49"]
    assert await keys(b"20", b"10", 100) == []


@pytest.mark.parametrize("count", [1, 63, 64, 65, 1_000])
async def test_a_write_of_any_size_is_whole(timeline: Timeline, count: int) -> None:
    await timeline.write([row(f"p{n % 7}", b"%06d" % n, b"%d" % n, table=TABLES[n % 2]) for n in range(count)])
    found = [await timeline.read_partitions(table, [f"p{n}" for n in range(7)]) for table in TABLES]
    assert sorted(int(cell.value) for tables in found for cells in tables.values() for cell in cells) == list(range(count))


async def test_an_empty_write_does_nothing(timeline: Timeline) -> None:
    await timeline.write([])


async def test_large_values_come_back_whole(timeline: Timeline) -> None:
    value = bytes(range(256)) * 2_000
    await timeline.write([row("p", b"k", value)])
    assert await value_of(timeline, "p", b"k") == value


async def test_a_partition_takes_as_much_as_the_port_says(timeline: Timeline) -> None:
    value = bytes(PARTITION_WRITE_BYTES // 128 - 1)
    await timeline.write([row("p", b"%c" % n, value) for n in range(128)])
    assert await timeline.read_range("events", "p", b"", b"\xff", 200) == [Cell(b"%c" % n, value) for n in range(128)]
    assert (await timeline.read_partitions("events", ["p"]))["p"][-1] == Cell(b"\x7f", value)


async def test_rows_of_a_partition_appear_together(timeline: Timeline) -> None:
    async def write(generations: int) -> None:
        for generation in range(1, generations):
            await timeline.write([row("p", b"%03d" % n, b"%d" % generation, stamp=generation) for n in range(100)])

    writing = asyncio.create_task(write(20))
    while not writing.done():
        cells = (await timeline.read_partitions("events", ["p"])).get("p", [])
        assert len(cells) in (0, 100)
        assert len({cell.value for cell in cells}) <= 1
    await writing


async def test_points_of_a_partition_are_read_at_one_moment(timeline: Timeline) -> None:
    """However many: what a conversation's head and members say must fit together."""
    keys = [b"%03d" % number for number in range(200)]
    await timeline.write([row("p", key, b"0", 0) for key in keys])

    async def write() -> None:
        for stamp in range(1, 50):
            await timeline.write([row("p", key, b"%d" % stamp, stamp) for key in keys])

    writing = asyncio.create_task(write())
    torn = 0
    while not writing.done():
        found = await timeline.read_points([Point("events", "p", key) for key in keys])
        torn += len(set(found.values())) != 1
    await writing
    assert not torn


async def test_reads_see_every_write_that_returned(timeline: Timeline) -> None:
    async def write_and_read(name: str) -> None:
        for stamp in range(1, 11):
            await timeline.write([row(name, b"k", b"%d" % stamp, stamp)])
            assert await value_of(timeline, name, b"k") == b"%d" % stamp

    await asyncio.gather(*(write_and_read(f"p{number}") for number in range(10)))


async def test_writers_in_any_order_end_with_the_newest_stamp(timeline: Timeline) -> None:
    await asyncio.gather(*(timeline.write([row("p", b"k", b"%d" % stamp, stamp)]) for stamp in (3, 9, 1, 7, 10, 2, 8)))
    assert await value_of(timeline, "p", b"k") == b"10"


async def test_a_row_is_there_for_its_time_at_least(timeline: Timeline) -> None:
    await timeline.write([row("p", b"short", ttl_seconds=3_600), row("p", b"long", ttl_seconds=21 * 86_400)])
    assert [cell.key for cell in (await timeline.read_partitions("events", ["p"]))["p"]] == [b"long", b"short"]


async def test_tables_must_be_declared(timeline: Timeline) -> None:
    for attempt in (
        timeline.write([row("p", b"k", table="nosuch")]),
        timeline.read_points([Point("nosuch", "p", b"k")]),
        timeline.read_partitions("nosuch", ["p"]),
        timeline.read_range("nosuch", "p", b"", b"k", 1),
    ):
        with pytest.raises(ValueError, match="nosuch"):
            await attempt


async def test_rows_survive_a_restart(timeline_world: TimelineWorld) -> None:
    async with timeline_world.open(["events"]) as timeline:
        await timeline.write([row("p", b"k", b"new", stamp=5)])
    async with timeline_world.open(TABLES) as timeline:  # with a table more
        await timeline.write([row("p", b"k", b"late", stamp=4), row("p", b"k", table="inbox")])
        assert await value_of(timeline, "p", b"k") == b"new"
