"""`parley admin`: what changes a whole cluster."""

import asyncio
import os
import random
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from importlib.metadata import version

import click
from prometheus_client import CollectorRegistry

from chassis.certificates import TlsError
from chassis.config import ConfigError, load_settings
from chassis.engines import ClusterSettings
from chassis.eventlog import LogSetupError, LogUnavailableError
from chassis.eventlog_kafka_settings import KafkaSettings
from chassis.eventlog_kafka_topics import RETENTION_DAYS, TopicSettings
from chassis.logs import configure_logging
from chassis.registry import RegistryRefusedError, RegistryUnavailableError
from chassis.registry_consul_claim import Claim
from chassis.registry_consul_http import ConsulSettings
from chassis.timeline import TimelineSetupError, TimelineUnavailableError
from chassis.timeline_cql_settings import CqlSettings
from parley_cli.connection import examples
from parley_cli.failures import CommandError, SetupError
from parley_cli.new_epoch import Cluster, NewEpoch, new_log_epoch
from services.store.schema import SCHEMA

_PATIENCE_SECONDS = 10.0  # for Consul to say who is there


@click.group(short_help="Change a whole cluster.")
def admin() -> None:
    """Change a whole cluster: the one that PARLEY_KAFKA_*, PARLEY_CQL_*, PARLEY_CONSUL_* and PARLEY_CLUSTER_ID name."""


@admin.command(
    "new-log-epoch",
    short_help="Give the cluster another log: new topics, another number of partitions.",
    epilog=examples(
        "parley admin new-log-epoch 2 --partitions 64 --replication-factor 3 --min-insync-replicas 2",
        "parley admin new-log-epoch 3 --undrained",
    ),
)
@click.argument("epoch", type=click.IntRange(min=2))
@click.option("--partitions", type=click.IntRange(1, 4096), help="Of every new topic.  [default: PARLEY_KAFKA_PARTITIONS]")
@click.option("--replication-factor", type=click.IntRange(1), default=1, show_default=True, help="Of new topics; for real use 3.")
@click.option("--min-insync-replicas", type=click.IntRange(1), default=1, show_default=True, help="Of new topics; for real use 2.")
@click.option("--retention-days", type=click.FloatRange(0.01), default=RETENTION_DAYS, show_default=True, help="Of new topics.")
@click.option("--wait", "wait_seconds", type=click.FloatRange(0), default=60.0, show_default=True, help="Seconds to drain.")
@click.option("--undrained", is_flag=True, help="Go on although stores or routers have not done all: it says what that costs.")
def new_epoch(
    epoch: int,
    partitions: int | None,
    replication_factor: int,
    min_insync_replicas: int,
    retention_days: float,
    wait_seconds: float,
    undrained: bool,
) -> None:
    """Give the cluster the log of this epoch, one more than it has: the only way to recreate topics or change partitions.

    First stop the gateways, and let stores and routers run. This waits until they have done all that is in the old log, makes the
    topics of the new one, and writes the epoch into the tables, which ends the stores of the old one. Then start all services with
    what it says in the end. Devices stay away meanwhile and lose nothing. What it refuses leaves all as it was; run it again with
    the same EPOCH and it goes on. The old topics stay, for a look, until you delete them; dead letters are redriven before.

    The log of a data folder (parley up) needs none of this: it has one partition for good and never uses an offset twice.
    """
    if min_insync_replicas > replication_factor:
        raise SetupError("--min-insync-replicas can't be more than --replication-factor: nothing could be written.")
    configure_logging(json=False, level="error")
    try:
        kafka = load_settings(KafkaSettings, os.environ)
        wanted = NewEpoch(
            epoch,
            partitions or kafka.partitions,
            TopicSettings(replication_factor, min_insync_replicas, retention_days),
            kafka.prefix,
            undrained,
            wait_seconds,
        )
        asyncio.run(_run(kafka, wanted))
    except (ConfigError, TlsError, TimelineSetupError, RegistryRefusedError) as error:
        raise SetupError(str(error)) from error
    except (LogSetupError, LogUnavailableError, TimelineUnavailableError, RegistryUnavailableError) as error:
        raise CommandError(f"{error}.") from error


async def _run(kafka: KafkaSettings, wanted: NewEpoch) -> None:
    async with _open_cluster(kafka) as cluster:
        await new_log_epoch(cluster, wanted, click.echo)


@asynccontextmanager
async def _open_cluster(kafka: KafkaSettings) -> AsyncIterator[Cluster]:
    from chassis.eventlog_kafka_topics import cluster_id, open_admin
    from chassis.registry_consul import open_consul_registry
    from chassis.timeline_cql_connect import open_cql_session
    from chassis.timeline_cql_metrics import CqlMetrics
    from chassis.timeline_cql_schema import check_schema, raise_log_epoch

    cql = load_settings(CqlSettings, os.environ)
    consul, named = load_settings(ConsulSettings, os.environ), load_settings(ClusterSettings, os.environ)
    async with (
        open_admin(kafka.connection()) as kafka_admin,
        open_cql_session(cql, CqlMetrics(CollectorRegistry())) as session,
        open_consul_registry(
            consul,
            claim=Claim(named.id, f"{await cluster_id(kafka_admin)}/{kafka.prefix}"),
            version=version("parley"),
            rng=random.Random(),
        ) as registry,
    ):

        async def gateways() -> list[str]:
            try:
                async with asyncio.timeout(_PATIENCE_SECONDS), aclosing(registry.watch_instances("gateway")) as watch:
                    return [instance.instance_id for instance in await anext(watch)]
            except TimeoutError:
                raise RegistryUnavailableError("Consul does not say which gateways there are") from None

        async def read_epoch() -> int:
            return (await check_schema(session, cql.keyspace, len(SCHEMA))).log_epoch

        async def raise_epoch(epoch: int) -> None:
            await raise_log_epoch(session, cql.keyspace, epoch)

        yield Cluster(kafka.connection(), gateways, read_epoch, raise_epoch, registry.claims.note_epoch)
