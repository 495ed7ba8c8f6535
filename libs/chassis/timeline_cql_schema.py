"""The schema of a CQL database: how it is made, and what a program checks of it before it begins.

| table | key | |
|---|---|---|
| a table of the timeline's | partition, key | value; the write timestamp is the row's stamp |
| schema_version | version | the tables that came with it; the greatest counts |
| cluster_fact | name | cluster_id, log_epoch |

Versions only add tables, so that programs of the version before go on. No transactions: two that apply a schema at once write the
same rows, and where values may differ (log_epoch) the write timestamp lets the greater one win.
"""

import uuid
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from cassandra import InvalidRequest

from chassis.timeline import TimelineSetupError, TimelineUnavailableError
from chassis.timeline_cql_session import DRIVER_ERRORS, CqlSession, failure_of

CLUSTER_ID: Final = "cluster_id"
LOG_EPOCH: Final = "log_epoch"
FIRST_LOG_EPOCH: Final = 1

_OWN_TABLES: Final = ("schema_version (version int PRIMARY KEY, tables text)", "cluster_fact (name text PRIMARY KEY, value text)")
# Rows that expire lie together by the day of their write: whole files go when their time is over. Both engines know it.
_EXPIRING: Final = (
    "compaction = {'class': 'TimeWindowCompactionStrategy', 'compaction_window_unit': 'DAYS', 'compaction_window_size': '1'}"
)


class TableSpec(NamedTuple):
    """A table of the timeline. `expiring`: most of its rows are written with a time to live."""

    name: str
    expiring: bool = False


SchemaVersions = Sequence[Sequence[TableSpec]]
"""What each version added, from version 1 on."""


class ClusterFacts(NamedTuple):
    """What a database says of itself."""

    schema_version: int
    cluster_id: str
    log_epoch: int


async def apply_schema(session: CqlSession, keyspace: str, replication: str, versions: SchemaVersions) -> tuple[int, ClusterFacts]:
    """Bring the schema to the newest version that this program knows; return the one it had (0: none) and what is now.

    Harmless again, and at once with others. Raises TimelineSetupError (newer than this program, a wrong replication, no agreement
    among the nodes), TimelineUnavailableError: apply it again.
    """
    try:
        if not await _keyspace_exists(session, keyspace):
            replicas = _replication(replication, session.nodes_by_datacenter())
            await _define(session, f'CREATE KEYSPACE IF NOT EXISTS "{keyspace}" WITH replication = {replicas}')
        for table in _OWN_TABLES:
            await _define(session, f'CREATE TABLE IF NOT EXISTS "{keyspace}".{table}')
        before = await _version(session, keyspace)
        _refuse_newer(keyspace, before, len(versions))
        for number, tables in enumerate(versions, 1):
            if number > before:
                for spec in tables:
                    await _define(session, _create(keyspace, spec))
                names = ",".join(spec.name for spec in tables)
                await session.query(f'INSERT INTO "{keyspace}".schema_version (version, tables) VALUES (%s, %s)', (number, names))  # noqa: S608
        await _set_first_facts(session, keyspace)
        return before, await read_facts(session, keyspace)
    except InvalidRequest as error:
        raise TimelineSetupError(f"the database refuses the schema: {error}") from error
    except DRIVER_ERRORS as error:
        raise failure_of(error)[1] from error


async def check_schema(session: CqlSession, keyspace: str, known_version: int) -> ClusterFacts:
    """Return what the database says of itself. Raises TimelineSetupError where its schema is not `known_version`, or not there."""
    try:
        if not await _keyspace_exists(session, keyspace):
            raise TimelineSetupError(f"the database has no keyspace {keyspace}: apply the schema first, or name another one")
        facts = await read_facts(session, keyspace)
    except InvalidRequest as error:
        raise TimelineSetupError(f"keyspace {keyspace} has no usable schema, apply it first: {error}") from error
    except DRIVER_ERRORS as error:
        raise failure_of(error)[1] from error
    _refuse_newer(keyspace, facts.schema_version, known_version)
    if facts.schema_version < known_version or not facts.cluster_id or not facts.log_epoch:
        raise TimelineSetupError(
            f"keyspace {keyspace} has schema version {facts.schema_version}, this program needs {known_version}:"
            " apply the schema first"
        )
    return facts


