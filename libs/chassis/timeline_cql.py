"""The Timeline on ScyllaDB or Cassandra: a CQL table a table, the row's stamp as its write timestamp.

Rows of a partition are one mutation, applied together and seen together on every replica; a batch is unlogged, it only saves
statements. LOCAL_QUORUM both ways: a read sees every write that returned. Every statement may be sent again.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from struct import Struct
from typing import Any, Final, NoReturn

import structlog
from cassandra import InvalidRequest
from cassandra.query import BatchStatement, BatchType, BoundStatement, PreparedStatement
from prometheus_client import CollectorRegistry

from chassis.joined import Joined
from chassis.log_epoch import wait_superseded
from chassis.timeline import Cell, Point, Row, TimelineSetupError, TimelineUnavailableError
from chassis.timeline_cql_connect import open_cql_session
from chassis.timeline_cql_grouping import PointRead, ReplicasOf, partition_groups, point_reads, row_batches
from chassis.timeline_cql_metrics import CqlMetrics, Kind
from chassis.timeline_cql_schema import ClusterFacts, check_schema, read_engine, read_facts
from chassis.timeline_cql_session import DRIVER_ERRORS, Answer, CqlSession, failure_of
from chassis.timeline_cql_settings import CqlSettings

_PAGE_ROWS: Final = 5_000  # ScyllaDB ends a page at 1 MB anyway
_LONG: Final = Struct(">q").pack
_INT: Final = Struct(">i").pack

_log = structlog.get_logger()


class _Table:
    """The prepared statements of one table."""

    insert: PreparedStatement
    points: PreparedStatement
    between: PreparedStatement
    partitions: PreparedStatement
    limited: PreparedStatement
    whole: PreparedStatement
    ascending: PreparedStatement
    descending: PreparedStatement


_SELECT: Final = 'SELECT "partition", "key", "value" FROM {table} WHERE "partition" '
_STATEMENTS: Final = {
    "insert": 'INSERT INTO {table} ("partition", "key", "value") VALUES (?, ?, ?) USING TIMESTAMP ? AND TTL ?',
    "points": _SELECT + 'IN ? AND "key" IN ?',
    "between": _SELECT + '= ? AND "key" >= ? AND "key" <= ?',
    "partitions": _SELECT + "IN ?",
    "limited": _SELECT + "IN ? PER PARTITION LIMIT ?",
    "whole": _SELECT + "= ?",
    "ascending": _SELECT + '= ? AND "key" >= ? AND "key" <= ? ORDER BY "key" ASC LIMIT ?',
    "descending": _SELECT + '= ? AND "key" >= ? AND "key" <= ? ORDER BY "key" DESC LIMIT ?',
}
_AT_ONE_MOMENT: Final = {"points", "between", "whole"}  # what pages would tear; the others come in pages


class CqlTimeline:
    """See `chassis.timeline.Timeline`; opened by `open_cql_timeline`."""

    def __init__(
        self,
        session: CqlSession,
        keyspace: str,
        tables: Mapping[str, _Table],
        facts: ClusterFacts,
        engine: str,
        metrics: CqlMetrics,
    ) -> None:
        self.facts = facts  # as they were at the start
        self.engine = engine  # name and version
        self._session = session
        self._keyspace = keyspace
        self._tables = tables
        self._metrics = metrics
        self._writes = Joined(
            self._write, lambda: TimelineUnavailableError("a write that went with another one, which was cancelled")
        )

    async def write(self, rows: Sequence[Row]) -> None:
        for name in {row.table for row in rows}:
            self._table(name)  # a wrong one is its caller's alone
        if rows:
            await self._writes(rows)

    async def _write(self, rows: Sequence[Row]) -> None:
        tables = {name: self._table(name) for name in {row.table for row in rows}}
        await self._session.run(Kind.WRITE, [self._batch(tables, batch) for batch in row_batches(rows, self._replicas_of())])
        self._metrics.rows_written.inc(len(rows))

    def _batch(self, tables: Mapping[str, _Table], rows: Sequence[Row]) -> BatchStatement:
        batch = BatchStatement(BatchType.UNLOGGED)
        batch.is_idempotent = True
        for table, partition, key, value, stamp, ttl_seconds in rows:
            # Not `bind`: looking each column's type up costs twice what all the rest of a row does.
            statement = BoundStatement(tables[table].insert)
            statement.values = (partition.encode(), key, value, _LONG(stamp), _INT(ttl_seconds))
            batch.add(statement)
        return batch

    async def read_points(self, points: Sequence[Point]) -> Mapping[Point, bytes]:
        reads = point_reads(points, self._replicas_of())
        statements = [self._point_statement(read) for read in reads]
        wanted = set(points)
        found: dict[Point, bytes] = {}
        if not statements:
            return found
        for read, answer in zip(reads, await self._session.run(Kind.POINTS, statements), strict=True):
            for partition, key, value in answer.rows:
                point = Point(read.table, partition, key)
                if point in wanted:
                    found[point] = value
        self._metrics.rows_read.inc(len(found))
        return found

    def _point_statement(self, read: PointRead) -> BoundStatement:
        table = self._table(read.table)
        if read.keys:
            return _bound(table.points, read.partitions[0], (read.partitions, read.keys))
        return _bound(table.between, read.partitions[0], (read.partitions[0], read.first_key, read.last_key))

    async def read_partitions(self, table: str, partitions: Sequence[str], limit: int = 0) -> Mapping[str, Sequence[Cell]]:
        statements = self._table(table)
        found: dict[str, list[Cell]] = {}
        torn: set[str] = set()
        groups = partition_groups(partitions, self._replicas_of())
        pending = [self._partitions_statement(statements, group, limit) for group in groups]
        pages: list[bytes | None] = []
        last: list[str | None] = [None] * len(pending)
        while pending:
            answers = await self._session.run(Kind.PARTITIONS, pending, pages)
            for index, answer in enumerate(answers):
                if answer.rows and answer.rows[0][0] == last[index]:
                    torn.add(answer.rows[0][0])
                _add_cells(found, answer)
            more = [index for index, answer in enumerate(answers) if answer.next_page is not None]
            last = [answers[index].rows[-1][0] if answers[index].rows else last[index] for index in more]
            pages = [answers[index].next_page for index in more]
            pending = [pending[index] for index in more]
        for partition in torn:  # over two pages, which are of two moments: once more, in one piece
            del found[partition]
            (answer,) = await self._session.run(Kind.PARTITIONS, [self._partitions_statement(statements, [partition], limit)])
            _add_cells(found, answer)
        self._metrics.rows_read.inc(sum(map(len, found.values())))
        return found

    def _partitions_statement(self, table: _Table, partitions: list[str], limit: int) -> BoundStatement:
        if limit:
            statement = _bound(table.limited, partitions[0], (partitions, limit))
            if len(partitions) == 1:
                statement.fetch_size = None
            return statement
        if len(partitions) == 1:
            return _bound(table.whole, partitions[0], (partitions[0],))
        return _bound(table.partitions, partitions[0], (partitions,))

    async def read_range(
        self, table: str, partition: str, first_key: bytes, last_key: bytes, limit: int, *, descending: bool = False
    ) -> Sequence[Cell]:
        statements = self._table(table)
        statement = _bound(
            statements.descending if descending else statements.ascending, partition, (partition, first_key, last_key, limit)
        )
        cells: list[Cell] = []
        pages: list[bytes | None] = []
        while True:
            (answer,) = await self._session.run(Kind.RANGE, [statement], pages)
            cells.extend([Cell(key, value) for _, key, value in answer.rows])
            if answer.next_page is None:
                self._metrics.rows_read.inc(len(cells))
                return cells
            pages = [answer.next_page]

    async def read_facts(self) -> ClusterFacts:
        """Return what the database says of itself now: the log epoch may have moved on. Raises TimelineUnavailableError."""
        try:
            return await read_facts(self._session, self._keyspace)
        except DRIVER_ERRORS as error:
            raise failure_of(error)[1] from error

    async def wait_superseded(self) -> NoReturn:
        """Wait until the database belongs to a newer log epoch than at the start, and raise TimelineSetupError.

        What still reads the old log must not write any more: positions and stamps of two logs can't be compared.
        """

        async def read_epoch() -> int:
            return (await self.read_facts()).log_epoch

        epoch = await wait_superseded(read_epoch, self.facts.log_epoch)
        raise TimelineSetupError(
            f"keyspace {self._keyspace} belongs to log epoch {epoch} now, this process serves {self.facts.log_epoch}"
        )

    def _table(self, name: str) -> _Table:
        try:
            return self._tables[name]
        except KeyError:
            raise ValueError(f"table {name} was not declared when the timeline was opened") from None

    def _replicas_of(self) -> ReplicasOf:
        """Return what tells, for one call, which nodes hold a partition."""
        metadata = self._session.metadata
        if len(metadata.all_hosts()) == 1:
            return _one_node
        return lambda partition: frozenset(host.host_id for host in metadata.get_replicas(self._keyspace, partition.encode()))


def _one_node(partition: str) -> None:
    return None


def _bound(statement: PreparedStatement, partition: str, values: Sequence[Any]) -> BoundStatement:
    return BoundStatement(statement, routing_key=partition.encode()).bind(values)


def _add_cells(found: dict[str, list[Cell]], answer: Answer) -> None:
    for partition, key, value in answer.rows:
        found.setdefault(partition, []).append(Cell(key, value))


async def _prepare(session: CqlSession, keyspace: str, name: str) -> _Table:
    table = _Table()
    for attribute, cql in _STATEMENTS.items():
        statement = await session.prepare(cql.format(table=f'"{keyspace}".{name}'))
        statement.is_idempotent = True
        statement.fetch_size = None if attribute in _AT_ONE_MOMENT else _PAGE_ROWS
        # The driver knows no routing key of an IN; told where one would stand, it takes the one that the statement is given.
        statement.routing_key_indexes = statement.routing_key_indexes or [0]
        setattr(table, attribute, statement)
    return table


@asynccontextmanager
async def open_cql_timeline(
    settings: CqlSettings, tables: Sequence[str], *, schema_version: int, metrics: CollectorRegistry, log_epoch: int | None = None
) -> AsyncIterator[CqlTimeline]:
    """Open the timeline on a database whose schema is applied. Threads are started: fork before, not after.

    Waits for the database as the settings say. Raises TimelineSetupError (login, keyspace, a table, another schema version or log
    epoch), TimelineUnavailableError. It may be opened again then: its metrics are in the registry only while it is open.
    """
    own_metrics = CollectorRegistry()
    cql_metrics = CqlMetrics(own_metrics)
    async with open_cql_session(settings, cql_metrics) as session:
        facts = await check_schema(session, settings.keyspace, schema_version)
        if log_epoch not in (None, facts.log_epoch):
            raise TimelineSetupError(
                f"keyspace {settings.keyspace} belongs to log epoch {facts.log_epoch}, this process was told {log_epoch}"
            )
        try:
            engine, version = await read_engine(session)
            prepared = {name: await _prepare(session, settings.keyspace, name) for name in tables}
        except InvalidRequest as error:
            raise TimelineSetupError(f"keyspace {settings.keyspace} has no usable schema, apply it first: {error}") from error
        except DRIVER_ERRORS as error:
            raise failure_of(error)[1] from error
        cql_metrics.engine.labels(engine, version).set(1)
        _log.info(
            "timeline.opened", engine=engine, version=version, hosts=settings.hosts, keyspace=settings.keyspace, **facts._asdict()
        )
        metrics.register(own_metrics)
        try:
            yield CqlTimeline(session, settings.keyspace, prepared, facts, f"{engine} {version}", cql_metrics)
        finally:
            metrics.unregister(own_metrics)
