"""The log for tools: that of a data folder whose server has ended, or that of a cluster."""

import os
import random
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

from prometheus_client import CollectorRegistry

from chassis.certificates import TlsError
from chassis.clock import SystemClock
from chassis.config import ConfigError, load_settings
from chassis.embedded import DataFolderError
from chassis.eventlog import EventLog, LogSetupError, LogUnavailableError
from chassis.eventlog_kafka_settings import KafkaSettings
from chassis.sqlite import StorageError
from chassis.timeline import TimelineUnavailableError
from parley_cli.embedded import open_engines
from parley_cli.failures import CommandError, SetupError
from parley_protocol.topics import topics

_PATIENCE_SECONDS = 5.0  # for a cluster that does not answer: somebody waits at a terminal


@asynccontextmanager
async def open_log(data_dir: Path, *, kafka: bool) -> AsyncIterator[EventLog]:
    """Open the log in the data folder, or (`kafka`) the one that PARLEY_KAFKA_* name. Raises SetupError, CommandError."""
    if kafka:
        async with _open_kafka(os.environ) as log:
            yield log
    elif not data_dir.is_dir():  # noqa: ASYNC240 - nothing else runs
        raise SetupError(f"there is no data folder {data_dir}; --kafka: the log of a cluster.")
    else:
        try:
            async with open_engines(data_dir, SystemClock()) as engines:
                yield engines.log
        except DataFolderError as error:
            raise SetupError(f"{error}: stop that server first.") from error
        except (LogSetupError, LogUnavailableError, StorageError, TimelineUnavailableError) as error:
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
            topics(settings.partitions),
            epoch=settings.log_epoch,
            prefix=settings.prefix,
            rng=random.Random(),
            metrics=CollectorRegistry(),
            start_seconds=_PATIENCE_SECONDS,
        ) as log:
            yield log
    except (LogSetupError, LogUnavailableError) as error:
        raise CommandError(f"{error}.") from error
