"""Rows on their way into a table file: what reads must see although the file does not have it yet. Pure.

Of two rows with one key the higher stamp wins, of two with one stamp the later, as in the file.
"""

from collections.abc import Iterable, Mapping, Sequence

from chassis.timeline import Cell, Row

Entry = tuple[int, int, bytes]  # stamp, expires_ms, value
Partition = dict[bytes, Entry]
Table = dict[str, Partition]

_ROW_BYTES = 200  # the objects around a row's bytes


class PendingRows:
    """Two generations: rows that wait, and rows that are being written."""

    def __init__(self) -> None:
        self._waiting: dict[str, Table] = {}
        self._writing: dict[str, Table] = {}
        self.expiring: set[str] = set()  # tables that have, or had, rows with an end

    def put(self, rows: Iterable[Row], now_ms: int) -> int:
        """Take rows in; return about how many bytes they need."""
        size_bytes = 0
        for row in rows:
            expires_ms = 0
            if row.ttl_seconds:
                expires_ms = now_ms + 1_000 * row.ttl_seconds
                self.expiring.add(row.table)
            _put(self._waiting, row.table, row.partition, row.key, (row.stamp, expires_ms, row.value))
            size_bytes += len(row.value) + _ROW_BYTES
        return size_bytes

    def begin(self) -> Mapping[str, Table]:
        """Return all that waits, to be written."""
        self._writing, self._waiting = self._waiting, {}
        return self._writing

    def end(self) -> None:
        """Forget what was written."""
        self._writing = {}

    def undo(self) -> None:
        """Let what was to be written wait again, beside what came meanwhile."""
        waiting, self._waiting, self._writing = self._waiting, self._writing, {}
        for name, table in waiting.items():
            for partition, cells in table.items():
                for key, entry in cells.items():
                    _put(self._waiting, name, partition, key, entry)

    def entry(self, table: str, partition: str, key: bytes) -> Entry | None:
        """Return one row."""
        waiting, writing = _cells(self._waiting, table, partition), _cells(self._writing, table, partition)
        newer = waiting.get(key) if waiting is not None else None
        older = writing.get(key) if writing is not None else None
        return older if newer is None or (older is not None and older[0] > newer[0]) else newer

    def find(self, table: str, partition: str) -> Partition | None:
        """Return a partition's rows, None for none: a copy, for a read goes on while others write."""
        waiting, writing = _cells(self._waiting, table, partition), _cells(self._writing, table, partition)
        if waiting is None or writing is None:
            only = writing if waiting is None else waiting
            return dict(only) if only is not None else None
        both = dict(writing)
        for key, entry in waiting.items():
            known = both.get(key)
            if known is None or entry[0] >= known[0]:
                both[key] = entry
        return both


def merged(
    stored: Sequence[tuple[bytes, bytes, int]], pending: Partition | None, limit: int, *, descending: bool = False
) -> Sequence[Cell]:
    """Join what the file has (key, value, stamp) of a partition with what is pending, ordered by key, up to a limit (0: all)."""
    if not pending:
        return [Cell(key, value) for key, value, _ in stored]
    cells = {key: (value, stamp) for key, value, stamp in stored}
    for key, entry in pending.items():
        known = cells.get(key)
        if known is None or entry[0] >= known[1]:
            cells[key] = (entry[2], entry[0])
    keys = sorted(cells, reverse=descending)
    return [Cell(key, cells[key][0]) for key in (keys[:limit] if limit else keys)]


def _put(tables: dict[str, Table], name: str, partition: str, key: bytes, entry: Entry) -> None:
    table = tables.get(name)
    if table is None:
        table = tables[name] = {}
    cells = table.get(partition)
    if cells is None:
        table[partition] = {key: entry}
        return
    known = cells.get(key)
    if known is None or entry[0] >= known[0]:
        cells[key] = entry


def _cells(tables: dict[str, Table], name: str, partition: str) -> Partition | None:
    table = tables.get(name)
    return table.get(partition) if table is not None else None
