"""The client that an app holds: open it, send, iterate over events.

    async with open_client("127.0.0.1:7080", token=token, device_id="phone", store=SqliteStore("phone.db")) as client:
        ticket = await client.send(to_user="bob", body="hello")
        accepted = await ticket.accepted()
        async for event in client.events():
            print(event.conversation_id, event.seq, event.text)

Opening does not wait for the server: an app shows what it holds, and sends, while it is offline.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Final, TypeVar

import grpc

from chassis.clock import Clock, SystemClock
from parley.api.v1 import commands_pb2, events_pb2
from parley.api.v1 import messaging_service_pb2 as api
from parley_client import commands
from parley_client.calls import Calls
from parley_client.channel import ChannelFactory, always, channels_to
from parley_client.conversation_state import ConversationState
from parley_client.device import Device
from parley_client.errors import CallError, StoreMismatchError, UnknownConversationError
from parley_client.link import Link
from parley_client.notices import ConnectionState, NoticeStream
from parley_client.options import ClientOptions
from parley_client.recording import Recorder
from parley_client.store import Store
from parley_client.tickets import Ticket
from parley_client.token import Token, TokenSource
from parley_client.views import Conversation, EventStream, TimelineEvent, view_of

HISTORY_PAGE = 50
_ASK_AGAIN_SECONDS: Final = 0.2  # while a link finds its next gateway, which takes a moment
_T = TypeVar("_T")


class Client:
    """One device of one user. Use it on the loop that opened it."""

    def __init__(self, device: Device, link: Link, clock: Clock, rng: random.Random) -> None:
        self._device = device
        self._link = link
        self._clock = clock
        self._rng = rng

    @property
    def user_id(self) -> str:
        """Who this is; empty before the first connection of a new store."""
        return self._device.state.user_id

    @property
    def device_id(self) -> str:
        """Which of the user's devices; empty before the first connection of a new store."""
        return self._device.state.device_id

    @property
    def connection(self) -> ConnectionState:
        """Where the client stands."""
        return self._device.connection

    async def caught_up(self) -> None:
        """Wait until all that happened before the present connection is held. Raises ClosedError or SignedOffError."""
        await self._device.caught_up.wait()
        if self._device.ended is not None:
            raise self._device.ended

    def hurry(self) -> None:
        """Try to connect soon instead of after the whole backoff: the network is back, or somebody looks at the screen.

        Never for a timer of the app's: the backoff spares a server that comes back to a crowd. A second is waited all the same, and
        what the server asked for. Without effect on a connection.
        """
        self._link.hurry()

    # Commands: each is kept before the call returns and has its fate told by the ticket.

    async def send(
        self,
        *,
        to_user: str | None = None,
        conversation: str | None = None,
        body: bytes | str = b"",
        content_type: str = "",
        mentions: Sequence[str] = (),
        reply_to_seq: int = 0,
        attachments: Sequence[commands_pb2.Attachment] = (),
        seen_seq: int = 0,
    ) -> Ticket:
        """Queue a message to a user or into a conversation.

        `seen_seq`: the highest seq that the app had shown when the message was composed: all up to it counts as read.
        """
        message = commands_pb2.SendMessage(
            content_type=content_type,
            body=body.encode() if isinstance(body, str) else body,
            mentions=mentions,
            reply_to_seq=reply_to_seq,
            attachments=attachments,
        )
        return self._submit(commands_pb2.Command(seen_seq=seen_seq, send_message=message), to_user, conversation)

    async def create_group(self, title: str, members: Sequence[str]) -> Ticket:
        """Queue a new group with this user as its owner; its id is in Accepted."""
        group = commands_pb2.CreateGroup(title=title, member_user_ids=commands.check_users(members))
        return self._queue(commands_pb2.Command(create_group=group))

    async def add_members(self, conversation: str, users: Sequence[str]) -> Ticket:
        """Queue adding users to a group."""
        add = commands_pb2.AddMembers(user_ids=commands.check_users(users))
        return self._submit(commands_pb2.Command(add_members=add), None, conversation)

    async def remove_member(self, conversation: str, user: str) -> Ticket:
        """Queue removing a user from a group."""
        remove = commands_pb2.RemoveMember(user_id=user)
        return self._submit(commands_pb2.Command(remove_member=remove), None, conversation)

    async def leave(self, conversation: str) -> Ticket:
        """Queue leaving a group."""
        return self._submit(commands_pb2.Command(leave=commands_pb2.Leave()), None, conversation)

    async def change_role(self, conversation: str, user: str, role: commands_pb2.Role.ValueType) -> Ticket:
        """Queue giving a member another role."""
        change = commands_pb2.ChangeRole(user_id=user, role=role)
        return self._submit(commands_pb2.Command(change_role=change), None, conversation)

    async def rename(self, conversation: str, title: str) -> Ticket:
        """Queue giving a group another title."""
        change = commands_pb2.ChangeSettings(title=title)
        return self._submit(commands_pb2.Command(change_settings=change), None, conversation)

    def pending(self) -> Sequence[Ticket]:
        """Return the tickets of all commands without an outcome, oldest first; after a restart also those of the run before."""
        return self._device.pending()

    # What happens.

    def events(self) -> EventStream:
        """Iterate over events: each once per process, at least once over a crash (done is what the next was asked after).

        By seq within a conversation, without gaps inside what the user may see. Includes this user's own commands, also this
        device's (`event.own`), at their places. A new device begins with the newest events of each conversation; older ones are
        `history`. One reader at a time. Ends when the client is closed; raises SignedOffError when the server wants no reconnect.
        """
        return EventStream(self._device)

    @contextmanager
    def changes(self) -> Iterator[NoticeStream]:
        """Iterate over notices, from now on: receipts, conversations, connection, held and rejected commands.

        A slow reader loses the oldest and is told how many (`Missed`).
        """
        stream = self._device.board.open()
        try:
            yield stream
        finally:
            self._device.board.close(stream)

    async def mark_read(self, conversation: str, seq: int) -> None:
        """Note that the user saw all up to a seq; the server is told within a moment. Never moves back."""
        self._state_of(conversation)
        self._device.keep(self._device.state.mark_read(conversation, seq, self._clock.monotonic()))

    # What is held.

    def conversations(self) -> list[Conversation]:
        """Return the conversations that this device knows, latest first."""
        states = self._device.state.timelines.conversations.values()
        known = [state for state in states if state.is_placed or state.known_head_seq]
        return [view_of(state) for state in sorted(known, key=lambda state: (-state.last_time_ms, state.conversation_id))]

    def conversation(self, conversation: str) -> Conversation:
        """Return one conversation as this device knows it. Raises UnknownConversationError."""
        return view_of(self._state_of(conversation))

    def receipts(self, conversation: str) -> dict[str, tuple[int, int]]:
        """Return the others' watermarks (delivered_seq, read_seq): the peer's in a 1-1, in a group those that were told of."""
        state = self._state_of(conversation)
        if state.peer_user_id:
            return {state.peer_user_id: (state.peer_delivered_seq, state.peer_read_seq)}
        watermarks = self._device.state.timelines.watermarks
        return {user: (delivered, read) for (where, user), (delivered, read) in watermarks.items() if where == conversation}

    async def history(
        self, conversation: str, *, before: int = 0, limit: int = HISTORY_PAGE, fetch: bool = True
    ) -> list[TimelineEvent]:
        """Return the last `limit` events below seq `before` (0: from the newest held), by seq.

        What is not held is fetched and kept, unless `fetch` is False. Raises CallError, UnknownConversationError.
        """
        state = self._state_of(conversation)
        before = before or state.held_seq + 1
        held = self._held(conversation, before, limit)
        while fetch and len(held) < limit and state.previous_visible(state.first_held_seq) is not None:
            request = api.ListEventsRequest(
                conversation_id=conversation,
                before_seq=state.first_held_seq,
                page_size=max(min(limit - len(held), self._device.options.page_events), 1),
            )
            page = await self._ask(lambda calls, request=request: calls.list_events(request))  # type: ignore[misc]
            self._device.keep(self._device.state.on_history(conversation, request.before_seq, page))
            held = self._held(conversation, before, limit)
            if not page.more or not page.events:
                break
        me, device = self.user_id, self.device_id
        return [TimelineEvent(event, event.actor_user_id == me and event.actor_device_id == device) for event in held]

    # What only the server knows.

    async def get_conversation(self, conversation: str) -> events_pb2.Conversation:
        """Ask for a conversation as the server sees it. Raises CallError."""
        request = api.GetConversationRequest(conversation_id=conversation)
        return (await self._ask(lambda calls: calls.get_conversation(request))).conversation

    async def list_members(self, conversation: str) -> list[events_pb2.Member]:
        """Ask for all members with roles and watermarks, by user id. Raises CallError."""
        members: list[events_pb2.Member] = []
        request = api.ListMembersRequest(conversation_id=conversation, page_size=500)
        while True:
            response = await self._ask(lambda calls: calls.list_members(request))
            members.extend(response.members)
            if not response.next_page_token:
                return members
            request.page_token = response.next_page_token

    async def get_presence(self, users: Iterable[str]) -> dict[str, bool]:
        """Ask which users are online, at most 100. Raises CallError."""
        request = api.GetPresenceRequest(user_ids=users)
        response = await self._ask(lambda calls: calls.get_presence(request))
        return {presence.user_id: presence.state == api.PRESENCE_STATE_ONLINE for presence in response.presences}

    def _submit(self, command: commands_pb2.Command, to_user: str | None, conversation: str | None) -> Ticket:
        return self._queue(commands.with_target(command, to_user, conversation))

    def _queue(self, command: commands_pb2.Command) -> Ticket:
        wall_ms = self._clock.wall_ms()
        command.request_id = commands.new_request_id(wall_ms, self._rng)
        return self._device.send(commands.check_size(command), wall_ms)

    def _held(self, conversation: str, before: int, limit: int) -> Sequence[events_pb2.Event]:
        state = self._state_of(conversation)
        return self._device.store.events(conversation, state.first_held_seq, min(before, state.held_seq + 1), limit)

    def _state_of(self, conversation: str) -> ConversationState:
        state = self._device.state.timelines.conversations.get(conversation)
        if state is None:
            raise UnknownConversationError(conversation)
        return state

    async def _ask(self, question: Callable[[Calls], Awaitable[_T]]) -> _T:
        """Ask, and again while nobody can be reached, for as long as one call may take: the link may be on its way elsewhere."""
        deadline = self._clock.monotonic() + self._device.options.rpc_timeout_seconds
        while True:
            try:
                return await question(self._calls())
            except CallError as error:
                left = deadline - self._clock.monotonic()
                if error.code is not grpc.StatusCode.UNAVAILABLE or left <= 0:
                    raise
                await asyncio.sleep(min(left, error.retry_delay_seconds or _ASK_AGAIN_SECONDS))

    def _calls(self) -> Calls:
        if self._device.ended is not None:
            raise self._device.ended
        if self._link.calls is None:
            raise CallError(grpc.StatusCode.UNAVAILABLE, "", "the client has no channel at the moment")
        return self._link.calls


