"""`parley bench`: how fast, how many, how lean. Its subcommands measure; this module says how they are asked."""

import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from parley_cli.bench_report import show
from parley_cli.bench_target import Target, TargetOptions, run_benchmark
from parley_cli.connection import examples
from parley_protocol.limits import DEFAULT_MEMBER_CAP

_Command = TypeVar("_Command", bound=Callable[..., Any])
_POSITIVE = click.IntRange(min=1)


@click.group(
    short_help="Measure a server.",
    epilog=examples(
        "parley bench messages --pairs 100 --window 8 --seconds 20 --json",
        "parley bench messages --rate 2000",
        "parley bench group --members 500 --churn",
        "parley bench soak --messages 1000000",
    ),
)
def bench() -> None:
    """Measure a server: its own CPU time a message, what it delivers in a second, its memory.

    Without --server a server is started for the occasion, in a folder that is removed afterwards. The server's CPU is read from
    /proc (all of its processes, user and system time); what the load generator uses is told apart. Absolute times differ between
    runs on a busy machine: compare what was measured in one run.
    """


def target_options(command: _Command) -> _Command:
    """Add --server, --data and --json."""
    for option in (
        click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object."),
        click.option(
            "--data",
            "data_dir",
            type=click.Path(file_okay=False, path_type=Path),
            metavar="DIR",
            help="Its data folder: its key lies there.  [default: as of `parley up`; of an own server: a new one]",
        ),
        click.option("--server", default="", metavar="A:P", help="Measure this server; without, an own one."),
    ):
        command = option(command)
    return command


def _measure(
    measure: Callable[[Target], Awaitable[dict[str, Any]]],
    server: str,
    data_dir: Path | None,
    as_json: bool,
    environ: dict[str, str] | None = None,
) -> dict[str, Any]:
    result = run_benchmark(measure, TargetOptions(server, data_dir, environ or {}))
    show(result, as_json=as_json)
    return result


def _judge(result: dict[str, Any]) -> None:
    """End with exit code 1 if the delivery contract was broken or a command never got its outcome."""
    broken = ("lost", "duplicated", "misordered", "invented", "corrupted", "gaps", "disagreeing", "leaked", "contradicted")
    if any(result[name] for name in (*broken, "rejected", "unanswered")):
        raise click.exceptions.Exit(1)


@bench.command(short_help="1-1 messages: rate, server CPU a message, latency.")
@click.option("--pairs", type=_POSITIVE, default=100, show_default=True, help="Senders, each with one recipient.")
@click.option("--window", type=_POSITIVE, default=8, show_default=True, help="Messages of each pair under way (closed loop).")
@click.option(
    "--rate", type=click.FloatRange(min=0), default=0, help="Messages a second over all pairs, at random moments (open loop)."
)
@click.option(
    "--seconds", type=click.FloatRange(min=0.5), default=20, show_default=True, help="How long to measure, after warming up."
)
@click.option("--warm", "warm_seconds", type=click.FloatRange(min=0), default=3, show_default=True, help="How long to warm up.")
@click.option("--no-receipts", is_flag=True, help="Recipients acknowledge nothing.")
@target_options
def messages(
    pairs: int,
    window: int,
    rate: float,
    seconds: float,
    warm_seconds: float,
    no_receipts: bool,
    server: str,
    data_dir: Path | None,
    as_json: bool,
) -> None:
    """Send messages of 100 bytes between pairs of users with one device each; recipients acknowledge ten times a second.

    latency_ms runs from the moment when a message was due until its sender has Accepted, delivery_latency_ms until its recipient
    has it. All messages are judged by the delivery contract at the end; exit code 1 if it was broken.
    """
    from parley_cli.bench_messages import MessageLoad, measure_messages

    load = MessageLoad(pairs, window, seconds, rate, not no_receipts, warm_seconds)
    _judge(_measure(lambda target: measure_messages(target, load), server, data_dir, as_json))


@bench.command(short_help="Idle devices: memory of each, errors.")
@click.option("--count", type=_POSITIVE, default=1000, show_default=True, help="Devices.")
@click.option(
    "--devices-per-connection",
    type=_POSITIVE,
    default=1,
    show_default=True,
    help="Devices that share a TCP connection; real ones do not.",
)
@click.option("--seconds", type=click.FloatRange(min=0.5), default=5, show_default=True, help="How long they keep silent.")
@click.option("--pairs", type=_POSITIVE, default=50, show_default=True, help="Pairs of them that chat afterwards.")
@click.option("--flow", "flow_seconds", type=click.FloatRange(min=0.5), default=3, show_default=True, help="For how many seconds.")
@target_options
def connections(
    count: int,
    devices_per_connection: int,
    seconds: float,
    pairs: int,
    flow_seconds: float,
    server: str,
    data_dir: Path | None,
    as_json: bool,
) -> None:
    """Connect devices that keep silent, and see what each costs; then have some of them chat."""
    from parley_cli.bench_connections import ConnectionLoad, measure_connections

    load = ConnectionLoad(count, devices_per_connection, seconds, pairs, flow_seconds)
    result = _measure(lambda target: measure_connections(target, load), server, data_dir, as_json)
    _judge(result | {"rejected": result["rejected"] + result["errors"]})


