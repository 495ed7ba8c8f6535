"""The log and the tables for tools: those of a data folder whose server has ended, or those of a cluster."""

import os
import random
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

from prometheus_client import CollectorRegistry

from chassis.certificates import TlsError
from chassis.clock import SystemClock
from chassis.config import ConfigError, load_settings
from chassis.embedded import DataFolderError, EmbeddedEngines
from chassis.eventlog import EventLog, LogSetupError, LogUnavailableError
from chassis.eventlog_kafka_connection import KafkaConnection
from chassis.eventlog_kafka_settings import KafkaSettings
from chassis.sqlite import StorageError
from chassis.timeline import Timeline, TimelineSetupError, TimelineUnavailableError
from chassis.timeline_cql_settings import CqlSettings
from parley_cli.embedded import open_engines
from parley_cli.failures import CommandError, SetupError
from parley_protocol.topics import COMMANDS, topics
from services.store.rows import TABLES
from services.store.schema import SCHEMA

_PATIENCE_SECONDS = 5.0  # for a cluster that does not answer: somebody waits at a terminal


@asynccontextmanager
async def open_log(data_dir: Path, *, kafka: bool) -> AsyncIterator[EventLog]:
    """Open the log in the data folder, or (`kafka`) the one that PARLEY_KAFKA_* name. Raises SetupError, CommandError."""
    if kafka:
        async with _open_kafka(os.environ) as log:
            yield log
    else:
        async with _open_folder(data_dir) as engines:
            yield engines.log


@asynccontextmanager
async def open_tables(data_dir: Path, *, cluster: bool) -> AsyncIterator[Timeline]:
    """Open the tables in the data folder, or (`cluster`) those that PARLEY_CQL_* name. Raises SetupError, CommandError."""
    if cluster:
        async with _open_cql(os.environ) as timeline:
            yield timeline
    else:
        async with _open_folder(data_dir) as engines:
            yield engines.timeline


@asynccontextmanager
async def _open_folder(data_dir: Path) -> AsyncIterator[EmbeddedEngines]:
    if not data_dir.is_dir():  # noqa: ASYNC240 - nothing else runs
        raise SetupError(f"there is no data folder {data_dir}; --kafka: the log of a cluster.")
    try:
        async with open_engines(data_dir, SystemClock()) as engines:
            yield engines
    except DataFolderError as error:
        raise SetupError(f"{error}: stop that server first.") from error
    except (LogSetupError, LogUnavailableError, StorageError, TimelineUnavailableError) as error:
        raise CommandError(f"{error}.") from error


@asynccontextmanager
async def _open_cql(environ: Mapping[str, str]) -> AsyncIterator[Timeline]:
    from chassis.timeline_cql import open_cql_timeline

    try:
        settings = load_settings(CqlSettings, environ)
    except (ConfigError, TlsError) as error:
        raise SetupError(str(error)) from error
    if "connect_seconds" not in settings.model_fields_set:
        settings = settings.model_copy(update={"connect_seconds": _PATIENCE_SECONDS})
    try:
        async with open_cql_timeline(settings, TABLES, schema_version=len(SCHEMA), metrics=CollectorRegistry()) as timeline:
            yield timeline
    except (TimelineSetupError, TimelineUnavailableError) as error:
        raise CommandError(f"{error}.") from error


@asynccontextmanager
async def _open_kafka(environ: Mapping[str, str]) -> AsyncIterator[EventLog]:
    from chassis.eventlog_kafka import open_kafka_log

    try:
        settings = load_settings(KafkaSettings, environ)
        connection = settings.connection()
    except (ConfigError, TlsError) as error:
        raise SetupError(str(error)) from error
    try:
        async with open_kafka_log(
            connection,
            topics(await _partitions(settings, connection)),
            epoch=settings.log_epoch,
            prefix=settings.prefix,
            rng=random.Random(),
            metrics=CollectorRegistry(),
            start_seconds=_PATIENCE_SECONDS,
        ) as log:
            yield log
    except (LogSetupError, LogUnavailableError) as error:
        raise CommandError(f"{error}.") from error


async def _partitions(settings: KafkaSettings, connection: KafkaConnection) -> int:
    """Return how many partitions the log was made with, unless that is set: who looks into one need not know it."""
    from chassis.eventlog_kafka_topics import partitions_made

    if "partitions" in settings.model_fields_set:
        return settings.partitions
    return await partitions_made(connection, COMMANDS, epoch=settings.log_epoch, prefix=settings.prefix, seconds=_PATIENCE_SECONDS)
