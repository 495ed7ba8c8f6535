"""`parley deadletter`: what no store could apply is listed, shown and appended again, on both logs."""

import asyncio
import json
import signal
import uuid
from pathlib import Path

import pytest
from engine_fixtures import EnginesOfTheRun
from parley_process import Server, run
from prometheus_client import CollectorRegistry

from chassis.clock import SystemClock
from chassis.eventlog import LogEntry
from chassis.timeline_cql_connect import open_cql_session
from chassis.timeline_cql_metrics import CqlMetrics
from chassis.timeline_cql_settings import CqlSettings
from parley.api.v1.commands_pb2 import SendMessage
from parley.log.v1.records_pb2 import CommandRecord, DeadLetter, RawCommand
from parley.store.v1.rows_pb2 import StopRow
from parley_cli.embedded import open_engines
from parley_cli.log_access import open_log, open_tables
from parley_protocol.ids import direct_conversation_id
from parley_protocol.topics import COMMANDS, DEAD_LETTERS
from services.store.state import Position
from services.store.stops import APPLIED, SKIPPED, STOPPED, load_stops, write_stop

GARBAGE = LogEntry(b"k", b"\xff\xff\xff")


def misplaced() -> LogEntry:
    """Return a good record under a wrong key: no store applies it there."""
    action = SendMessage(content_type="text/plain", body=b"found again").SerializeToString()
    record = CommandRecord(
        rules_version=1,
        conversation_id=direct_conversation_id("alice", "bob"),
        user_id="alice",
        device_id="phone",
        command=RawCommand(request_id=bytes(range(16)), to_user_id="bob", send_message=action),
    )
    return LogEntry(b"elsewhere", record.SerializeToString())


def test_dead_letters_of_a_data_folder(tmp_path: Path) -> None:
    data = tmp_path / "data"

    async def spoil() -> None:
        async with open_engines(data, SystemClock()) as engines:
            await engines.log.append(COMMANDS, 0, [GARBAGE, misplaced()])

    def deadletter(*arguments: str) -> tuple[int, str, str]:
        return run("deadletter", *arguments, "--data", str(data), home=tmp_path)

    asyncio.run(spoil())
    with Server(data) as server:
        assert server.run("send", "--as", "alice", "--to", "bob", "goes on")[0] == 0  # behind both
        code, _, err = deadletter("list")
        assert (code, "in use by process" in err, "stop that server first" in err) == (2, True, True)
        server.signal(signal.SIGTERM)
        assert server.wait() == 0

    garbage, other = (json.loads(line) for line in deadletter("list", "--json")[1].splitlines())
    assert (garbage["position"], garbage["value_base64"], garbage["key"]) == ("1/0/0", "////", "k")
    assert (other["position"], other["redriven"]) == ("1/0/1", False)
    assert "does not parse, or not under this key" in other["reason"]
    assert "3 bytes that do not parse: ffffff" in deadletter("show", "1/0/0")[1]
    assert 'user_id: "alice"' in deadletter("show", "1/0/1")[1]

    for position, why in (("1/0/0", "does not parse"), ("1/0/2", "there is no dead letter '1/0/2'")):
        code, _, err = deadletter("redrive", position)
        assert (code, why in err) == (1, True)
    assert deadletter("redrive", "1/0/1")[0] == 0
    code, _, err = deadletter("redrive", "1/0/1")
    assert (code, "--again" in err) == (1, True)
    assert deadletter("redrive", "1/0/1", "--again")[0] == 0  # which the store sees through
    assert "(appended again)" in deadletter("list")[1]
    with Server(data) as server:
        code, out, err = server.run("history", "--as", "bob", "--with", "alice", "--json")
        assert (code, [json.loads(line)["text"] for line in out.splitlines()]) == (0, ["goes on", "found again"]), err


def test_a_partition_that_stopped_goes_on_once_its_record_is_skipped(tmp_path: Path) -> None:
    data = tmp_path / "data"
    record = CommandRecord.FromString(misplaced().value)
    record.rules_version = 99  # which stops every store of today

    async def stop() -> None:
        async with open_engines(data, SystemClock()) as engines:
            await engines.log.append(COMMANDS, 0, [LogEntry(record.conversation_id.encode(), record.SerializeToString())])

    def skip(position: str, *arguments: str) -> tuple[int, str, str]:
        return run("deadletter", "skip", position, "--data", str(data), *arguments, home=tmp_path)

    asyncio.run(stop())
    assert [skip(position)[0] for position in ("1/0", "1/0/x", "1/0/-1", "", "1/0/0/0", f"1/0/{10**20}")] == [2] * 6
    code, _, err = skip("1/0/0")
    assert (code, "no partition stopped at 1/0/0" in err) == (1, True)
    with Server(data) as server:
        server.stderr.expect("store.partition_stopped")
        server.stderr.expect("parley deadletter skip 1/0/0")
        code, _, err = skip("1/0/0")
        assert (code, "stop that server first" in err) == (2, True)
        server.signal(signal.SIGTERM)
        assert server.wait() == 0
    code, out, err = skip("1/0/0", "--reason", "of a test of tomorrow")
    assert (code, out) == (0, "1/0/0 is skipped: of a test of tomorrow\n"), err
    assert skip("1/0/0")[1] == out, "again changes nothing"
    with Server(data) as server:
        assert server.run("send", "--as", "alice", "--to", "bob", "goes on")[0] == 0
        server.signal(signal.SIGTERM)
        assert server.wait() == 0
    assert "skipped: of a test of tomorrow" in run("deadletter", "list", "--data", str(data), home=tmp_path)[1]


