"""`parley topics`: the log's topics in Kafka."""

import asyncio
import os

import click

from chassis.certificates import TlsError
from chassis.config import ConfigError, load_settings
from chassis.eventlog import LogSetupError, LogUnavailableError
from chassis.eventlog_kafka_settings import KafkaSettings
from chassis.eventlog_kafka_topics import RETENTION_DAYS, TopicSettings, apply_topics, engine_topic
from parley_cli.connection import examples
from parley_cli.failures import CommandError, SetupError
from parley_protocol.topics import topics as all_topics


@click.group(short_help="Make the log's topics in Kafka.")
def topics() -> None:
    """Make the log's topics in Kafka. Where that is, who we are to it and which epoch: PARLEY_KAFKA_* (docs/operations.md)."""


@topics.command(
    short_help="Make what is missing, check what is there.",
    epilog=examples(
        "parley topics apply", "PARLEY_KAFKA_PARTITIONS=64 parley topics apply --replication-factor 3 --min-insync-replicas 2"
    ),
)
@click.option("--replication-factor", type=click.IntRange(1), default=1, show_default=True, help="Of new topics; for real use 3.")
@click.option("--min-insync-replicas", type=click.IntRange(1), default=1, show_default=True, help="Of new topics; for real use 2.")
@click.option("--retention-days", type=click.FloatRange(0.01), default=RETENTION_DAYS, show_default=True, help="Of new topics.")
def apply(replication_factor: int, min_insync_replicas: int, retention_days: float) -> None:
    """Make the topics of this log epoch that are missing, and check that the others are as they have to be.

    Safe to run twice, and at once. What exists is never changed: partitions can't be within an epoch, and the rest is yours.
    """
    try:
        settings = load_settings(KafkaSettings, os.environ)
        connection = settings.connection()
    except (ConfigError, TlsError) as error:
        raise SetupError(str(error)) from error
    if min_insync_replicas > replication_factor:
        raise SetupError("--min-insync-replicas can't be more than --replication-factor: nothing could be written.")
    wanted = all_topics(settings.partitions)
    making = apply_topics(
        connection,
        wanted,
        epoch=settings.log_epoch,
        settings=TopicSettings(replication_factor, min_insync_replicas, retention_days),
        prefix=settings.prefix,
    )
    try:
        made = asyncio.run(making)
    except (LogSetupError, LogUnavailableError) as error:
        raise CommandError(f"{error}.") from error
    for topic in wanted:
        name = engine_topic(settings.prefix, topic, settings.log_epoch)
        click.echo(f"{name:<24} {settings.partitions} partitions{', made now' if name in made else ''}")
