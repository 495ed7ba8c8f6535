"""`parley bench`: how fast, how many, how lean. Its subcommands measure; this module says how they are asked."""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from parley_cli.bench_report import show
from parley_cli.bench_target import Target, TargetOptions, run_benchmark

_Command = TypeVar("_Command", bound=Callable[..., Any])
_POSITIVE = click.IntRange(min=1)


@click.group(short_help="Measure a server.")
def bench() -> None:
    r"""Measure a server: its own CPU time a message, what it delivers in a second, its memory.

    Without --server a server is started for the occasion, in a folder that is removed afterwards. The server's CPU is read from
    /proc (all of its processes, user and system time); what the load generator uses is told apart. Absolute times differ between
    runs on a busy machine: compare what was measured in one run.

    \b
    Examples:
      parley bench messages --pairs 100 --window 8 --seconds 20 --json
      parley bench messages --rate 2000
      parley bench soak --messages 1000000
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
            help="The data folder: the named server's (its key lies there), else where the own server keeps its data.",
        ),
        click.option("--server", default="", metavar="A:P", help="Measure this server, with --data; without, an own one."),
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