@asynccontextmanager
async def open_client(
    address: str = "",
    *,
    token: Token,
    device_id: str,
    store: Store,
    channel: grpc.aio.Channel | None = None,
    open_channel: ChannelFactory | None = None,
    tls: bool | bytes = False,
    clock: Clock | None = None,
    rng: random.Random | None = None,
    options: ClientOptions | None = None,
    recorder: Recorder | None = None,
) -> AsyncIterator[Client]:
    """Open one device of the token's user, and keep it connected until the block ends.

    `address`: host:port; several, separated by commas, are tried in turn. They say where the device belongs.
    `token`: a JWT, or an async function that gets a fresh one (then an expired token is no end). `channel` or `open_channel`
    instead of an address: for tests, simulations, apps with channels of their own. `recorder`: see `recording`.
    Raises StoreInUseError, StoreMismatchError.
    Leaving sends what is queued, if there is a connection, for at most 2 s; the rest stays in the store.
    """
    clock = clock or SystemClock()
    rng = rng or random.Random()
    if open_channel is None:
        open_channel = always(channel) if channel is not None else channels_to(tls)
    try:
        device = Device(store, options or ClientOptions(), rng, recorder)
        kept = device.state.device_id
        if kept and device_id and device_id != kept:
            raise StoreMismatchError(f"the store belongs to device {kept}, not {device_id}")
        tokens = TokenSource(token, device.options.rpc_timeout_seconds)
        link = Link(
            device, address, device_id, open_channel=open_channel, can_move=channel is None, tokens=tokens, clock=clock, rng=rng
        )
        running = asyncio.create_task(link.run(), name="parley.link")
        try:
            yield Client(device, link, clock, rng)
        finally:
            link.close()
            await running
            device.close()
    finally:
        store.close()
