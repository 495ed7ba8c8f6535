"""docs/operations.md names every setting and metric as the code has them, its files are there and its backup can be restored."""

import re
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings

from chassis.engines import ClusterSettings
from chassis.eventlog_kafka_metrics import KafkaMetrics
from chassis.eventlog_kafka_settings import KafkaSettings
from chassis.process_config import InternalSettings, ProcessSettings
from chassis.registry_consul_http import ConsulSettings
from chassis.timeline_cql_metrics import CqlMetrics
from chassis.timeline_cql_settings import CqlSettings
from services.gateway.config import GatewaySettings
from services.gateway.metrics import Metrics
from services.router.config import RouterSettings
from services.router.metrics import RouterMetrics
from services.store.config import StoreSettings
from services.store.metrics import StoreMetrics

SETTINGS = [
    ProcessSettings,
    GatewaySettings,
    InternalSettings,
    StoreSettings,
    RouterSettings,
    ClusterSettings,
    KafkaSettings,
    CqlSettings,
    ConsulSettings,
]
DOCS = Path(__file__).parent.parent / "docs"
TEXT = (DOCS / "operations.md").read_text() + (DOCS / "cluster.md").read_text()


def settings_table(settings: type[BaseSettings]) -> str:
    """Return the rows that the document has to have."""
    prefix = str(settings.model_config["env_prefix"])
    return "\n".join(
        f"| `{prefix}{name.upper()}` | {default_of(field)} | {field.description} |" for name, field in settings.model_fields.items()
    )


def default_of(field: FieldInfo) -> str:
    default: Any = field.default
    if default is None or default == "":
        return ""
    return str(default).lower() if isinstance(default, bool) else f"{default:g}" if isinstance(default, float) else str(default)


def metrics_table() -> str:
    registry = CollectorRegistry()
    for metrics in (Metrics, StoreMetrics, RouterMetrics, CqlMetrics, KafkaMetrics):
        metrics(registry)
    families = sorted(registry.collect(), key=lambda family: family.name)
    return "\n".join(f"| `{exposed_name(family)}` | {family.type} | {family.documentation} |" for family in families)


def exposed_name(family: Any) -> str:
    return f"{family.name}_total" if family.type == "counter" else str(family.name)


@pytest.mark.parametrize("settings", SETTINGS)
def test_every_setting_is_in_its_table(settings: type[BaseSettings]) -> None:
    table = settings_table(settings)
    assert all(field.description for field in settings.model_fields.values())
    assert table in TEXT, f"docs/operations.md needs this table:\n{table}"


def test_every_metric_is_in_its_table() -> None:
    table = metrics_table()
    assert table in TEXT, f"docs/operations.md needs this table:\n{table}"


def test_no_setting_and_no_metric_is_named_that_does_not_exist() -> None:
    settings = {row.split("`")[1] for cls in SETTINGS for row in settings_table(cls).splitlines()}
    named = set(re.findall(r"PARLEY_[A-Z_]+[A-Z]", TEXT)) - {"PARLEY_DATA_DIR", "PARLEY_SERVER", "PARLEY_TOKEN"}
    assert named - settings == set()
    metrics = {row.split("`")[1] for row in metrics_table().splitlines()}
    named = set(re.findall(r"\bparley_(?:gateway|store|router|timeline|kafka)_\w+", TEXT))
    assert {re.sub(r"_(bucket|count|sum)$", "", name) for name in named} - metrics == set()
