"""A chat: joins the client (what happens) with the screen (what is typed).

Own messages show below the prompt until they are stored; then they scroll by at their place in the timeline, the same for all, and
their ticks turn below the prompt. As what has scrolled by can't be rewritten, a line tells when ticks turn there.
"""

import asyncio
from collections.abc import Sequence
from contextlib import suppress

from chassis.tasks import Tasks
from parley.api.v1 import events_pb2
from parley_cli import chat_commands
from parley_cli.chat_lines import TICK_STYLES, Lines
from parley_cli.chat_names import Names
from parley_cli.chat_outgoing import Outgoing
from parley_cli.chat_screen import Pieces, Screen
from parley_cli.rendering import describe, harmless, last_cause, member_line, one_line
from parley_cli.ticks import SIGNS, Ticks
from parley_client import (
    CallError,
    CaughtUp,
    Client,
    ClientError,
    CommandHeld,
    CommandRejected,
    ConnectionChanged,
    ConnectionState,
    ConversationChanged,
    FrameRefused,
    InvalidCommandError,
    Missed,
    Notice,
    NoticeStream,
    OutboxFullError,
    ReceiptMoved,
    StoreError,
    Ticket,
    TimelineEvent,
    UnknownConversationError,
)
from parley_protocol.ids import direct_conversation_id, is_app_id

_TURN_SECONDS = 0.3  # delivered is mostly followed by read at once: one line for both
_STATUS_MESSAGES = 3  # own messages below the prompt
_STATUS_CHARS = 24  # of each
_UNSAID = "nothing has been said here yet"
_AWAY = "can't ask the server now: it is away"
_HELD_QUIET_SECONDS = 10.0  # each message that waits is asked to, again and again: one line says it


