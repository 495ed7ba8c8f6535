"""`parley deadletter`: records that no store could apply, and what became of them."""

import asyncio
import base64
import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import click
from google.protobuf import text_format
from google.protobuf.message import DecodeError

from chassis.eventlog import EventLog, LogEntry, LogRecord, partition_for
from chassis.logs import configure_logging
from chassis.timeline import Timeline
from parley.log.v1.records_pb2 import CommandRecord, DeadLetter, RecordPosition
from parley.store.v1.rows_pb2 import StopRow
from parley_cli.connection import data_option, examples
from parley_cli.failures import CommandError, SetupError
from parley_cli.log_access import open_log, open_tables
from parley_cli.rendering import harmless
from parley_protocol.topics import COMMANDS, DEAD_LETTERS
from services.store.state import Position
from services.store.stops import SKIPPED, STOPPED, read_stop, write_stop

_SHOWN_BYTES = 2_000  # of a value that does not parse


@dataclass
class Found:
    """A dead letter, and whether it was appended again."""

    letter: DeadLetter
    time_ms: int
    redriven: bool = False

    @property
    def position(self) -> str:
        """Return its name on the command line: log epoch, partition and offset in parley.commands."""
        return _position(self.letter)

    def command(self) -> CommandRecord | None:
        """Return the record that could not be applied, if it parses."""
        try:
            return CommandRecord.FromString(self.letter.value)
        except DecodeError:
            return None

    def as_json(self) -> dict[str, object]:
        """Return all of it."""
        return {
            "position": self.position,
            "time_ms": self.time_ms,
            "reason": self.letter.reason,
            "key": self.letter.key.decode(errors="replace"),
            "value_base64": base64.b64encode(self.letter.value).decode(),
            "redriven": self.redriven,
        }


async def find_letters(log: EventLog) -> dict[str, Found]:
    """Return all dead letters by position, oldest first. A letter that was written twice, after a crash, is one."""
    entries: list[tuple[LogRecord, DeadLetter]] = []
    for partition in range(await log.partition_count(DEAD_LETTERS)):
        entries += [(record, DeadLetter.FromString(record.value)) async for record in log.records(DEAD_LETTERS, partition)]
    entries.sort(key=lambda entry: entry[0].time_ms)
    found: dict[str, Found] = {}
    for record, letter in entries:
        if not letter.redriven:
            found.setdefault(_position(letter), Found(letter, record.time_ms))
    for _record, letter in entries:
        if letter.redriven and (redriven := found.get(_position(letter))):
            redriven.redriven = True
    return found


async def redrive_letter(log: EventLog, found: Found) -> None:
    """Append the record again, naming the old one, then note it. A crash in between: done twice, which the store sees through.

    Raises CommandError: it does not parse, so no store could do more with it than before.
    """
    record = found.command()
    if record is None or not record.conversation_id:
        raise CommandError(f"{found.position} does not parse: appended again it would come back here.")
    letter = found.letter
    record.redrive_of.CopyFrom(RecordPosition(log_epoch=letter.log_epoch, partition=letter.partition, offset=letter.offset))
    key = record.conversation_id.encode()
    partition = partition_for(key, await log.partition_count(COMMANDS))
    await log.append(COMMANDS, partition, [LogEntry(key, record.SerializeToString())])
    note = DeadLetter(log_epoch=letter.log_epoch, partition=letter.partition, offset=letter.offset, redriven=True)
    await log.append(DEAD_LETTERS, partition, [LogEntry(key, note.SerializeToString())])


kafka_option = click.option(
    "--kafka", is_flag=True, help="The cluster that PARLEY_KAFKA_* and PARLEY_CQL_* name, not the folder of --data."
)


@click.group(short_help="Look at records that no store could apply.")
def deadletter() -> None:
    """Look at records that no store could apply, append them again, and skip one that stops a store.

    They are put aside in the topic parley.deadletters, with why, and the log goes on. A position is EPOCH/PARTITION/OFFSET in
    parley.commands. The server of a data folder has to be stopped for this; a cluster (--kafka) has not.
    """


@deadletter.command(
    "list", short_help="List them, oldest first.", epilog=examples("parley deadletter list", "parley deadletter list --kafka")
)
@data_option
@kafka_option
@click.option("--json", "as_json", is_flag=True, help="A JSON object a line, values included.")
def list_(data_dir: Path, kafka: bool, as_json: bool) -> None:
    """List the dead letters, oldest first."""
    letters = asyncio.run(_find(data_dir, kafka))
    for found in letters.values():
        if as_json:
            click.echo(json.dumps(found.as_json()))
        else:
            again = " (appended again)" if found.redriven else ""
            click.echo(f"{found.position:<14}{_time(found.time_ms)}  {harmless(found.letter.reason)}{again}")
    if not letters and not as_json:
        click.echo("no dead letters")


