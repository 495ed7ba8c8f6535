"""What can't be a CQL database's address or keyspace is refused, and the schema has every table of the store."""

import pytest

from chassis.config import ConfigError, load_settings
from chassis.timeline_cql_settings import CqlSettings
from services.store.rows import TABLES
from services.store.schema import SCHEMA


def load(**environ: str) -> CqlSettings:
    return load_settings(CqlSettings, {f"PARLEY_CQL_{name}": value for name, value in environ.items()})


def test_nodes_have_the_default_port_and_all_the_same() -> None:
    assert load().nodes() == [("127.0.0.1", 9042)]
    assert load(HOSTS="a, b").nodes() == [("a", 9042), ("b", 9042)]
    assert load(HOSTS="a:1,[::1]:1").nodes() == [("a", 1), ("::1", 1)]


@pytest.mark.parametrize("hosts", ["", "a:", "a:0", "a:70000", "a:x", "a,,b", "a:1,b:2"])
def test_hosts_that_are_none_are_refused(hosts: str) -> None:
    with pytest.raises(ConfigError, match="PARLEY_CQL_HOSTS"):
        load(HOSTS=hosts)


@pytest.mark.parametrize("name", ["", "Parley", "a-b", "1a", "a" * 49, 'a"; DROP KEYSPACE b'])
def test_keyspaces_that_are_none_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="PARLEY_CQL_KEYSPACE"):
        load(KEYSPACE=name)


@pytest.mark.parametrize(
    "files", [{"CERTIFICATE": "c.pem", "CA": "ca.pem"}, {"KEY": "k.pem", "CA": "ca.pem"}, {"CERTIFICATE": "c.pem", "KEY": "k.pem"}]
)
def test_a_certificate_without_what_belongs_to_it_is_refused(files: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="TLS_CERTIFICATE_FILE"):
        load(**{f"TLS_{name}_FILE": file for name, file in files.items()})


def test_the_schema_has_every_table_of_the_store_once() -> None:
    assert sorted(spec.name for version in SCHEMA for spec in version) == sorted(TABLES)