@pytest.mark.engines("scylladb")
def test_a_cluster_is_told_through_its_tables(tmp_path: Path, engines: EnginesOfTheRun, monkeypatch: pytest.MonkeyPatch) -> None:
    keyspace, at = f"skip_{uuid.uuid4().hex}", Position(1, 3, 4711)
    environ = {"PARLEY_CQL_HOSTS": engines.address("scylladb"), "PARLEY_CQL_KEYSPACE": keyspace}
    for name, value in environ.items():
        monkeypatch.setenv(name, value)

    async def stop(position: Position, stage: StopRow.Stage.ValueType) -> None:
        async with open_tables(tmp_path, cluster=True) as timeline:
            await write_stop(timeline, position, stage, "a test's will")

    async def stages() -> dict[int, StopRow]:
        async with open_tables(tmp_path, cluster=True) as timeline:
            return await load_stops(timeline, 1, 3)

    def skip(position: str) -> tuple[int, str, str]:
        return run("deadletter", "skip", position, "--kafka", home=tmp_path, env=environ)

    code, _, err = skip("1/3/4711")
    assert (code, "has no keyspace" in err) == (1, True)
    try:
        assert run("schema", "apply", "--replication", "1", home=tmp_path, env=environ)[0] == 0
        code, _, err = skip("1/3/4711")
        assert (code, "no partition stopped at 1/3/4711" in err) == (1, True)
        asyncio.run(stop(at, STOPPED))
        asyncio.run(stop(at._replace(offset=5), APPLIED))
        assert skip("1/3/4711")[0] == 0
        code, _, err = skip("1/3/5")
        assert (code, "applied since" in err) == (1, True)
        asyncio.run(stop(at, STOPPED))  # by one that comes late
        found = asyncio.run(stages())
        assert {offset: row.stage for offset, row in found.items()} == {4711: SKIPPED, 5: APPLIED}
        assert found[4711].reason == "by an operator"
    finally:
        asyncio.run(_drop(engines.address("scylladb"), keyspace))


async def _drop(hosts: str, keyspace: str) -> None:
    async with open_cql_session(CqlSettings(hosts=hosts), CqlMetrics(CollectorRegistry())) as session:
        await session.define(f"DROP KEYSPACE IF EXISTS {keyspace}")


def test_there_is_nothing_to_see_in_a_folder_that_is_none(tmp_path: Path) -> None:
    code, _, err = run("deadletter", "list", "--data", str(tmp_path / "nosuch"), home=tmp_path)
    assert (code, "there is no data folder" in err) == (2, True)
    assert not (tmp_path / "nosuch").exists()


@pytest.mark.engines("kafka")
def test_dead_letters_of_a_cluster(tmp_path: Path, engines: EnginesOfTheRun, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"SERVERS": engines.address("kafka"), "PARTITIONS": "2", "PREFIX": f"{tmp_path.name.replace('_', '-').lower()}."}
    environ = {f"PARLEY_KAFKA_{name}": value for name, value in settings.items()}
    for name, value in environ.items():
        monkeypatch.setenv(name, value)

    def parley(*arguments: str) -> tuple[int, str, str]:
        return run(*arguments, home=tmp_path, env=environ)

    code, _, err = parley("deadletter", "list", "--kafka")
    assert (code, "`parley topics apply` makes it" in err) == (1, True)
    assert parley("topics", "apply")[0] == 0
    assert parley("deadletter", "list", "--kafka") == (0, "no dead letters\n", "")

    async def put_aside() -> None:
        async with open_log(tmp_path, kafka=True) as log:
            entry = misplaced()
            letter = DeadLetter(log_epoch=1, partition=1, offset=7, key=entry.key, value=entry.value, reason="of no use")
            await log.append(DEAD_LETTERS, 1, [LogEntry(entry.key, letter.SerializeToString())] * 2)  # a crash wrote it twice

    async def commands() -> list[CommandRecord]:
        async with open_log(tmp_path, kafka=True) as log:
            return [CommandRecord.FromString(record.value) for number in range(2) async for record in log.records(COMMANDS, number)]

    asyncio.run(put_aside())
    assert parley("deadletter", "list", "--kafka")[1].split()[0] == "1/1/7"
    assert parley("deadletter", "redrive", "1/1/7", "--kafka")[0] == 0
    (record,) = asyncio.run(commands())
    assert (record.user_id, record.redrive_of.partition, record.redrive_of.offset) == ("alice", 1, 7)
    assert "(appended again)" in parley("deadletter", "list", "--kafka")[1]

    del environ["PARLEY_KAFKA_PARTITIONS"]  # Kafka knows it
    assert "(appended again)" in parley("deadletter", "list", "--kafka")[1]
    environ["PARLEY_KAFKA_PARTITIONS"] = "3"
    code, _, err = parley("deadletter", "list", "--kafka")
    assert (code, "set PARLEY_KAFKA_PARTITIONS=2." in err) == (1, True)
