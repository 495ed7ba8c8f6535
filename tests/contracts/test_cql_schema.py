"""The schema of a CQL database: applied once, twice, at once; refused where it does not fit."""

import asyncio
import socket
import uuid
from collections.abc import AsyncIterator

import pytest
from click.testing import CliRunner
from engine_fixtures import EnginesOfTheRun
from prometheus_client import CollectorRegistry

from chassis.timeline import Row, TimelineSetupError, TimelineUnavailableError
from chassis.timeline_cql import CqlTimeline, open_cql_timeline
from chassis.timeline_cql_connect import open_cql_session
from chassis.timeline_cql_metrics import CqlMetrics
from chassis.timeline_cql_schema import ClusterFacts, SchemaVersions, TableSpec, apply_schema, raise_log_epoch
from chassis.timeline_cql_session import CqlSession
from chassis.timeline_cql_settings import CqlSettings
from parley_cli.__main__ import main
from services.store.schema import SCHEMA

pytestmark = pytest.mark.engines("scylladb")

ONE: SchemaVersions = [[TableSpec("events")]]
TWO: SchemaVersions = [*ONE, [TableSpec("inbox", expiring=True)]]


@pytest.fixture
def settings(engines: EnginesOfTheRun) -> CqlSettings:
    return CqlSettings(hosts=engines.address("scylladb"), keyspace=f"schema_{uuid.uuid4().hex}", connect_seconds=30)


@pytest.fixture
async def session(settings: CqlSettings) -> AsyncIterator[CqlSession]:
    async with open_cql_session(settings, CqlMetrics(CollectorRegistry())) as session:
        yield session
        await session.define(f"DROP KEYSPACE IF EXISTS {settings.keyspace}")


async def opened(settings: CqlSettings, tables: list[str], version: int) -> CqlTimeline:
    """Open, write a row, close."""
    async with open_cql_timeline(settings, tables, schema_version=version, metrics=CollectorRegistry()) as timeline:
        await timeline.write([Row(table, "p", b"k", b"v", 1) for table in tables])
        return timeline


async def test_versions_are_applied_once_each_and_again_changes_nothing(settings: CqlSettings, session: CqlSession) -> None:
    before, first = await apply_schema(session, settings.keyspace, "1", ONE)
    assert (before, first.schema_version, first.log_epoch) == (0, 1, 1)
    assert (await opened(settings, ["events"], 1)).facts == first
    assert await apply_schema(session, settings.keyspace, "1", TWO) == (1, first._replace(schema_version=2))
    assert await apply_schema(session, settings.keyspace, "1", TWO) == (2, first._replace(schema_version=2))
    assert (await opened(settings, ["events", "inbox"], 2)).facts.cluster_id == first.cluster_id


async def test_a_keyspace_may_be_named_by_a_word_of_the_language(settings: CqlSettings, session: CqlSession) -> None:
    named = settings.model_copy(update={"keyspace": "select"})
    try:
        _, facts = await apply_schema(session, named.keyspace, "1", ONE)
        await raise_log_epoch(session, named.keyspace, 2)
        assert (await opened(named, ["events"], 1)).facts == facts._replace(log_epoch=2)
    finally:
        await session.define(f'DROP KEYSPACE IF EXISTS "{named.keyspace}"')


async def test_two_at_once_end_with_one_schema(settings: CqlSettings, session: CqlSession) -> None:
    async def apply() -> object:
        async with open_cql_session(settings, CqlMetrics(CollectorRegistry())) as own:
            _, facts = await apply_schema(own, settings.keyspace, "1", TWO)
            return facts

    facts = await asyncio.gather(apply(), apply(), apply())
    assert len(set(facts)) == 1
    assert (await opened(settings, ["events", "inbox"], 2)).facts == facts[0]


async def test_another_database_is_another_cluster(settings: CqlSettings, session: CqlSession) -> None:
    _, first = await apply_schema(session, settings.keyspace, "1", ONE)
    await session.define(f"DROP KEYSPACE {settings.keyspace}")
    _, again = await apply_schema(session, settings.keyspace, "1", ONE)
    assert first.cluster_id != again.cluster_id


async def test_a_newer_schema_is_left_alone_and_not_used(settings: CqlSettings, session: CqlSession) -> None:
    await apply_schema(session, settings.keyspace, "1", TWO)
    with pytest.raises(TimelineSetupError, match="has schema version 2, this program knows 1"):
        await apply_schema(session, settings.keyspace, "1", ONE)
    with pytest.raises(TimelineSetupError, match="has schema version 2, this program knows 1"):
        await opened(settings, ["events"], 1)


async def test_what_is_missing_is_named(settings: CqlSettings, session: CqlSession) -> None:
    with pytest.raises(TimelineSetupError, match=f"no keyspace {settings.keyspace}"):
        await opened(settings, ["events"], 1)
    await session.define(
        f"CREATE KEYSPACE {settings.keyspace} WITH replication = {{'class': 'SimpleStrategy', 'replication_factor': 1}}"
    )
    with pytest.raises(TimelineSetupError, match="apply it first"):
        await opened(settings, ["events"], 1)
    await apply_schema(session, settings.keyspace, "1", ONE)
    with pytest.raises(TimelineSetupError, match="has schema version 1, this program needs 2"):
        await opened(settings, ["events", "inbox"], 2)
    await session.define(f"DROP TABLE {settings.keyspace}.events")
    with pytest.raises(TimelineSetupError, match="events"):
        await opened(settings, ["events"], 1)


