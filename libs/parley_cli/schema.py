"""`parley schema`: the tables in ScyllaDB or Cassandra."""

import asyncio
import os
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import click
from prometheus_client import CollectorRegistry

from chassis.config import ConfigError, load_settings
from chassis.logs import configure_logging
from chassis.timeline import TimelineSetupError, TimelineUnavailableError
from chassis.timeline_cql_connect import open_cql_session
from chassis.timeline_cql_metrics import CqlMetrics
from chassis.timeline_cql_schema import ClusterFacts, apply_schema, check_schema, raise_log_epoch, read_engine
from chassis.timeline_cql_settings import CqlSettings
from parley_cli.connection import examples
from parley_cli.failures import CommandError, SetupError
from services.store.schema import SCHEMA

_Command = TypeVar("_Command", bound=Callable[..., Any])
_T = TypeVar("_T")


@click.group(short_help="Make the tables in ScyllaDB or Cassandra.")
def schema() -> None:
    """Make the tables in ScyllaDB or Cassandra."""


def database_options(command: _Command) -> _Command:
    """Add --hosts, --keyspace and --wait."""
    for option in (
        click.option("--wait", metavar="SECONDS", help="How long to wait for the database.  [default: 60]"),
        click.option("--keyspace", metavar="NAME", help="Where the tables lie.  [default: parley]"),
        click.option("--hosts", metavar="A:P,...", help="Nodes to begin with.  [default: 127.0.0.1:9042]"),
    ):
        command = option(command)
    return command


@schema.command(
    short_help="Bring the tables to this version.",
    epilog=examples(
        "parley schema apply --hosts 127.0.0.1:9042 --replication 1",
        "parley schema apply --hosts scylla-1,scylla-2,scylla-3 --keyspace parley --replication 3",
        "parley schema apply --hosts db.berlin --replication berlin=3,paris=3",
    ),
)
@database_options
@click.option(
    "--replication",
    metavar="N",
    default="3",
    show_default=True,
    help="Copies of each row in each datacenter, or DATACENTER=N,... for some; counts when the keyspace is made.",
)
def apply(replication: str, **flags: str | None) -> None:
    """Bring the tables to the version that this program knows. Harmless again, and at once with others.

    Do it before services of a new version start; those of the version before go on meanwhile. Refuses to touch a database whose
    schema is newer. Flags go before the environment: PARLEY_CQL_HOSTS, PARLEY_CQL_KEYSPACE, PARLEY_CQL_USERNAME,
    PARLEY_CQL_PASSWORD, PARLEY_CQL_TLS_CA_FILE, PARLEY_CQL_CONNECT_SECONDS.
    """
    settings = _settings(flags)
    before, facts, engine = _run(_apply(settings, replication))
    done = "had it already" if before == facts.schema_version else f"had version {before}" if before else "is new"
    click.echo(f"keyspace {settings.keyspace} on {engine} has schema version {facts.schema_version} ({done})")
    click.echo(f"cluster {facts.cluster_id}, log epoch {facts.log_epoch}")


@schema.command("log-epoch", short_help="Say that the tables go on with another log.", epilog=examples("parley schema log-epoch 2"))
@click.argument("epoch", type=click.IntRange(min=1))
@database_options
def log_epoch(epoch: int, **flags: str | None) -> None:
    """Say that the tables go on with the log of this epoch, a higher one than before.

    Stores that serve an older epoch stop within seconds, and none starts whose PARLEY_KAFKA_LOG_EPOCH is another one. Before: let
    gateways take no commands and stores and routers finish what is in the old log. After: make the new topics (parley topics apply)
    and start all with the new setting. There is no way back.
    """
    settings = _settings(flags)
    facts = _run(_raise_log_epoch(settings, epoch))
    if facts.log_epoch != epoch:
        raise SetupError(f"keyspace {settings.keyspace} belongs to log epoch {facts.log_epoch} already: an epoch only grows")
    click.echo(f"keyspace {settings.keyspace} belongs to log epoch {epoch}")


def _settings(flags: dict[str, str | None]) -> CqlSettings:
    configure_logging(json=False, level="warning")
    names = {"hosts": "PARLEY_CQL_HOSTS", "keyspace": "PARLEY_CQL_KEYSPACE", "wait": "PARLEY_CQL_CONNECT_SECONDS"}
    environ = dict(os.environ) | {names[flag]: value for flag, value in flags.items() if value is not None}
    try:
        settings = load_settings(CqlSettings, environ)
    except ConfigError as error:
        raise SetupError(str(error)) from error
    click.echo(f"asking {settings.hosts} for up to {settings.connect_seconds:g} s", err=True)
    return settings


def _run(work: Coroutine[Any, Any, _T]) -> _T:
    try:
        return asyncio.run(work)
    except TimelineSetupError as error:
        raise SetupError(str(error)) from error
    except TimelineUnavailableError as error:
        raise CommandError(str(error)) from error


async def _apply(settings: CqlSettings, replication: str) -> tuple[int, ClusterFacts, str]:
    async with open_cql_session(settings, CqlMetrics(CollectorRegistry())) as session:
        before, facts = await apply_schema(session, settings.keyspace, replication, SCHEMA)
        return before, facts, " ".join(await read_engine(session))


async def _raise_log_epoch(settings: CqlSettings, epoch: int) -> ClusterFacts:
    async with open_cql_session(settings, CqlMetrics(CollectorRegistry())) as session:
        await check_schema(session, settings.keyspace, len(SCHEMA))
        await raise_log_epoch(session, settings.keyspace, epoch)
        return await check_schema(session, settings.keyspace, len(SCHEMA))