@deadletter.command(short_help="Show one.", epilog=examples("parley deadletter show 1/0/4711"))
@click.argument("position")
@data_option
@kafka_option
def show(position: str, data_dir: Path, kafka: bool) -> None:
    """Show a dead letter with what could not be applied."""
    found = _one(asyncio.run(_find(data_dir, kafka)), position)
    click.echo(f"{found.position}  put aside {_time(found.time_ms)}{', appended again since' if found.redriven else ''}")
    click.echo(f"reason: {harmless(found.letter.reason)}\nkey: {harmless(found.letter.key.decode(errors='replace'))}")
    record = found.command()
    if record is not None:
        click.echo(text_format.MessageToString(record), nl=False)
    else:
        click.echo(f"value, {len(found.letter.value)} bytes that do not parse: {found.letter.value[:_SHOWN_BYTES].hex()}")


@deadletter.command(short_help="Append one to the log again.", epilog=examples("parley deadletter redrive 1/0/4711"))
@click.argument("position")
@data_option
@kafka_option
@click.option("--again", is_flag=True, help="Also one that was appended again before.")
def redrive(position: str, data_dir: Path, kafka: bool, again: bool) -> None:
    """Append a dead letter's record to the log again, once the cause is mended.

    It is applied as if it came now: behind everything that its sender has done since.
    """

    async def run() -> None:
        async with open_log(data_dir, kafka=kafka) as log:
            found = _one(await find_letters(log), position)
            if found.redriven and not again:
                raise CommandError(f"{position} was appended again before; --again does it once more.")
            await redrive_letter(log, found)

    configure_logging(json=False, level="warning")
    asyncio.run(run())
    click.echo(f"{position} was appended to the log again")


@deadletter.command(
    short_help="Let a partition go on that stopped at a record.",
    epilog=examples("parley deadletter skip 1/0/4711", 'parley deadletter skip 1/0/4711 --reason "incident 7" --kafka'),
)
@click.argument("position")
@data_option
@kafka_option
@click.option("--reason", default="by an operator", show_default=True, help="What the dead letter and the sender's error say.")
def skip(position: str, data_dir: Path, kafka: bool, reason: str) -> None:
    """Let a partition go on that stopped at a record which no store of yours can apply.

    The store's log names the position (store.partition_stopped). Mend the store instead if you can: a store that can apply
    the record does, and nothing is lost. A skipped record becomes a dead letter, which may be redriven once the cause is mended,
    and its sender is told that it failed. All stores skip it, also when the log is applied again; one that stands there goes on
    within seconds.
    """
    place = _parsed(position)

    async def run() -> StopRow:
        async with open_tables(data_dir, cluster=kafka) as timeline:
            return await skip_record(timeline, place, reason)

    configure_logging(json=False, level="warning")
    row = asyncio.run(run())
    click.echo(f"{position} is skipped: {harmless(row.reason)}")


async def skip_record(timeline: Timeline, place: Position, reason: str) -> StopRow:
    """Say in the tables that a record is to be skipped; return what they say then. Raises CommandError: no store stands there."""
    name = "/".join(map(str, place))
    before = await read_stop(timeline, place)
    if before is None:
        raise CommandError(
            f"no partition stopped at {name}: only what a store can't apply can be skipped. Its log names the position."
        )
    if before.stage == STOPPED:
        await write_stop(timeline, place, SKIPPED, reason)
    row = await read_stop(timeline, place)
    if row is None or row.stage != SKIPPED:
        raise CommandError(f"{name} stopped a store once, and was applied since: there is nothing to skip.")
    return row


async def _find(data_dir: Path, kafka: bool) -> dict[str, Found]:
    configure_logging(json=False, level="warning")
    async with open_log(data_dir, kafka=kafka) as log:
        return await find_letters(log)


def _one(letters: dict[str, Found], position: str) -> Found:
    if position not in letters:
        raise CommandError(f"there is no dead letter {position!r}; `parley deadletter list` names those that are.")
    return letters[position]


def _parsed(position: str) -> Position:
    parts = position.split("/")
    if len(parts) != len(Position._fields) or not all(part.isascii() and part.isdecimal() and len(part) < 19 for part in parts):
        raise SetupError(f"{position!r} is no position: EPOCH/PARTITION/OFFSET, for example 1/0/4711.")
    return Position(*map(int, parts))


def _position(letter: DeadLetter) -> str:
    return f"{letter.log_epoch}/{letter.partition}/{letter.offset}"


def _time(time_ms: int) -> str:
    return datetime.fromtimestamp(time_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
