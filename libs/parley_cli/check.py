"""`parley check`: the delivery contract judged from what clients recorded, by anyone."""

import json
import sqlite3
from pathlib import Path

import click
from google.protobuf.message import DecodeError

from chassis.embedded import TABLES_FILE, DataFolderError, hold_folder
from parley_checker.files import FormatError, hashed, read_lines
from parley_checker.history import Entry, History
from parley_checker.judge import judge
from parley_cli.connection import examples
from parley_cli.failures import SetupError
from parley_cli.table_files import read_timelines


@click.command(
    short_help="Judge recorded histories against the delivery contract.",
    epilog=examples(
        "parley demo --record demo.jsonl && parley check demo.jsonl",
        "parley check alice-phone.jsonl bob-laptop.jsonl --data data",
        "parley check *.jsonl --json",
    ),
)
@click.argument("files", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path), metavar="FILE...")
@click.option(
    "--data",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    metavar="DIR",
    help="Read the tables from the data folder of a stopped server; else they must be in the files.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the verdict as one JSON object.")
def check(files: tuple[Path, ...], data: Path | None, as_json: bool) -> None:
    """Judge each guarantee on a line of its own, from what devices recorded and what the tables hold.

    All files together are one history; docs/testing.md tells their format and how an app records. Exit code 1 if a guarantee was
    broken; the stories on stderr say which message it was.
    """
    history = History()
    for path in files:
        try:
            with path.open(encoding="utf-8") as lines:
                read_lines(lines, history)
        except (FormatError, UnicodeDecodeError) as error:
            raise SetupError(f"{path}: {error}") from None
        except OSError as error:
            raise SetupError(f"{path}: {error.strerror}") from None
    if data is not None:
        history.readings["files"] = _tables_in(data)
    if not history.readings:
        raise SetupError("the files do not say what the tables hold: give --data, or record it (docs/testing.md)")
    verdict = judge(history)
    for story in verdict.stories:
        click.echo(story, err=True)
    if as_json:
        judged = {f"G{guarantee.value}": count for guarantee, count in sorted(verdict.judged.items())}
        broken = {f"G{guarantee.value}": count for guarantee, count in sorted(verdict.broken.items())}
        click.echo(json.dumps(verdict.counts() | {"judged": judged, "broken": broken, "stories": verdict.stories}))
    else:
        for line in verdict.by_guarantee():
            click.echo(line)
        click.secho(verdict.line(), fg="green" if verdict.kept else "red", bold=True)
    if not verdict.kept:
        raise click.exceptions.Exit(1)


def _tables_in(data: Path) -> dict[str, list[Entry]]:
    """Return what the tables in a data folder hold. Raises SetupError."""
    if not (data / TABLES_FILE).is_file():
        raise SetupError(f"there are no tables in {data}: it is no data folder")
    try:
        with hold_folder(data):
            tables = read_timelines(data)
    except DataFolderError as error:
        raise SetupError(f"{error}: stop that server first") from None
    except (sqlite3.Error, DecodeError) as error:
        raise SetupError(f"the tables in {data} can't be read: {error}") from None
    return {name: [_as_recorded(entry) for entry in timeline] for name, timeline in tables.items()}


def _as_recorded(entry: Entry) -> Entry:
    """Return an entry with what a record has in place of a body."""
    return entry._replace(body=hashed(entry.body))
