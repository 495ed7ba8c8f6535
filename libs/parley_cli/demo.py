"""`parley demo`: the promise, kept before one's eyes: two users, two devices each, a server that is killed, a judge."""

import asyncio
import os
import secrets
import shutil
import signal
import tempfile
import time
from contextlib import AsyncExitStack, nullcontext
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import click
import grpc

from chassis.tasks import open_tasks
from parley.api.v1.messaging_service_pb2_grpc import MessagingServiceStub
from parley_chaos.recorded_device import RecordedDevice, open_recorded_device
from parley_checker.history import Device, History, entry_of
from parley_checker.judge import judge
from parley_checker.verdict import Verdict
from parley_cli.bench_reads import read_timeline
from parley_cli.connection import local_token
from parley_cli.data_dir import data_dir_of_server
from parley_cli.failures import CommandError, SetupError
from parley_cli.server_process import ServerProcess, open_server_process, run_until_signal
from parley_cli.table_files import read_timelines
from parley_client import MemoryStore, SqliteStore, Store
from parley_client.recording import RecordFile, open_record_file
from parley_cluster.state_file import read_state
from parley_cluster.topology import DRAIN_ORDER
from parley_protocol.ids import direct_conversation_id


class Cast:
    """Who plays. On a server that others use, too, under names that nobody has."""

    def __init__(self, suffix: str = "") -> None:
        self.alice, self.bob = f"alice{suffix}", f"bob{suffix}"
        self.alice_phone, self.alice_laptop = Device(self.alice, "phone"), Device(self.alice, "laptop")
        self.bob_phone, self.bob_tablet = Device(self.bob, "phone"), Device(self.bob, "tablet")
        self.all = (self.alice_phone, self.alice_laptop, self.bob_phone, self.bob_tablet)
        self.conversation_id = direct_conversation_id(self.alice, self.bob)


_SERVICES = DRAIN_ORDER  # what a cluster consists of, engines apart
_STEP_SECONDS = 20.0  # for one thing to happen that takes milliseconds
_RECOVERY_SECONDS = 40.0  # for clients to find the server again: their waits grow
_MISSED = 5  # messages while the tablet is off
_PACE_SECONDS = 0.004  # between a user's messages: traffic that lasts long enough to be interrupted, and to be watched


class Story:
    """Tells what happens, with the time since the beginning."""

    def __init__(self) -> None:
        self._begin = time.monotonic()

    def tell(self, who: str, what: str, color: str = "cyan") -> None:
        """Print a line."""
        elapsed = click.style(f"{time.monotonic() - self._begin:6.2f} s", dim=True)
        click.echo(f"{elapsed}  {click.style(f'{who:<13}', fg=color)} {what}")


@dataclass(frozen=True)
class Running:
    """A server that runs already, and the folder with its key; of a cluster also with its processes."""

    address: str
    data_dir: Path


class Stage:
    """The running demo: its server (its own, or one that runs), its devices, its facts."""

    def __init__(self, folder: Path, stack: AsyncExitStack, story: Story, file: RecordFile | None, running: Running | None) -> None:
        self.cast = Cast(f"-{secrets.token_hex(3)}" if running else "")
        self.data_dir = running.data_dir if running else folder / "data"
        self.history = History()
        self.devices: dict[Device, RecordedDevice] = {}
        self.story = story
        self.address = running.address if running else "127.0.0.1:0"
        self._own = running is None
        self._folder = folder
        self._file = file
        self._stack = stack
        self._server: ServerProcess
        self._runs: dict[Device, int] = {}
        self._closing: dict[Device, AsyncExitStack] = {}

    async def start_server(self) -> None:
        """Start the server, if it is our own; a second time on the same address and data."""
        if self._own:
            opened = open_server_process(self.data_dir, listen=self.address)
            self._server, self.address = await self._stack.enter_async_context(opened)

    async def kill_server(self) -> str:
        """SIGKILL it; return what was killed. Of a cluster it is a process of each service, which its supervisor starts again."""
        if self._own:
            await self._server.kill()
            return "server"
        victims = {process.role: process for process in read_state(self.data_dir) if process.role in _SERVICES}
        for process in victims.values():
            os.kill(process.pid, signal.SIGKILL)
        return ", ".join(process.name for process in victims.values())

    async def stop_server(self) -> None:
        """Have it drain and end, if it is our own, and read its files."""
        if self._own:
            await self._server.stop()
            self.story.tell("server", "stopped; reading its files")
            self.history.readings["the files"] = read_timelines(self.data_dir)

    def token(self, user_id: str) -> str:
        """Sign in."""
        return local_token(self.data_dir, user_id, "")

    async def switch_on(self, device: Device) -> RecordedDevice:
        """Open a device's app; it finds on disk what it had when it was switched off."""
        run = self._runs[device] = self._runs.get(device, 0) + 1
        store: Store = SqliteStore(self._folder / "tablet.db") if device == self.cast.bob_tablet else MemoryStore()
        closing = await self._stack.enter_async_context(AsyncExitStack())
        opened = open_recorded_device(
            self.address, self.token(device.user_id), device, store, self.history, run=run, file=self._file
        )
        recorded = self.devices[device] = await closing.enter_async_context(opened)
        self._closing[device] = closing
        await recorded.client.caught_up()
        return recorded

    async def switch_off(self, device: Device) -> None:
        """Close a device's app."""
        del self.devices[device]
        await self._closing.pop(device).aclose()

    def asked(self) -> int:
        """Return how many messages were composed so far."""
        return sum(len(device.asked) for device in self.history.devices.values())

    async def wait_all_shown(self) -> bool:
        """Wait until every command has its outcome and every device shows all; tell whether it came to that."""
        try:
            async with asyncio.timeout(_STEP_SECONDS):
                for device in self.devices.values():
                    await device.wait_until(lambda device=device: not device.unanswered)  # type: ignore[misc]
                for device in self.devices.values():
                    await device.wait_until(lambda device=device: device.shown(self.cast.conversation_id) >= self.asked())  # type: ignore[misc]
        except TimeoutError:
            return False
        return True