@bench.command(short_help="One group: deliveries, latency of the last member.")
@click.option("--members", type=click.IntRange(min=2), default=500, show_default=True, help="Members, all online.")
@click.option("--rate", type=click.FloatRange(min=0.1), default=10, show_default=True, help="Messages a second, by random members.")
@click.option(
    "--seconds", type=click.FloatRange(min=0.5), default=10, show_default=True, help="How long to measure, after warming up."
)
@click.option("--warm", "warm_seconds", type=click.FloatRange(min=0), default=3, show_default=True, help="How long to warm up.")
@click.option("--churn", is_flag=True, help="Instead, have all join at once and all leave at once while others chat.")
@target_options
def group(
    members: int, rate: float, seconds: float, warm_seconds: float, churn: bool, server: str, data_dir: Path | None, as_json: bool
) -> None:
    """Deliver messages to all members of a group; they acknowledge every few seconds, as the SDK does.

    last_member_latency_ms runs from the moment when a message was due until the last member has it. With --churn: longest_gap_ms is
    the longest time without any delivery, latency_beside_ms what other users' messages had to wait meanwhile.
    """
    from parley_cli.bench_group import GroupLoad, measure_churn, measure_group

    load = GroupLoad(members, rate, seconds, warm_seconds)
    measure = measure_churn if churn else measure_group
    environ = {"PARLEY_GATEWAY_GROUP_MEMBERS": str(members)} if members > DEFAULT_MEMBER_CAP else {}
    _judge(_measure(lambda target: measure(target, load), server, data_dir, as_json, environ))


@bench.command(short_help="Pages of long conversations.")
@click.option(
    "--sizes", default="1000,100000", show_default=True, metavar="N,N", help="Events of the conversations, one after the other."
)
@click.option("--rate", type=click.FloatRange(min=0.1), default=100, show_default=True, help="Pages a second, from random places.")
@click.option("--seconds", type=click.FloatRange(min=0.5), default=10, show_default=True, help="How long to measure each.")
@target_options
def history(sizes: str, rate: float, seconds: float, server: str, data_dir: Path | None, as_json: bool) -> None:
    """Fill conversations, then read pages of 50 events from random places; latency runs from when a page was due."""
    from parley_cli.bench_history import PAGE_EVENTS, HistoryLoad, measure_history

    try:
        counts = tuple(int(size) for size in sizes.split(","))
    except ValueError:
        raise click.BadParameter("numbers separated by commas, for example 1000,1000000", param_hint="--sizes") from None
    if min(counts) < PAGE_EVENTS:
        raise click.BadParameter(f"at least {PAGE_EVENTS} events each: a page", param_hint="--sizes")
    _measure(lambda target: measure_history(target, HistoryLoad(counts, rate, seconds)), server, data_dir, as_json)


@bench.command(short_help="Sync after a short absence.")
@click.option("--conversations", type=_POSITIVE, default=200, show_default=True, help="Of the user who syncs.")
@click.option("--changed", type=_POSITIVE, default=10, show_default=True, help="Of them, between two syncs.")
@click.option("--rounds", type=_POSITIVE, default=100, show_default=True, help="Syncs of each kind.")
@target_options
def sync(conversations: int, changed: int, rounds: int, server: str, data_dir: Path | None, as_json: bool) -> None:
    """Sync one device by digests, with nothing changed and with a few conversations changed."""
    from parley_cli.bench_sync import SyncLoad, measure_sync

    load = SyncLoad(conversations, min(changed, conversations), rounds)
    _measure(lambda target: measure_sync(target, load), server, data_dir, as_json)


@bench.command(short_help="Memory over many messages and connections.")
@click.option(
    "--messages", type=_POSITIVE, default=1_000_000, show_default=True, help="1-1 messages over 100 pairs, 8 of each under way."
)
@click.option(
    "--connections", type=click.IntRange(min=0), default=10_000, show_default=True, help="Connects and disconnects afterwards."
)
@target_options
def soak(messages: int, connections: int, server: str, data_dir: Path | None, as_json: bool) -> None:
    """Send many messages, then connect and disconnect many devices; print the course of the server's memory and whether it is flat.

    Exit code 1 if it is not flat by the rule that the result states, or if the delivery contract was broken.
    """
    from parley_cli.bench_soak import SoakLoad, measure_soak

    result = _measure(lambda target: measure_soak(target, SoakLoad(messages, connections)), server, data_dir, as_json)
    _judge(result)
    if result["flat"] is False:
        raise click.exceptions.Exit(1)


