"""A Timeline as bad as the port allows: the real implementation behind a bad network, for one process."""

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress

from chassis.testing.faults import (
    LATE_SECONDS_MAX,
    READ_FAILS,
    READ_SPLIT,
    WRITE_FAILS,
    WRITE_LATE,
    WRITE_LOST,
    WRITE_SPLIT,
    Engine,
    FaultStream,
    Life,
)
from chassis.timeline import PARTITION_WRITE_BYTES, Cell, Point, Row, Timeline, TimelineUnavailableError


class FaultyTimeline:
    """Passes on to a Timeline, with every fault that its contract leaves open.

    A write that fails applies any subset of its (table, partition) groups, in any order, some of them long after the error. One
    whose caller is cancelled goes on. Groups of one write, and partitions of one read, may be seen at different moments. What is
    kept: a group is atomic, and a read sees every write that returned before it began.

    AssertionError where a partition's rows are more than the port allows: what is behind this may take what others refuse.
    """

    def __init__(self, inner: Timeline, engine: Engine, stream: FaultStream, life: Life) -> None:
        self._inner = inner
        self._engine = engine
        self._stream = stream
        self._life = life

    async def write(self, rows: Sequence[Row]) -> None:
        self._judge(rows)
        step = f"write to {' '.join(sorted({row.table for row in rows}))}"
        await self._life.step(f"before {step}")
        await self._engine.ask(self._write(rows, step))
        await self._life.step(f"after {step}")

    def _judge(self, rows: Sequence[Row]) -> None:
        sizes: Counter[tuple[str, str]] = Counter()
        for row in rows:
            sizes[row.table, row.partition] += len(row.key) + len(row.value)
        for place, size in sizes.items():
            assert size <= PARTITION_WRITE_BYTES, f"{place}: {size} bytes in one write"

    async def _write(self, rows: Sequence[Row], step: str) -> None:
        stream = self._stream
        await stream.latency(step)
        if self._engine.is_away(stream, step):
            raise TimelineUnavailableError("the engine is away")
        if not stream.happens(WRITE_FAILS, step):
            await self._write_all(rows, step)
            return
        now: list[list[Row]] = []
        for group in self._groups(rows):
            if stream.happens(WRITE_LATE, step):
                self._engine.spawn(self._write_late(group))
            elif not stream.happens(WRITE_LOST, step):
                now.append(group)
        for group in now:
            await self._inner.write(group)
            await stream.latency()
        raise TimelineUnavailableError("some of it may be written")

    async def _write_all(self, rows: Sequence[Row], step: str) -> None:
        pieces = self._groups(rows) if self._stream.happens(WRITE_SPLIT, step) else [rows]
        for piece in pieces:
            await self._inner.write(piece)
            await self._stream.latency()
        self._stream.note(f"wrote {len(rows)} rows in {len(pieces)} pieces")

    async def _write_late(self, group: list[Row]) -> None:
        await asyncio.sleep(self._stream.rng.uniform(0.0, LATE_SECONDS_MAX))
        with suppress(TimelineUnavailableError):  # lost with the power of the machine that it was on its way to
            await self._inner.write(group)
            self._stream.note(f"wrote {len(group)} rows late")

    def _groups(self, rows: Sequence[Row]) -> list[list[Row]]:
        groups: dict[tuple[str, str], list[Row]] = {}
        for row in rows:
            groups.setdefault((row.table, row.partition), []).append(row)
        shuffled = list(groups.values())
        self._stream.rng.shuffle(shuffled)
        return shuffled

    async def read_points(self, points: Sequence[Point]) -> Mapping[Point, bytes]:
        step = f"read of {points[0].table if points else 'nothing'}"
        await self._before_read(step)
        if not self._stream.happens(READ_SPLIT, step):
            found = await self._inner.read_points(points)
        else:
            found = {}
            for place in dict.fromkeys((point.table, point.partition) for point in points):
                together = [point for point in points if (point.table, point.partition) == place]
                found = {**found, **await self._inner.read_points(together)}
                await self._stream.latency()
        await self._after_read(step, len(found))
        return found

    async def read_partitions(self, table: str, partitions: Sequence[str], limit: int = 0) -> Mapping[str, Sequence[Cell]]:
        step = f"read of {table}"
        await self._before_read(step)
        if not self._stream.happens(READ_SPLIT, step):
            found = await self._inner.read_partitions(table, partitions, limit)
        else:
            found = {}
            for partition in partitions:
                found = {**found, **await self._inner.read_partitions(table, [partition], limit)}
                await self._stream.latency()
        await self._after_read(step, len(found))
        return found

    async def read_range(
        self, table: str, partition: str, first_key: bytes, last_key: bytes, limit: int, *, descending: bool = False
    ) -> Sequence[Cell]:
        step = f"read of {table}"
        await self._before_read(step)
        found = await self._inner.read_range(table, partition, first_key, last_key, limit, descending=descending)
        await self._after_read(step, len(found))
        return found

    async def _before_read(self, step: str) -> None:
        await self._life.step(f"before {step}")
        await self._stream.latency(step)
        if self._engine.is_away(self._stream, step) or self._stream.happens(READ_FAILS, step):
            raise TimelineUnavailableError("the read failed")

    async def _after_read(self, step: str, count: int) -> None:
        await self._stream.latency(step)
        self._stream.note(f"read {count}")
        await self._life.step(f"after {step}")