async def play(folder: Path, story: Story, messages: int, file: RecordFile | None, running: Running | None = None) -> Verdict:
    """Play all acts, on a server of their own unless one runs, and judge them; write all facts to the file, if there is one."""
    async with AsyncExitStack() as stack:
        stage = Stage(folder, stack, story, file, running)
        await stage.start_server()
        story.tell("server", f"ready on {stage.address}")
        for device in stage.cast.all:
            await stage.switch_on(device)
        story.tell("devices", "alice has a phone and a laptop, bob a phone and a tablet; all are connected")
        await _act_ticks(stage)
        await _act_absence(stage)
        await _act_kill(stage, messages)
        if await stage.wait_all_shown():
            story.tell("devices", f"all four show {stage.asked()} messages; reading them back over the API")
        else:
            late = f"not all is answered and shown after {_STEP_SECONDS:.0f} s; the judge will say what is missing"
            story.tell("devices", late, "red")
        for recorded in stage.devices.values():
            recorded.settle()
        async with grpc.aio.insecure_channel(stage.address.split(",")[0]) as channel:
            stub = MessagingServiceStub(channel)
            events = [
                entry_of(event) async for event in read_timeline(stub, stage.token(stage.cast.alice), stage.cast.conversation_id)
            ]
        stage.history.readings["ListEvents"] = {stage.cast.conversation_id: events}
        for device in list(stage.devices):
            await stage.switch_off(device)
        await stage.stop_server()
        if file is not None:
            for source, reading in stage.history.readings.items():
                file.note_stored(source, chain.from_iterable(reading.values()))
        return judge(stage.history)


async def _act_ticks(stage: Stage) -> None:
    cast = stage.cast
    phone, bob = stage.devices[cast.alice_phone], stage.devices[cast.bob_phone]
    async with asyncio.timeout(_STEP_SECONDS):
        accepted = await (await phone.say(b"Hello Bob, are you there?", to_user=cast.bob)).accepted()
        stage.story.tell("alice/phone", f"Hello Bob, are you there?   {click.style('✓', dim=True)}  stored as #{accepted.seq}")

        def bob_has() -> tuple[int, int]:
            return phone.client.receipts(cast.conversation_id).get(cast.bob, (0, 0))

        await phone.wait_until(lambda: bob_has()[0] >= accepted.seq)
        stage.story.tell("alice/phone", "Hello Bob, are you there?   ✓✓ delivered")
        await stage.devices[cast.alice_laptop].wait_until(
            lambda: stage.devices[cast.alice_laptop].shown(cast.conversation_id) >= accepted.seq
        )
        stage.story.tell("alice/laptop", "shows it too")
        await bob.wait_until(lambda: bob.shown(cast.conversation_id) >= accepted.seq)
        await bob.client.mark_read(cast.conversation_id, accepted.seq)
        await phone.wait_until(lambda: bob_has()[1] >= accepted.seq)
        stage.story.tell("alice/phone", f"Hello Bob, are you there?   {click.style('✓✓', fg='blue')} read")


