"""`parley chat`: a conversation in a terminal."""

import asyncio
import hashlib
import re
import signal
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Any

import click

from chassis.first_of import first_of
from chassis.tasks import open_tasks
from parley_cli.calls import REACH_SECONDS, unreachable
from parley_cli.chat_commands import NotUnderstoodError
from parley_cli.chat_screen import PlainScreen, TerminalScreen, open_screen
from parley_cli.chat_session import Chat
from parley_cli.connection import Connection, connection_options, device_option, examples, user_id
from parley_cli.failures import CommandError, SetupError
from parley_client import Client, SignedOffError, SqliteStore, StoreError, StoreInUseError, StoreMismatchError, open_client

_TERMINATED = 128 + signal.SIGTERM  # as shells report it


@click.command(
    short_help="Chat in this terminal.",
    epilog=examples(
        "parley chat alice --with bob",
        "parley chat bob --with alice --device laptop",
        'parley chat carol --group "the team"',
        "echo hello | parley chat alice --with bob",
    ),
)
@click.argument("user", type=user_id)
@click.option("--with", "peer", type=user_id, metavar="USER", help="Talk to this user.")
@click.option("--group", metavar="GROUP", help="Talk in this group: its id or its title.")
@click.option(
    "--state",
    "state_dir",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Where this device keeps what it has received and not sent yet.  [default: chat in the data folder]",
)
@device_option
@connection_options
def chat(user: str, peer: str | None, group: str | None, state_dir: Path | None, device: str, **options: Any) -> None:
    """Chat as USER. Type a line and press Enter; /help lists the commands, Ctrl-D leaves.

    Ticks: ✓ stored, ✓✓ on a device of the other, blue ✓✓ read. What is typed while the server is away is kept and sent when it is
    back, also after this command was ended and started again. A user in two terminals is two devices: name one of them (--device).
    """
    if peer and group:
        raise click.UsageError("name either a user (--with) or a group (--group)")
    connection = Connection.from_options(options)
    state_dir = state_dir or connection.data_dir / "chat"
    try:
        asyncio.run(_chat(connection, user, device, peer, group, state_dir))
    except StoreInUseError as error:
        raise SetupError(f"{user} chats on device {device} already: name this one by --device.") from error
    except StoreMismatchError as error:
        raise SetupError(f"{error}: name another folder with --state.") from error
    except StoreError as error:
        raise CommandError(f"what happens can't be kept: {error}. What is not kept comes again the next time.") from error
    except SignedOffError as error:
        raise CommandError(f"the server signed this device off: {error}") from error
    except asyncio.CancelledError:
        raise SystemExit(_TERMINATED) from None


async def _chat(connection: Connection, user: str, device: str, peer: str | None, group: str | None, state_dir: Path) -> None:
    task = asyncio.current_task()
    assert task is not None
    # The terminal is in raw mode while one types: leave it as it was found.
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    connection.token_for(user, device)  # if there is none, that is said before anything is made
    store = SqliteStore(_state_file(state_dir, connection.server, user, device))

    async def fresh_token() -> str:
        return connection.token_for(user, device)

    async with open_client(
        connection.server, token=connection.token or fresh_token, device_id=device, store=store, tls=connection.trust()
    ) as client:
        with open_screen() as screen:
            await _talk(client, screen, connection, user, device, peer, group)


async def _talk(
    client: Client,
    screen: TerminalScreen | PlainScreen,
    connection: Connection,
    user: str,
    device: str,
    peer: str | None,
    group: str | None,
) -> None:
    async with open_tasks("chat") as tasks:
        chat = Chat(client, screen, tasks, user)
        with client.changes() as notices:
            tasks.spawn(chat.follow_notices(notices), name="notices")
            if await _reach(chat, client, connection, user):
                greeting = f"connected to {connection.server} as {user}, device {device}; /help lists the commands"
                screen.show([("class:note", greeting)])
            try:
                if group:
                    await chat.open_group(group)
                elif peer:
                    await chat.open_user(peer)
            except NotUnderstoodError as error:
                raise CommandError(f"{error}. Make one with /group create TITLE USER... in a chat.") from error
            chat.show_unread()
            chat.show_pending()
            await first_of(_type(chat, screen), chat.follow_events())


async def _reach(chat: Chat, client: Client, connection: Connection, user: str) -> bool:
    """Wait until all is held that happened before; tell whether there is a connection. A device that was here before may go on
    without one. Raises CommandError.
    """
    with suppress(TimeoutError):
        async with asyncio.timeout(REACH_SECONDS):
            await first_of(client.caught_up(), chat.lost.wait())
    if not client.user_id:
        raise CommandError(unreachable(connection))
    if client.user_id != user:  # a token that does not say so itself
        raise CommandError(f"the server takes this user for {client.user_id}, not for {user}")
    return not chat.lost.is_set()


async def _type(chat: Chat, screen: TerminalScreen | PlainScreen) -> None:
    async with aclosing(screen.lines(chat.prompt, chat.status)) as lines:
        async for line in lines:
            if not await chat.do(line):
                break
    if isinstance(screen, PlainScreen):
        await chat.settle()


def _state_file(folder: Path, server: str, user: str, device: str) -> Path:
    """Return the file for a (server, user, device), readable by its name and unique by its hash."""
    digest = hashlib.sha256("\n".join((server, user, device)).encode()).hexdigest()[:16]
    readable = re.sub(r"[^A-Za-z0-9_-]", "_", f"{user}-{device}")[:60]
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise SetupError(f"can't use {folder}: {error.strerror}. Name another folder with --state.") from error
    return folder / f"{readable}-{digest}.db"
