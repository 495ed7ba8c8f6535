"""`parley chaos`: a cluster of real processes, broken on purpose, and the judge's word on what became of it."""

import json
import os
import shutil
import tempfile
from datetime import timedelta
from pathlib import Path

import click

from chassis.app import allow_open_files
from chassis.logs import configure_logging
from parley_chaos.broken import BROKEN
from parley_chaos.clocks import build_preload
from parley_chaos.plan import Kind
from parley_chaos.run import FLOW_SECONDS, Options, Report, run_chaos
from parley_cli.certificates import ROLES, make_authority, make_leaves
from parley_cli.connection import examples
from parley_cli.failures import CommandError
from parley_cli.server_process import run_until_signal
from parley_cluster.cluster import engine_settings, prepare, public_key_file, running_engines
from parley_cluster.supervisor import ProcessFailedError
from parley_engines.cassandra import KEEPS_ALL
from parley_engines.errors import EngineError
from parley_engines.native import engines_of

# A few devices do what thousands would; and what a gateway waits for, so long does a run.
_CERTIFIED_FOR = timedelta(days=1)
_SETTINGS = {"PARLEY_KAFKA_PARTITIONS": "4", "PARLEY_LOG_LEVEL": "info"}


@click.command(
    short_help="Break a cluster of real processes, and judge it.",
    epilog=examples("parley chaos --minutes 5 --seed 1 --json", "parley chaos --minutes 1 --seed 7 --only kill --only stop"),
)
@click.option("--minutes", type=click.FloatRange(min=0.1), default=1.0, show_default=True, help="How long faults go on.")
@click.option("--seed", type=int, default=1, show_default=True, help="Which faults: the same seed draws the same.")
@click.option("--faults", type=click.IntRange(min=0), default=0, help="So many faults instead of a time.")
@click.option("--only", type=click.Choice([kind.value for kind in Kind]), multiple=True, help="Only these kinds of faults.")
@click.option(
    "--patience", "flow_seconds", type=click.FloatRange(min=1), default=FLOW_SECONDS, show_default=True,
    help="Seconds within which every device must have its answers after a fault.",
)  # fmt: skip
@click.option("--on", "only_on", multiple=True, metavar="TARGET", help="Only on these: `store-1`, `kafka`, `router-1-to-consul`.")
@click.option("--broken", type=click.Choice(list(BROKEN)), help="Run a build that is broken on purpose: the judge must find out.")
@click.option("--keep", type=click.Path(file_okay=False, path_type=Path), metavar="DIR", help="Keep data and logs there.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as one JSON object.")
def chaos(
    minutes: float,
    seed: int,
    faults: int,
    only: tuple[str, ...],
    only_on: tuple[str, ...],
    flow_seconds: float,
    broken: str | None,
    keep: Path | None,
    as_json: bool,
) -> None:
    """Run Kafka, Cassandra, Consul and two of each service, with users who write to each other, and break them.

    Kills, stops and restarts services and engines, spoils the links between them, lets clocks jump, now and then two of these at
    once; waits each time until every device has its answers again; at the end every guarantee is judged from what the devices saw,
    what gateways noted and what the tables hold. Only processes of its own and loopback are touched. Exit code 1 if something was
    broken, or did not go on by itself.
    """
    folder = (keep or Path(tempfile.mkdtemp(prefix="parley-chaos-"))).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    allow_open_files()
    configure_logging(json=False, level="warning")  # to stderr: stdout is the report's
    options = Options(
        seed,
        minutes * 60,
        faults,
        tuple(map(Kind, only)),
        flow_seconds=flow_seconds,
        only_on=only_on,
        broken=broken or "",
        certificates=_certificates(folder / "certs"),
    )
    preload = build_preload(folder, folder / "engines")
    if not preload.works:
        _tell("no clock of a process will jump: that takes Linux and a C compiler")
    # One database node is killed here, where production has three: this one must not acknowledge what a kill takes away.
    engines = engines_of(folder / "engines", _tell, {**os.environ, **preload.engines(), KEEPS_ALL: "1"}, leashed=True)
    try:
        with running_engines(engines) as started:
            environ = dict(os.environ) | _SETTINGS | engine_settings(started)
            environ["PARLEY_GATEWAY_TOKEN_KEYS_FILE"] = str(public_key_file(folder))
            prepare(environ)
            report = run_until_signal(run_chaos(options, folder, environ, engines, started, preload, _tell))
    except (EngineError, ProcessFailedError) as error:
        raise CommandError(f"{error}.") from error
    finally:
        if keep is None:
            shutil.rmtree(folder, ignore_errors=True)
    _show(report, as_json=as_json)
    if not report.passed:
        raise click.exceptions.Exit(1)


def _certificates(folder: Path) -> Path:
    """Make certificates, so that services trust each other as they do in production."""
    if not folder.exists():
        make_authority(folder)
        make_leaves(folder, _CERTIFIED_FOR, ROLES)
    return folder


def _show(report: Report, *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(report.as_json()))
        return
    for story in (*report.problems, *report.verdict.stories):
        click.echo(story, err=True)
    for line in report.verdict.by_guarantee():
        click.echo(line)
    kinds = len({done.kind for done in report.done})
    click.echo(f"{len(report.done)} faults of {kinds} kinds in {report.seconds:.0f} s on {', '.join(report.engines)}")
    click.secho(report.verdict.line(), fg="green" if report.passed else "red", bold=True)


def _tell(line: str) -> None:
    click.echo(line, err=True)