@bench.command(short_help="Rows in ScyllaDB or Cassandra.")
@click.option("--hosts", required=True, metavar="A:P,...", help="Nodes of the database; `parley engines status` tells a local one.")
@click.option("--sizes", default="1,16,64,256", show_default=True, metavar="N,N", help="Rows a call, each of another partition.")
@click.option("--callers", type=_POSITIVE, default=4, show_default=True, help="Calls under way at once.")
@click.option("--seconds", type=click.FloatRange(min=0.1), default=5, show_default=True, help="How long to measure each.")
@click.option("--engine-pid", type=click.IntRange(min=0), default=0, help="The database's process, if here: its CPU is told, too.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object.")
def timeline(hosts: str, sizes: str, callers: int, seconds: float, engine_pid: int, as_json: bool) -> None:
    """Write and read rows of 100 bytes in a keyspace of their own, which is dropped afterwards."""
    from chassis.config import ConfigError, load_settings
    from chassis.timeline import TimelineSetupError, TimelineUnavailableError
    from chassis.timeline_cql_settings import CqlSettings
    from parley_cli.bench_timeline import TimelineLoad, run_timeline_bench
    from parley_cli.failures import SetupError

    try:
        counts = tuple(int(size) for size in sizes.split(","))
    except ValueError:
        counts = (0,)
    if min(counts) < 1:
        raise click.BadParameter("numbers separated by commas, for example 1,16", param_hint="--sizes")
    try:
        settings = load_settings(CqlSettings, dict(os.environ) | {"PARLEY_CQL_HOSTS": hosts, "PARLEY_CQL_CONNECT_SECONDS": "5"})
        show(run_timeline_bench(settings, TimelineLoad(counts, callers, seconds, engine_pid)), as_json=as_json)
    except (ConfigError, TimelineSetupError, TimelineUnavailableError) as error:
        raise SetupError(str(error)) from error


@bench.command(short_help="A process of a cluster is killed: how long its users feel it.")
@click.option("--users", type=_POSITIVE, default=200, show_default=True, help="Devices, each of a user of its own.")
@click.option(
    "--kill",
    "role",
    type=click.Choice(["gateway", "store", "router"]),
    default="gateway",
    show_default=True,
    help="The first such.",
)
@click.option(
    "--rate", type=click.FloatRange(min=0.1), default=50, show_default=True, help="Messages a second meanwhile, to all in turn."
)
@click.option(
    "--seconds", type=click.FloatRange(min=0), default=10, show_default=True, help="How long to go on after the kill, at least."
)
@click.option("--patience", type=click.FloatRange(min=1), default=120, show_default=True, help="... and at most, in seconds.")
@target_options
def recovery(
    users: int, role: str, rate: float, seconds: float, patience: float, server: str, data_dir: Path | None, as_json: bool
) -> None:
    """Kill a process of a running cluster with SIGKILL, under its users.

    back_ms runs from the kill until a device that was cut off has caught up, delivery_latency_ms from when a message was due
    until its recipient shows it, those of the outage included. Exit code 1 if a user is not back or a message was lost or got no
    answer.
    """
    from parley_cli.bench_recovery import RecoveryLoad, measure_recovery
    from parley_cli.failures import SetupError

    if not server or data_dir is None:
        raise SetupError("--server and --data are needed: of a running `parley up --distributed`.")
    load = RecoveryLoad(users, role, rate, seconds, patience)
    result = _measure(lambda target: measure_recovery(target, data_dir, load), server, data_dir, as_json)
    if result["not_back"] or result["lost"] or result["unanswered"]:
        raise click.exceptions.Exit(1)


@bench.command(short_help="Records in Kafka.")
@click.option(
    "--servers", required=True, metavar="A:P,...", help="Brokers to begin with; `parley engines status` tells a local one."
)
@click.option("--waiting", default="1,64,1000", show_default=True, metavar="N,N", help="Appends of one record under way at once.")
@click.option("--partitions", type=_POSITIVE, default=1, show_default=True, help="Of the topic.")
@click.option("--seconds", type=click.FloatRange(min=0.1), default=5, show_default=True, help="How long to measure each.")
@click.option("--engine-pid", type=click.IntRange(min=0), default=0, help="The broker's process, if here: its CPU is told, too.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object.")
def log(servers: str, waiting: str, partitions: int, seconds: float, engine_pid: int, as_json: bool) -> None:
    """Append and consume records of 150 bytes in a topic of their own, which is deleted afterwards."""
    from chassis.config import ConfigError, load_settings
    from chassis.eventlog import LogSetupError, LogUnavailableError
    from chassis.eventlog_kafka_settings import KafkaSettings
    from parley_cli.bench_log import LogLoad, run_log_bench
    from parley_cli.failures import SetupError

    try:
        counts = tuple(int(count) for count in waiting.split(","))
    except ValueError:
        counts = (0,)
    if min(counts) < 1:
        raise click.BadParameter("numbers separated by commas, for example 1,64", param_hint="--waiting")
    try:
        settings = load_settings(KafkaSettings, dict(os.environ) | {"PARLEY_KAFKA_SERVERS": servers})
        show(run_log_bench(settings.connection(), LogLoad(counts, partitions, seconds, engine_pid)), as_json=as_json)
    except (ConfigError, LogSetupError, LogUnavailableError) as error:
        raise SetupError(str(error)) from error
