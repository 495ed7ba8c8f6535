"""The Timeline port: wide rows with write timestamps, as ScyllaDB and Cassandra offer them.

Implementations: `timeline_sqlite` (embedded), `timeline_cql` (ScyllaDB or Cassandra). tests/contracts/test_timeline.py runs against
each.

A table is a set of partitions (a text key), a partition a sorted set of rows (a bytes key, one bytes value). Tables are declared
when the timeline is opened. Writes carry a stamp, the database's write timestamp in microseconds: a write whose stamp is lower
than the row's is ignored. Writers that use a stamp twice write equal content: of two contents with one stamp engines keep
different ones (SQLite the later, Cassandra the greater). That makes writing again, late, or by two writers harmless, without locks
or transactions.
"""

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple, Protocol

PARTITION_WRITE_BYTES: Final = 2 * 1024 * 1024  # keys and values: half of what the smallest engine of ours takes as one mutation


class Row(NamedTuple):
    """One row to write. `ttl_seconds` 0: kept; else it may vanish that long after the write, never before."""

    table: str
    partition: str
    key: bytes
    value: bytes
    stamp: int
    ttl_seconds: int = 0


class Point(NamedTuple):
    """Where one row lies."""

    table: str
    partition: str
    key: bytes


class Cell(NamedTuple):
    """One row as read."""

    key: bytes
    value: bytes


class TimelineUnavailableError(Exception):
    """The database did not answer or refused. After `write`: any subset of the partitions may be written, or come yet."""


class TimelineSetupError(Exception):
    """The database is there and can't serve this program: a login, a keyspace, a table, a schema's version. A person has to act."""


class Timeline(Protocol):
    """Reads see every write that returned before they began, from any client."""

    async def write(self, rows: Sequence[Row]) -> None:
        """Write rows, grouped however serves the engine. All rows of one (table, partition) are applied together or not at all,
        and readers see them together; nothing is promised across partitions. A row stands once in `rows`, and those of one
        partition have PARTITION_WRITE_BYTES at most: engines refuse more, some sooner than others.

        Raises TimelineUnavailableError: any subset of partitions may have been applied, in any order, also after the error came.
        """

    async def read_points(self, points: Sequence[Point]) -> Mapping[Point, bytes]:
        """Read single rows in as few requests as the engine can; rows that do not exist are absent. Those of one partition are
        read at one moment.
        """

    async def read_partitions(self, table: str, partitions: Sequence[str], limit: int = 0) -> Mapping[str, Sequence[Cell]]:
        """Read whole partitions, rows by key ascending; partitions without rows are absent. `limit` > 0 cuts each partition's
        rows after that many. One partition's rows are read at one moment.
        """

    async def read_range(
        self, table: str, partition: str, first_key: bytes, last_key: bytes, limit: int, *, descending: bool = False
    ) -> Sequence[Cell]:
        """Read at most `limit` rows with first_key <= key <= last_key, in the asked order."""
