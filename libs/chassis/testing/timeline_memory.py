"""The Timeline as a mapping: its rules in a few lines, for tests that hold every state of the tables in their hands."""

import asyncio
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from chassis.timeline import Cell, Point, Row


class Stored(NamedTuple):
    """What a table holds of a row."""

    stamp: int
    value: bytes


Tables = Mapping[Point, Stored]


def written(tables: Tables, rows: Sequence[Row]) -> Tables:
    """Return the tables with rows written: a lower stamp than the row's is ignored, an equal one overwrites."""
    after = dict(tables)
    for row in rows:
        point = Point(row.table, row.partition, row.key)
        if point not in after or row.stamp >= after[point].stamp:
            after[point] = Stored(row.stamp, row.value)
    return after


class MemoryTimeline:
    """See `chassis.timeline.Timeline`. Rows never expire, which the port allows."""

    def __init__(self, names: Collection[str], tables: Tables | None = None) -> None:
        self._names = names
        self.tables: Tables = tables or {}

    async def write(self, rows: Sequence[Row]) -> None:
        self._check(*(row.table for row in rows))
        await asyncio.sleep(0)  # as any engine, here and below: others go on meanwhile
        self.tables = written(self.tables, rows)

    async def read_points(self, points: Sequence[Point]) -> Mapping[Point, bytes]:
        self._check(*(point.table for point in points))
        await asyncio.sleep(0)
        return {point: self.tables[point].value for point in points if point in self.tables}

    async def read_partitions(self, table: str, partitions: Sequence[str], limit: int = 0) -> Mapping[str, Sequence[Cell]]:
        self._check(table)
        await asyncio.sleep(0)
        found = {partition: self._cells(table, partition) for partition in partitions}
        return {partition: cells[: limit or None] for partition, cells in found.items() if cells}

    async def read_range(
        self, table: str, partition: str, first_key: bytes, last_key: bytes, limit: int, *, descending: bool = False
    ) -> Sequence[Cell]:
        self._check(table)
        await asyncio.sleep(0)
        cells = [cell for cell in self._cells(table, partition) if first_key <= cell.key <= last_key]
        return (cells[::-1] if descending else cells)[:limit]

    def _cells(self, table: str, partition: str) -> list[Cell]:
        return sorted(Cell(point.key, row.value) for point, row in self.tables.items() if point[:2] == (table, partition))

    def _check(self, *tables: str) -> None:
        for table in tables:
            if table not in self._names:
                raise ValueError(f"table {table!r} was not declared")
