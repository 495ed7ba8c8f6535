"""`parley engines`: Kafka, ScyllaDB and Consul on this machine, for development and tests."""

import json
import os
import shutil
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from parley_cli.connection import examples
from parley_cli.data_dir import default_data_dir
from parley_cli.failures import CommandError
from parley_engines.docker import COMPOSE_FILE, DockerEngines
from parley_engines.errors import EngineError
from parley_engines.native import ENGINES, NativeEngines

_Command = TypeVar("_Command", bound=Callable[..., Any])


@click.group(short_help="Run Kafka, ScyllaDB and Consul on this machine.")
def engines() -> None:
    """Run Kafka, ScyllaDB and Consul on this machine, for development and tests.

    With Docker by docker-compose.yml. Without, as processes on free ports of loopback: Kafka and Cassandra (which speaks ScyllaDB's
    CQL) by Java 17 and Maven, Consul built by Go. What is fetched is checked and kept in $XDG_CACHE_HOME/parley/engines.
    """


def engine_options(command: _Command) -> _Command:
    """Add NAMES, --data and --by."""
    for option in (
        click.option(
            "--by",
            type=click.Choice(["auto", "docker", "native"]),
            default="auto",
            show_default=True,
            help="Containers or processes; auto: containers where Docker is, and no natively started engine lies in the folder.",
        ),
        click.option(
            "--data",
            type=click.Path(path_type=Path, file_okay=False),
            default=lambda: default_data_dir(os.environ) / "engines",
            show_default="engines in Parley's data folder",
            help="Where native engines keep data, logs and what runs.",
        ),
        click.argument("names", nargs=-1, type=click.Choice(list(ENGINES)), metavar="[kafka] [scylladb] [consul]"),
    ):
        command = option(command)
    return command


@engines.command(
    short_help="Provision and start engines.", epilog=examples("parley engines up", "parley engines up kafka --data data")
)
@engine_options
def up(names: Sequence[str], data: Path, by: str) -> None:
    """Provision and start engines, all three unless some are named, and return once they answer.

    The first time takes minutes, mostly for Consul, which is built from source; later < 20 s. They run until `parley engines down`.
    """
    chosen = _choose(names, data, by)
    try:
        if isinstance(chosen, DockerEngines):
            chosen.up(_all(names))
            return
        for started in chosen.up(_all(names)).values():
            click.echo(f"{started.name:<10}{started.address:<18}{started.title}")
    except EngineError as error:
        raise CommandError(f"{error}.") from error


@engines.command(short_help="Stop engines; data stays.", epilog=examples("parley engines down", "parley engines down consul"))
@engine_options
def down(names: Sequence[str], data: Path, by: str) -> None:
    """Stop engines, all three unless some are named. Their data stays."""
    try:
        _choose(names, data, by).down(_all(names))
    except EngineError as error:
        raise CommandError(f"{error}.") from error


@engines.command(short_help="Tell which engines run and answer.", epilog=examples("parley engines status --json"))
@engine_options
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def status(names: Sequence[str], data: Path, by: str, as_json: bool) -> None:
    """Ask each engine a question and tell where it is; the exit code is 1 unless all of them are ready."""
    chosen = _choose(names, data, by)
    rows: list[dict[str, str | int]] = []
    try:
        if isinstance(chosen, DockerEngines):
            rows = [{"name": name, "state": state} for name, state in chosen.status(_all(names)).items()]
        else:
            for name, (started, state) in chosen.status(_all(names)).items():
                row: dict[str, str | int] = {"name": name, "state": state}
                if started is not None and state != "stopped":
                    row |= {"address": started.address, "pid": started.pid, "title": started.title, "log": started.log}
                rows.append(row)
    except EngineError as error:
        raise CommandError(f"{error}.") from error
    if as_json:
        click.echo(json.dumps(rows))
    else:
        for row in rows:
            click.echo(f"{row['name']:<10}{row.get('address', ''):<18}{row['state']:<10}{row.get('title', '')}".rstrip())
    if any(row["state"] != "ready" for row in rows):
        raise SystemExit(1)


@engines.command(
    short_help="Show what engines say.", epilog=examples("parley engines logs kafka", "parley engines logs consul --follow")
)
@engine_options
@click.option("--lines", type=click.IntRange(0), default=50, show_default=True, help="How many of the last lines.")
@click.option("--follow", is_flag=True, help="Go on until Ctrl-C.")
def logs(names: Sequence[str], data: Path, by: str, lines: int, follow: bool) -> None:
    """Show the end of what engines say, of all three unless some are named."""
    chosen = _choose(names, data, by)
    try:
        if isinstance(chosen, DockerEngines):
            chosen.logs(_all(names), lines, follow=follow)
            return
        started = [entry for entry, _ in chosen.status(_all(names)).values() if entry is not None]
    except EngineError as error:
        raise CommandError(f"{error}.") from error
    if not started:
        raise CommandError(f"no engine was started in {data}.")
    if follow:
        if (tail := shutil.which("tail")) is None:
            raise CommandError(f"there is no `tail` here to follow {', '.join(entry.log for entry in started)}.")
        os.execv(tail, [tail, "-n", str(lines), "-F", *(entry.log for entry in started)])  # noqa: S606
    for entry in started:
        click.echo(f"==> {entry.log} <==")
        with Path(entry.log).open(errors="replace") as file:
            click.echo("".join(deque(file, maxlen=lines)), nl=False)


def _all(names: Sequence[str]) -> list[str]:
    return list(names or ENGINES)


def _choose(names: Sequence[str], data: Path, by: str) -> DockerEngines | NativeEngines:
    """Return what runs the engines: what --by says, else what was used in this folder, else Docker where it can be used."""
    native = NativeEngines(data.absolute(), dict(os.environ), lambda line: click.echo(line, err=True))
    docker = DockerEngines(COMPOSE_FILE, dict(os.environ), native.tell)
    if by == "native":
        return native
    if by == "docker":
        if not docker.is_usable():
            raise CommandError(f"Docker can't be used: it takes a running engine, Compose and {COMPOSE_FILE.name}.")
        return docker
    in_use = any(started is not None for started, _ in native.status(_all(names)).values())
    return docker if not in_use and docker.is_usable() else native