async def read_facts(session: CqlSession, keyspace: str) -> ClusterFacts:
    """Read what the database says of itself now. Raises what the driver raises."""
    facts = dict(await session.query(f'SELECT name, value FROM "{keyspace}".cluster_fact'))  # noqa: S608
    return ClusterFacts(await _version(session, keyspace), facts.get(CLUSTER_ID, ""), int(facts.get(LOG_EPOCH, "0")))


async def raise_log_epoch(session: CqlSession, keyspace: str, epoch: int) -> None:
    """Record a log epoch; a lower one than the recorded has no effect. Raises TimelineUnavailableError."""
    try:
        await _set_fact(session, keyspace, LOG_EPOCH, str(epoch), stamp=epoch)
    except DRIVER_ERRORS as error:
        raise failure_of(error)[1] from error


async def read_engine(session: CqlSession) -> tuple[str, str]:
    """Return which engine it is, and its version. Raises what the driver raises."""
    try:
        rows = await session.query("SELECT version FROM system.versions WHERE key = 'local'")
    except InvalidRequest:  # only ScyllaDB has that table
        rows = await session.query("SELECT release_version FROM system.local")
        return "Cassandra", str(rows[0][0])
    return "ScyllaDB", str(rows[0][0])


async def _set_first_facts(session: CqlSession, keyspace: str) -> None:
    """Give the database its id and its first epoch, if it has none; all who do that at once write the same."""
    facts = await read_facts(session, keyspace)
    if not facts.cluster_id:
        # The engine drew the table's id when it made the table: everybody sees the same, and another database another one.
        cql = "SELECT id FROM system_schema.tables WHERE keyspace_name = %s AND table_name = 'schema_version'"
        ((table_id,),) = await session.query(cql, (keyspace,))
        await _set_fact(session, keyspace, CLUSTER_ID, str(uuid.uuid5(table_id, keyspace)), stamp=1)
    if not facts.log_epoch:
        await raise_log_epoch(session, keyspace, FIRST_LOG_EPOCH)


async def _set_fact(session: CqlSession, keyspace: str, name: str, value: str, *, stamp: int) -> None:
    cql = f'INSERT INTO "{keyspace}".cluster_fact (name, value) VALUES (%s, %s) USING TIMESTAMP {stamp:d}'  # noqa: S608
    await session.query(cql, (name, value))


async def _keyspace_exists(session: CqlSession, keyspace: str) -> bool:
    return bool(await session.query("SELECT keyspace_name FROM system_schema.keyspaces WHERE keyspace_name = %s", (keyspace,)))


async def _version(session: CqlSession, keyspace: str) -> int:
    rows = await session.query(f'SELECT version FROM "{keyspace}".schema_version')  # noqa: S608
    return max((version for (version,) in rows), default=0)


def _refuse_newer(keyspace: str, version: int, known: int) -> None:
    if version > known:
        raise TimelineSetupError(f"keyspace {keyspace} has schema version {version}, this program knows {known}: upgrade it")


async def _define(session: CqlSession, cql: str) -> None:
    if not await session.define(cql):
        raise TimelineUnavailableError("the nodes do not agree on the schema yet: apply it again when all of them are up")


def _create(keyspace: str, spec: TableSpec) -> str:
    if not spec.name.isidentifier():
        raise ValueError(f"{spec.name!r} is no table name")
    options = f" WITH {_EXPIRING}" if spec.expiring else ""
    columns = '"partition" text, "key" blob, "value" blob, PRIMARY KEY ("partition", "key")'
    return f'CREATE TABLE IF NOT EXISTS "{keyspace}".{spec.name} ({columns}){options}'


def _replication(text: str, nodes: Mapping[str, int]) -> str:
    """Return CQL for "3" (copies in every datacenter) or "berlin=3,paris=2". Raises TimelineSetupError."""
    parts = dict.fromkeys(nodes, text) if text.isdecimal() else dict(part.split("=", 1) for part in text.split(",") if "=" in part)
    if not parts or not all(copies.isdecimal() and int(copies) for copies in parts.values()):
        raise TimelineSetupError(f"{text!r} is no replication: a number of copies, or datacenter=copies,...")
    for datacenter, copies in parts.items():
        if nodes.get(datacenter, 0) < int(copies):
            known = ", ".join(f"{name}: {count}" for name, count in sorted(nodes.items()))
            raise TimelineSetupError(
                f"{copies} copies of each row need as many nodes in datacenter {datacenter} (nodes are in {known}):"
                " add nodes, or ask for fewer copies"
            )
    return "{'class': 'NetworkTopologyStrategy', " + ", ".join(f"'{name}': '{copies}'" for name, copies in parts.items()) + "}"
