"""The store's tables in a CQL database, by the version of the schema that brought them.

A version is never changed once it was released: what comes is a new one, which only adds tables.
"""

from typing import Final

from chassis.timeline_cql_schema import SchemaVersions, TableSpec
from services.store.rows import DEDUPE, INBOX, STATE, STOP, TIMELINE

SCHEMA: Final[SchemaVersions] = (
    (TableSpec(STATE), TableSpec(TIMELINE), TableSpec(DEDUPE, expiring=True), TableSpec(INBOX)),
    (TableSpec(STOP),),
)