async def test_the_log_epoch_only_grows_and_is_seen_by_who_runs(settings: CqlSettings, session: CqlSession) -> None:
    await apply_schema(session, settings.keyspace, "1", ONE)
    async with open_cql_timeline(settings, ["events"], schema_version=1, metrics=CollectorRegistry()) as timeline:
        await raise_log_epoch(session, settings.keyspace, 10)
        await raise_log_epoch(session, settings.keyspace, 9)
        assert timeline.facts.log_epoch == 1
        assert (await timeline.read_facts()).log_epoch == 10
    registry = CollectorRegistry()
    for log_epoch in (1, 11):
        with pytest.raises(TimelineSetupError, match=f"belongs to log epoch 10, this process was told {log_epoch}"):
            async with open_cql_timeline(settings, ["events"], schema_version=1, metrics=registry, log_epoch=log_epoch):
                pass
    async with open_cql_timeline(settings, ["events"], schema_version=1, metrics=registry, log_epoch=10):  # and no metric twice
        assert registry.get_sample_value("parley_timeline_in_flight") == 0
    assert registry.get_sample_value("parley_timeline_in_flight") is None


async def test_more_copies_than_nodes_are_refused_before_anything_is_made(settings: CqlSettings, session: CqlSession) -> None:
    for replication, why in (("3", "3 copies"), ("mars=1", "mars"), ("one", "no replication"), ("datacenter1=0", "no replication")):
        with pytest.raises(TimelineSetupError, match=why):
            await apply_schema(session, settings.keyspace, replication, ONE)
    with pytest.raises(TimelineSetupError, match="no keyspace"):
        await opened(settings, ["events"], 1)
    await apply_schema(session, settings.keyspace, "datacenter1=1", ONE)


async def test_a_table_that_is_dropped_meanwhile_is_an_error_and_no_hang(settings: CqlSettings, session: CqlSession) -> None:
    await apply_schema(session, settings.keyspace, "1", ONE)
    async with open_cql_timeline(settings, ["events"], schema_version=1, metrics=CollectorRegistry()) as timeline:
        await session.define(f"DROP TABLE {settings.keyspace}.events")
        with pytest.raises(TimelineUnavailableError):
            await timeline.write([Row("events", "p", b"k", b"v", 1)])


def test_the_command_applies_and_says_on_what(settings: CqlSettings) -> None:
    arguments = ["schema", "apply", "--hosts", settings.hosts, "--keyspace", settings.keyspace, "--replication", "1"]
    first, again = CliRunner().invoke(main, arguments), CliRunner().invoke(main, arguments)
    assert (first.exit_code, again.exit_code) == (0, 0), first.output + again.output
    assert f"has schema version {len(SCHEMA)} (is new)" in first.output
    assert f"has schema version {len(SCHEMA)} (had it already)" in again.output
    assert " on Cassandra " in first.output or " on ScyllaDB " in first.output
    assert first.output.splitlines()[-1] == again.output.splitlines()[-1]
    refused = CliRunner().invoke(main, [*arguments[:-1], "none", "--keyspace", "other"])
    assert refused.exit_code == 2
    assert "no replication" in refused.output


async def test_a_store_of_an_older_log_is_told_to_stop(
    settings: CqlSettings, session: CqlSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chassis.log_epoch._LOOK_SECONDS", 0.05)
    await apply_schema(session, settings.keyspace, "1", ONE)
    async with open_cql_timeline(settings, ["events"], schema_version=1, metrics=CollectorRegistry()) as timeline:
        looks, read = asyncio.Semaphore(0), timeline.read_facts

        async def counted() -> ClusterFacts:
            looks.release()
            return await read()

        monkeypatch.setattr(timeline, "read_facts", counted)
        await raise_log_epoch(session, settings.keyspace, 1)
        waiting = asyncio.create_task(timeline.wait_superseded())
        for _ in range(3):
            await looks.acquire()
        assert not waiting.done()
        await raise_log_epoch(session, settings.keyspace, 2)
        with pytest.raises(TimelineSetupError, match="belongs to log epoch 2 now, this process serves 1"):
            await waiting


def test_the_command_raises_the_log_epoch_and_never_lowers_it(settings: CqlSettings) -> None:
    database = ["--hosts", settings.hosts, "--keyspace", settings.keyspace]
    refused = CliRunner().invoke(main, ["schema", "log-epoch", "2", *database])
    assert refused.exit_code == 2
    assert "apply the schema first" in refused.output
    assert CliRunner().invoke(main, ["schema", "apply", "--replication", "1", *database]).exit_code == 0
    raised = CliRunner().invoke(main, ["schema", "log-epoch", "3", *database])
    assert raised.exit_code == 0, raised.output
    lowered = CliRunner().invoke(main, ["schema", "log-epoch", "2", *database])
    assert lowered.exit_code == 2
    assert "belongs to log epoch 3 already" in lowered.output


def test_the_command_gives_up_where_no_database_is() -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # and does not listen
        address = f"127.0.0.1:{nobody.getsockname()[1]}"
        result = CliRunner().invoke(main, ["schema", "apply", "--hosts", address, "--wait", "0.5"])
    assert result.exit_code == 1
    assert f"no database answers at {address} (waited 0.5 s)" in result.output