class Chat:
    """One user's chat in one conversation at a time; others announce themselves by a line."""

    def __init__(self, client: Client, screen: Screen, tasks: Tasks, user: str) -> None:
        self._client = client
        self._screen = screen
        self._tasks = tasks
        self._user = user
        self._names = Names(client, user)
        self._lines = Lines(screen, user)
        self._conversation = ""
        self._peer = ""  # the other of a 1-1 conversation
        self._ticks = Ticks()
        self._shown: dict[str, int] = {}  # conversation: the highest seq on the screen
        self._oldest_shown = 0
        self.lost = asyncio.Event()  # set while there is no connection, once the user was told
        self._outgoing = Outgoing(client, self.lost)
        self._turning = False
        self._quiet_until = 0.0

    # What surrounds the typing.

    def prompt(self) -> Pieces:
        """Return what stands before the line that is typed."""
        return [("class:own", self._user), ("", f" → {harmless(self._label())} " if self._conversation else " "), ("", "> ")]

    def status(self) -> Pieces:
        """Return the line below: the connection, own messages with their ticks, those that wait."""
        connected = self._client.connection is ConnectionState.CONNECTED
        pieces: Pieces = [("class:note", "connected") if connected else ("class:error", "reconnecting…")]
        for message, tick in self._ticks.last(_STATUS_MESSAGES):
            pieces += [
                ("class:note", " │ "),
                (TICK_STYLES[tick], f"{SIGNS[tick]} #{message.seq} "),
                ("class:note", one_line(message.text, _STATUS_CHARS)),
            ]
        for text in self._outgoing.texts()[-_STATUS_MESSAGES:]:
            pieces += [("class:note", " │ "), ("class:waiting", f"⧗ {one_line(text, _STATUS_CHARS)}")]
        return pieces

    # What happens.

    async def follow_events(self) -> None:
        """Show events as they come. Raises SignedOffError."""
        async for event in self._client.events():
            if event.seq > self._shown.get(event.conversation_id, 0):
                if event.conversation_id == self._conversation:
                    await self._show_event(event)
                elif not event.own:
                    self._announce(event)
            self._outgoing.settle(event.event.request_id)
            self._screen.refresh()

    async def follow_notices(self, notices: NoticeStream) -> None:
        """Show what else happens."""
        async for notice in notices:
            self._take(notice)
            self._screen.refresh()

    def _take(self, notice: Notice) -> None:
        match notice:
            case ReceiptMoved(conversation, user, delivered, read) if conversation == self._conversation:
                self._ticks.move(user, delivered, read)
                self._turn_soon()
            case ConnectionChanged(ConnectionState.WAITING, detail) if not self.lost.is_set():
                self.lost.set()
                if self._client.user_id:  # else there is nothing to come back to: the command says so and ends
                    self._lines.note(f"reconnecting… ({last_cause(detail)}; what you type is kept and sent)")
            case ConnectionChanged(ConnectionState.CONNECTED) if self.lost.is_set():
                self.lost.clear()
                self._lines.note("connected again")
            case CommandHeld(_, _, reason, delay):
                now = asyncio.get_running_loop().time()
                if now >= self._quiet_until:
                    self._quiet_until = now + _HELD_QUIET_SECONDS
                    self._lines.note(
                        f"the server asks to wait ({reason.lower()}): what you typed is kept and sent again in {delay:.1f} s"
                    )
            case CommandRejected(request_id, error):
                text = self._outgoing.settle(request_id)
                self._lines.error(f"{f'not sent “{one_line(text, 60)}”' if text else 'not done'}: {error.detail}")
            case FrameRefused(error):
                self._lines.error(f"the server did not understand: {error.detail}")
            case Missed():
                self._read_ticks()
            case ConnectionChanged() | CaughtUp() | ConversationChanged() | ReceiptMoved():
                pass  # the status line shows it, or another conversation's will when it is opened

    # What is typed.

    async def do(self, line: str) -> bool:
        """Do what a line says; False: leave."""
        self._client.hurry()  # somebody is here
        try:
            match chat_commands.parse_line(line):
                case chat_commands.Say(text):
                    await self._say(text)
                case chat_commands.To(target):
                    await self._to(target)
                case chat_commands.History(lines):
                    await self._show_history(lines)
                case chat_commands.Who():
                    await self._who()
                case chat_commands.Conversations():
                    self._list()
                case chat_commands.GroupCreate(title, user_ids):
                    ticket = await self._client.create_group(title, user_ids)
                    self._tasks.spawn(self._open_created(ticket, title), name="create")
                case chat_commands.GroupAdd(user_ids):
                    await self._client.add_members(self._group(), user_ids)
                case chat_commands.GroupLeave():
                    await self._client.leave(self._group())
                case chat_commands.Help():
                    self._lines.note(chat_commands.HELP)
                case chat_commands.Quit():
                    return False
        except (chat_commands.NotUnderstoodError, InvalidCommandError) as error:
            self._lines.error(str(error))
        except UnknownConversationError:
            self._lines.error(_UNSAID)
        except CallError as error:
            when = "can't ask the server now: " if error.passes else ""
            self._lines.error(when + (last_cause(error.detail) or error.code.name.lower()))
        except OutboxFullError:
            self._lines.error("not sent: too much waits for the server already")
        except StoreError as error:
            self._lines.error(f"not sent, and not kept: {error}")
        self._screen.refresh()
        return True

    async def open_user(self, peer: str) -> None:
        """Talk to a user."""
        await self._open(direct_conversation_id(self._user, peer), peer)

    async def open_group(self, target: str) -> None:
        """Talk in a group, by its id or its title. Raises NotUnderstoodError."""
        if chat_commands.is_group_id(target):
            await self._open(target, "")
            return
        known = [c for c in self._client.conversations() if c.title == target and c.kind == events_pb2.CONVERSATION_KIND_GROUP]
        if len(known) != 1:
            ids = ", ".join(conversation.conversation_id for conversation in known)
            raise chat_commands.NotUnderstoodError(
                f"several groups are called {target!r}: {ids}" if known else f"no group is called {target!r}"
            )
        await self._open(known[0].conversation_id, "")

    def show_unread(self) -> None:
        """Say where something waits to be read."""
        for conversation in self._client.conversations():
            if conversation.unread_count and conversation.conversation_id != self._conversation:
                self._lines.note(f"{conversation.unread_count} unread in {self._names.where(conversation.conversation_id)}")

    def show_pending(self) -> None:
        """Say what an earlier run has left to be sent."""
        if left := len(self._client.pending()):
            self._lines.note(f"{left} from before not sent yet: sent when the server takes it")

    async def settle(self) -> None:
        """Wait until all that was typed is stored and shown, while there is a connection and things move; say what is left."""
        if left := await self._outgoing.wait():
            self._lines.note(f"{left} not sent yet: kept, and sent the next time")

    async def _say(self, text: str) -> None:
        if not self._conversation:
            raise chat_commands.NotUnderstoodError("to whom? /to USER says it")
        seen = self._shown.get(self._conversation, 0)
        to_user, conversation = (self._peer, None) if self._peer else (None, self._conversation)
        await self._outgoing.send(
            text, lambda: self._client.send(to_user=to_user, conversation=conversation, body=text, seen_seq=seen)
        )

    async def _to(self, target: str) -> None:
        titles = [conversation.title for conversation in self._client.conversations() if conversation.title]
        if chat_commands.is_group_id(target) or target in titles or not is_app_id(target):
            await self.open_group(target)
        else:
            await self.open_user(target)

    async def _open(self, conversation: str, peer: str, title: str = "") -> None:
        self._conversation, self._peer = conversation, peer
        self._oldest_shown = 0
        self._ticks = Ticks()
        self._read_ticks()
        self._lines.note(f"── {harmless(title or self._label())} ──")
        try:
            events = await self._client.history(conversation, limit=chat_commands.DEFAULT_HISTORY_LINES, fetch=False)
        except UnknownConversationError:
            if peer and not self.lost.is_set():
                self._lines.note(_UNSAID)
            return
        self._shown[conversation] = max(self._shown.get(conversation, 0), events[-1].seq if events else 0)
        self._show_older(events)
        self._ticks.turns()  # what the lines above show already
        if events:
            await self._client.mark_read(conversation, events[-1].seq)

    async def _open_created(self, ticket: Ticket, title: str) -> None:
        try:
            accepted = await ticket.accepted()
        except ClientError:  # a refusal is told by its notice; an end by what ends
            return
        await self._open(accepted.conversation_id, "", title)
        self._screen.refresh()

    async def _show_history(self, lines: int) -> None:
        if not self._conversation:
            raise chat_commands.NotUnderstoodError("of which conversation? /to USER says it")
        away = self.lost.is_set()
        events = await self._client.history(self._conversation, before=self._oldest_shown, limit=lines, fetch=not away)
        if not events and away:
            raise chat_commands.NotUnderstoodError(_AWAY)
        self._lines.note("── earlier ──" if events else "that was the beginning")
        self._show_older(events)

    async def _who(self) -> None:
        if not self._conversation:
            raise chat_commands.NotUnderstoodError("of which conversation? /to USER says it")
        if self.lost.is_set():  # the next lines must not wait for an answer
            raise chat_commands.NotUnderstoodError(_AWAY)
        self._client.conversation(self._conversation)  # raises if nothing was said yet
        members = await self._client.list_members(self._conversation)
        online: dict[str, bool] = {}
        for first in range(0, len(members), 100):
            online |= await self._client.get_presence([member.user_id for member in members[first : first + 100]])
        for member in members:
            self._lines.note(member_line(member, online=online.get(member.user_id, False), in_group=not self._peer))

    def _list(self) -> None:
        conversations = self._client.conversations()
        for conversation in conversations:
            unread = f", {conversation.unread_count} unread" if conversation.unread_count else ""
            gone = "" if conversation.role or conversation.peer_user_id or conversation.title == "" else ", left"
            self._lines.note(f"{self._names.where(conversation.conversation_id)} #{conversation.head_seq}{unread}{gone}")
        if not conversations:
            self._lines.note("no conversations yet: /to USER begins one")

    def _group(self) -> str:
        if not self._conversation or self._peer:
            raise chat_commands.NotUnderstoodError("this is no group: /to GROUP first, or /group create TITLE USER...")
        return self._conversation

    # How it looks.

    async def _show_event(self, event: TimelineEvent) -> None:
        self._shown[event.conversation_id] = event.seq
        self._oldest_shown = self._oldest_shown or event.seq
        self._follow_members(event.event)
        if event.actor == self._user and event.content == "message":
            self._ticks.sent(event.seq, describe(event.event))
        self._lines.event(event, self._ticks)
        await self._client.mark_read(event.conversation_id, event.seq)
        self._turn_soon()

    def _show_older(self, events: Sequence[TimelineEvent]) -> None:
        for event in events:
            if event.actor == self._user and event.content == "message":
                self._ticks.sent(event.seq, describe(event.event))
            self._lines.event(event, self._ticks)
        if events:
            self._oldest_shown = events[0].seq

    def _announce(self, event: TimelineEvent) -> None:
        self._lines.note(f"{self._names.where(event.conversation_id)}: {one_line(describe(event.event), 60)}")

    def _turn_soon(self) -> None:
        if not self._turning:
            self._turning = True
            self._tasks.spawn(self._turn(), name="turn")

    async def _turn(self) -> None:
        await asyncio.sleep(_TURN_SECONDS)
        self._turning = False
        for turn in self._ticks.turns():
            self._lines.turn(turn)
        self._screen.refresh()

    def _read_ticks(self) -> None:
        """Take over watermarks and members as the client holds them."""
        receipts: dict[str, tuple[int, int]] = {}
        with suppress(UnknownConversationError):
            receipts = self._client.receipts(self._conversation)
        self._ticks.set_others([self._peer] if self._peer and self._peer != self._user else receipts)
        for user, (delivered, read) in receipts.items():
            self._ticks.move(user, delivered, read)
        if self._conversation and not self._peer:
            self._tasks.spawn(self._ask_members(self._conversation), name="members")

    async def _ask_members(self, conversation: str) -> None:
        """Learn a group's members and watermarks from the server; without a connection those that are known have to do."""
        with suppress(ClientError):
            members = await self._client.list_members(conversation)
            if conversation == self._conversation:
                self._ticks.set_others(member.user_id for member in members if member.user_id != self._user)
                for member in members:
                    self._ticks.move(member.user_id, member.delivered_seq, member.read_seq)
                self._ticks.turns()
                self._screen.refresh()

    def _follow_members(self, event: events_pb2.Event) -> None:
        if event.WhichOneof("content") in {"group_created", "members_added", "member_removed", "member_left"}:
            self._tasks.spawn(self._ask_members(event.conversation_id), name="members")

    def _label(self) -> str:
        return self._peer or self._names.label(self._conversation)
