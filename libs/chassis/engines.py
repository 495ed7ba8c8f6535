"""The distributed engines of a process: the ports, opened on Kafka, ScyllaDB and Consul.

What is not there yet is waited for (`Host.engine`). An adapter is imported when it is opened: a router needs no database driver.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from importlib.metadata import version
from typing import TYPE_CHECKING

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from chassis.eventlog import LogUnavailableError
from chassis.eventlog_kafka_settings import KafkaSettings
from chassis.registry import RegistryUnavailableError
from chassis.registry_consul_claim import Claim
from chassis.registry_consul_http import ConsulSettings
from chassis.service import Host
from chassis.timeline import TimelineUnavailableError
from chassis.timeline_cql_settings import CqlSettings

if TYPE_CHECKING:
    from chassis.eventlog_kafka import KafkaLog
    from chassis.registry_consul import ConsulRegistry
    from chassis.timeline_cql import CqlTimeline


class ClusterSettings(BaseSettings):
    """What all processes of a cluster have in common: PARLEY_CLUSTER_<NAME>."""

    model_config = SettingsConfigDict(env_prefix="PARLEY_CLUSTER_", frozen=True, allow_inf_nan=False)

    id: str = Field(
        "parley", min_length=1, max_length=64, description="The cluster's name: two must not share a Consul by mistake."
    )
    wait_seconds: float = Field(120.0, gt=0, description="How long a start waits for an engine that is not there.")


LOG_AND_REGISTRY = (ClusterSettings, KafkaSettings, ConsulSettings)
ALL_ENGINES = (*LOG_AND_REGISTRY, CqlSettings)


def event_log(host: Host, topics: Mapping[str, int]) -> "AbstractAsyncContextManager[KafkaLog]":
    """Open the log on Kafka."""
    from chassis.eventlog_kafka import open_kafka_log

    settings = host.settings[KafkaSettings]
    return host.engine(
        "Kafka",
        lambda metrics: open_kafka_log(
            settings.connection(),
            topics,
            epoch=settings.log_epoch,
            prefix=settings.prefix,
            rng=host.rng,
            start_seconds=0.0,
            metrics=metrics,
        ),
        absent=LogUnavailableError,
        seconds=host.settings[ClusterSettings].wait_seconds,
    )


def timeline(host: Host, tables: Sequence[str], schema_version: int) -> "AbstractAsyncContextManager[CqlTimeline]":
    """Open the tables in ScyllaDB or Cassandra."""
    from chassis.timeline_cql import open_cql_timeline

    # Waiting is done here, alike for all engines, so that health tells of it.
    settings = host.settings[CqlSettings].model_copy(update={"connect_seconds": 0.0})
    return host.engine(
        "the database",
        lambda metrics: open_cql_timeline(
            settings, tables, schema_version=schema_version, log_epoch=host.settings[KafkaSettings].log_epoch, metrics=metrics
        ),
        absent=TimelineUnavailableError,
        seconds=host.settings[ClusterSettings].wait_seconds,
    )


def registry(host: Host, log: "KafkaLog", timeline: "CqlTimeline | None" = None) -> "AbstractAsyncContextManager[ConsulRegistry]":
    """Open the registry in Consul, for a process that uses this log, and these tables if any."""
    from chassis.registry_consul import open_consul_registry

    settings, cluster = host.settings[ConsulSettings], host.settings[ClusterSettings]
    claim = Claim(cluster.id, log.log_id, log.epoch, "" if timeline is None else timeline.facts.cluster_id)
    return host.engine(
        "Consul",
        lambda _: open_consul_registry(settings, claim=claim, version=version("parley"), rng=host.rng),
        absent=RegistryUnavailableError,
        seconds=cluster.wait_seconds,
    )