async def _act_absence(stage: Stage) -> None:
    cast = stage.cast
    phone = stage.devices[cast.alice_phone]
    await stage.switch_off(cast.bob_tablet)
    stage.story.tell("bob/tablet", "is switched off", "yellow")
    async with asyncio.timeout(_STEP_SECONDS):
        tickets = [
            await phone.say(f"You missed this one, number {number}".encode(), to_user=cast.bob) for number in range(1, _MISSED + 1)
        ]
        last = max([(await ticket.accepted()).seq for ticket in tickets])
        stage.story.tell("alice/phone", f"writes {_MISSED} messages meanwhile  ✓")
        begin = time.monotonic()
        tablet = await stage.switch_on(cast.bob_tablet)
        await tablet.wait_until(lambda: tablet.shown(cast.conversation_id) >= last)
        took = (time.monotonic() - begin) * 1e3
        stage.story.tell("bob/tablet", f"is back and has all {_MISSED} after {took:.0f} ms")


async def _act_kill(stage: Stage, messages: int) -> None:
    cast = stage.cast
    phone, bob = stage.devices[cast.alice_phone], stage.devices[cast.bob_phone]
    before = stage.asked()

    async def chatter(device: RecordedDevice, to_user: str) -> None:
        for number in range(1, messages + 1):
            await device.say(f"{device.device.user_id} says {number}".encode(), to_user=to_user)
            await asyncio.sleep(_PACE_SECONDS)

    async with open_tasks("demo") as tasks:
        talking = [tasks.spawn(chatter(phone, cast.bob), name="alice"), tasks.spawn(chatter(bob, cast.alice), name="bob")]
        stage.story.tell("alice & bob", f"write {messages} messages each, as fast as they type")
        async with asyncio.timeout(_STEP_SECONDS):
            await phone.wait_until(lambda: phone.shown(cast.conversation_id) >= before + messages)
        killed = await stage.kill_server()
        under_way = sum(device.unanswered for device in stage.devices.values())
        if killed == "server":
            stage.story.tell("server", f"KILLED (SIGKILL) in mid-traffic; {under_way} messages have no answer", "red")
            await stage.start_server()
            stage.story.tell("server", f"started again on {stage.address} with the same data")
        elif killed:
            stage.story.tell("cluster", f"KILLED (SIGKILL) {killed} in mid-traffic; {under_way} messages have no answer", "red")
        else:
            stage.story.tell("server", "is not on this machine, and lives", "yellow")
        await asyncio.gather(*talking)
        async with asyncio.timeout(_RECOVERY_SECONDS):
            for device in (phone, bob):
                await device.wait_until(lambda device=device: not device.unanswered)  # type: ignore[misc]
    stage.story.tell("alice & bob", f"have an answer to all {2 * messages}; what had none was sent again")


@click.command(short_help="Watch the promise being kept, server killed and all.")
@click.option(
    "--messages", type=click.IntRange(min=10), default=150, show_default=True, help="What each user writes around the kill."
)
@click.option(
    "--record", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="Write what happened, for parley check."
)
@click.option("--server", metavar="A:P", help="Play on this server; of a cluster one of each service is killed.")
@click.option(
    "--data",
    "data_dir",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Its data folder.  [default: as of `parley up`]",
)
def demo(messages: int, record: Path | None, server: str | None, data_dir: Path | None) -> None:
    """Show two users with two devices each, on a server of their own that is killed in mid-traffic.

    The last line judges the delivery contract from what the devices asked, were answered and show, and from what the tables hold
    (asked over the public API, and read from the files of the stopped server). Exit code 1 if it was broken.
    """
    if data_dir is not None and server is None:
        raise SetupError("--data is the folder of a server that runs: name that one, too, by --server.")
    running = Running(server, data_dir_of_server(data_dir, os.environ)) if server is not None else None
    folder = Path(tempfile.mkdtemp(prefix="parley-demo-"))
    try:
        with open_record_file(record) if record else nullcontext() as file:
            verdict = run_until_signal(play(folder, Story(), messages, file, running))
    except OSError as error:
        raise SetupError(f"{record}: {error.strerror}") from None
    except TimeoutError:
        raise CommandError("what should take a moment did not happen in time; the lines above say where it stopped") from None
    finally:
        shutil.rmtree(folder)
    for story in verdict.stories:
        click.echo(story, err=True)
    kept = verdict.kept and not verdict.unanswered and not verdict.rejected
    if record:
        click.echo(f"recorded in {record}; judge it again with: parley check {record}")
    click.secho(verdict.line(), fg="green" if kept else "red", bold=True)
    if not kept:
        raise click.exceptions.Exit(1)
