"""Questions about the truth, authorised here: whoever asks sees his own stays and nothing else.

Heads come from the conversations' states, which are written last: what a head announces is there. Events come from memory where
it has them, else from the tables.
"""

from collections.abc import Iterable, Sequence

from chassis.errors import InvalidArgument, NotFound
from chassis.timeline import Cell, Point, Timeline
from parley.api.v1.events_pb2 import Conversation, Interval
from parley.api.v1.events_pb2 import Member as ApiMember
from parley.api.v1.messaging_service_pb2 import (
    GetConversationRequest,
    GetConversationResponse,
    ListEventsRequest,
    ListEventsResponse,
    ListMembersRequest,
    ListMembersResponse,
)
from parley.store.v1.store_service_pb2 import ListRecipientsResponse, Recipient
from parley_protocol.frames import field
from parley_protocol.ids import is_conversation_id
from parley_protocol.limits import PAGE_BYTES, PAGE_EVENTS
from services.store import rows
from services.store.actions import require_member
from services.store.page_tokens import decode_page_token, encode_page_token
from services.store.recent import RecentEvents
from services.store.state import DIRECT, ConversationState, Member

EVENTS_PAGE_DEFAULT = 50
MEMBERS_PAGE_MAX = 500
MEMBERS_PAGE_DEFAULT = 100
_EVENTS_TAG = b"\x0a"  # ListEventsResponse.events
_PAGES_READ = 16  # conversations at once: a few statements for all of them, and at most 13 MB of events
_EVENTS_READ = 64  # at once: nearly every page, and no more than 16 MB where each event is as large as it may be


def page_size_of(asked: int, default: int, most: int) -> int:
    """Return the page size to use. Raises InvalidArgument on a negative one; a too large one is cut."""
    if asked < 0:
        raise InvalidArgument("FIELD_INVALID", "page_size is negative")
    return min(asked or default, most)


def conversation_of(state: ConversationState, user: str) -> Conversation:
    """Return a conversation as one of its members sees it, or as who left saw it last; of a 1-1 the state must hold both."""
    member = state.members[user]
    head_seq, message_count, version, last_time_ms = state.visible_head(member)
    view = Conversation(
        conversation_id=state.conversation_id,
        kind=state.kind,
        head_seq=head_seq,
        message_count=message_count,
        delivered_seq=member.delivered_seq,
        read_seq=member.read_seq,
        unread_count=state.unread_count(member),
        version=version,
        visible_intervals=intervals_of(member),
        first_available_seq=member.stays[0][0],
        title=state.title if member.active else member.left_title,
        member_count=state.member_count if member.active else member.left_member_count,
        role=member.role,
    )
    view.last_time.FromMilliseconds(last_time_ms)
    if state.kind == DIRECT:
        peer = rows.peer_of(state.members, user)
        view.peer_user_id = peer
        view.peer_delivered_seq = state.members[peer].delivered_seq
        view.peer_read_seq = state.members[peer].read_seq
    return view


def intervals_of(member: Member) -> list[Interval]:
    return [Interval(first_seq=first, last_seq=last) for first, last in member.stays]


def seqs_after(stays: Sequence[tuple[int, int]], head_seq: int, after_seq: int, limit: int) -> list[int]:
    """Return the first visible seqs above after_seq, ascending."""
    found: list[int] = []
    for first, last in stays:
        start = max(first, after_seq + 1)
        found.extend(range(start, min(last or head_seq, start + limit - len(found) - 1) + 1))
    return found


def seqs_before(stays: Sequence[tuple[int, int]], before_seq: int, limit: int) -> list[int]:
    """Return the last visible seqs below before_seq, which is no higher than the next one, ascending."""
    found: list[int] = []
    for first, last in reversed(stays):
        end = min(last or before_seq, before_seq - 1)
        found.extend(range(end, max(first, end - (limit - len(found)) + 1) - 1, -1))
    found.reverse()
    return found


class Reader:
    """Answers from the tables, with the newest events from memory."""

    def __init__(self, timeline: Timeline, recent: RecentEvents, bucket_bits: int) -> None:
        self._timeline = timeline
        self._recent = recent
        self._bucket_bits = bucket_bits

    async def list_events(self, user: str, request: ListEventsRequest) -> bytes:
        """Return a page of the caller's view of one timeline, as an encoded ListEventsResponse: stored events are not decoded."""
        limit = page_size_of(request.page_size, EVENTS_PAGE_DEFAULT, PAGE_EVENTS)
        mark = request.before_seq or request.after_seq
        if mark < 0:
            raise InvalidArgument("FIELD_INVALID", "after_seq and before_seq are 0 or more")
        state, member = await self._view(user, request.conversation_id)
        head_seq = state.visible_head(member)[0]
        backwards = request.WhichOneof("from") == "before_seq"
        if backwards:
            before_seq = request.before_seq if 0 < request.before_seq <= head_seq else head_seq + 1
            seqs = seqs_before(member.stays, before_seq, limit + 1)
            more, seqs = len(seqs) > limit, seqs[-limit:]
        else:
            seqs = seqs_after(member.stays, state.head_seq, request.after_seq, limit + 1)
            more, seqs = len(seqs) > limit, seqs[:limit]
        page = await self.page(request.conversation_id, seqs, PAGE_BYTES, backwards=backwards)
        more |= len(page) < len(seqs)
        rest = ListEventsResponse(
            visible_intervals=intervals_of(member), first_available_seq=member.stays[0][0], head_seq=head_seq, more=more
        )
        return b"".join([field(_EVENTS_TAG, event) for event in page]) + rest.SerializeToString()

    async def get_conversation(self, user: str, request: GetConversationRequest) -> GetConversationResponse:
        """Return one conversation as the caller sees it."""
        state, _ = await self._view(user, request.conversation_id)
        if state.kind == DIRECT:
            state = await self._state(request.conversation_id)
        return GetConversationResponse(conversation=conversation_of(state, user))

    async def list_members(self, user: str, request: ListMembersRequest) -> ListMembersResponse:
        """Return a page of the present members, for present members."""
        limit = page_size_of(request.page_size, MEMBERS_PAGE_DEFAULT, MEMBERS_PAGE_MAX)
        question = f"members {request.conversation_id}"
        after = decode_page_token(question, request.page_token, str) if request.page_token else ""
        _check_id(request.conversation_id)
        state = await self._state(request.conversation_id)
        require_member(state, user)
        names = sorted(name for name in state.present if name > after)
        response = ListMembersResponse(members=[_api_member(name, state.members[name]) for name in names[:limit]])
        if len(names) > limit:
            response.next_page_token = encode_page_token(question, names[limit - 1])
        return response

    async def list_recipients(self, conversation_id: str) -> ListRecipientsResponse:
        """Return everybody who is or was a member, for routers."""
        state = await self._state(conversation_id)
        response = ListRecipientsResponse(head_seq=state.head_seq)
        for user, member in state.members.items():
            recipient: Recipient = response.recipients.add(user_id=user)
            for stay in member.stays:
                recipient.stays.extend(stay)
        return response

    async def states(self, wanted: Iterable[tuple[str, Sequence[str]]]) -> dict[str, ConversationState]:
        """Read several conversations' heads and named members in one grouped read; those that are not there yet are left out."""
        points = [
            Point(rows.STATE, conversation_id, key)
            for conversation_id, users in wanted
            for key in (rows.HEAD_KEY, *(user.encode() for user in users))
        ]
        cells: dict[str, list[Cell]] = {}
        if points:
            for point, value in (await self._timeline.read_points(points)).items():
                cells.setdefault(point.partition, []).append(Cell(point.key, value))
        return {name: rows.state_of(name, found) for name, found in cells.items()}

    async def page(self, conversation_id: str, seqs: Sequence[int], max_bytes: int, *, backwards: bool) -> list[bytes]:
        """Return the first (backwards: the last) of the events that have room in `max_bytes`, one at least, ascending.

        It ends at the first that a lagging replica does not show yet: a page may be short, never have a hole.
        """
        order = seqs[::-1] if backwards else seqs
        page: list[bytes] = []
        for start in range(0, len(order), _EVENTS_READ):
            part = order[start : start + _EVENTS_READ]
            events = await self._events(conversation_id, sorted(part))
            for seq in part:
                event = events.get(seq)
                if event is None or (page and len(event) > max_bytes):
                    return page[::-1] if backwards else page
                page.append(event)
                max_bytes -= len(event)
        return page[::-1] if backwards else page

    async def newest(self, wanted: Sequence[tuple[str, Sequence[int]]], max_bytes: int) -> list[list[bytes]]:
        """Return for each conversation the newest of its events, ascending: one at least while there is room for all of them.

        Whoever asks for many conversations would wait for each if he asked for one page after the other.
        """
        pages: list[list[bytes]] = []
        for start in range(0, len(wanted), _PAGES_READ):
            if max_bytes <= 0:
                break
            part = wanted[start : start + _PAGES_READ]
            events = await self._events_of_several(part)
            for conversation_id, seqs in part:
                page: list[bytes] = []
                for seq in reversed(seqs if max_bytes > 0 else ()):
                    event = events.get((conversation_id, seq))
                    if event is None or (page and len(event) > max_bytes):
                        break
                    page.append(event)
                    max_bytes -= len(event)
                pages.append(page[::-1])
        return pages + [[]] * (len(wanted) - len(pages))

    async def _events_of_several(self, wanted: Sequence[tuple[str, Sequence[int]]]) -> dict[tuple[str, int], bytes]:
        found: dict[tuple[str, int], bytes] = {}
        missing: dict[Point, tuple[str, int]] = {}
        for conversation_id, seqs in wanted:
            for seq in seqs:
                event = self._recent.get(conversation_id, seq)
                if event is None:
                    missing[rows.timeline_point(conversation_id, seq, self._bucket_bits)] = (conversation_id, seq)
                else:
                    found[conversation_id, seq] = event
        if missing:
            found |= {missing[point]: event for point, event in (await self._timeline.read_points(list(missing))).items()}
        return found

    async def _events(self, conversation_id: str, seqs: Sequence[int]) -> dict[int, bytes]:
        """Return stored events; all seqs lie at or below a head that a state announced."""
        found: dict[int, bytes] = {}
        missing: list[int] = []
        for seq in seqs:
            event = self._recent.get(conversation_id, seq)
            if event is None:
                missing.append(seq)
            else:
                found[seq] = event
        for first, last in _bucket_runs(missing, self._bucket_bits):
            partition = rows.timeline_partition(conversation_id, first, self._bucket_bits)
            cells = await self._timeline.read_range(
                rows.TIMELINE, partition, rows.seq_key(first), rows.seq_key(last), last - first + 1
            )
            for key, value in cells:
                found[int.from_bytes(key)] = value
        return found

    async def _view(self, user: str, conversation_id: str) -> tuple[ConversationState, Member]:
        """Return the head and the caller's own row, or refuse."""
        _check_id(conversation_id)
        state = (await self.states([(conversation_id, (user,))])).get(conversation_id)
        if state is None or user not in state.members:
            raise NotFound("CONVERSATION_NOT_FOUND", "there is no such conversation, or you never were a member of it")
        return state, state.members[user]

    async def _state(self, conversation_id: str) -> ConversationState:
        partitions = await self._timeline.read_partitions(rows.STATE, [conversation_id])
        return rows.state_of(conversation_id, partitions.get(conversation_id, ()))


def _check_id(conversation_id: str) -> None:
    if not is_conversation_id(conversation_id):
        raise InvalidArgument("FIELD_INVALID", "conversation_id does not have the shape of one")


def _bucket_runs(seqs: Sequence[int], bucket_bits: int) -> list[tuple[int, int]]:
    """Cut ascending seqs into (first, last) runs without gaps that each lie in one bucket."""
    runs: list[tuple[int, int]] = []
    for seq in seqs:
        if runs and runs[-1][1] == seq - 1 and seq % (1 << bucket_bits):
            runs[-1] = (runs[-1][0], seq)
        else:
            runs.append((seq, seq))
    return runs


def _api_member(name: str, member: Member) -> ApiMember:
    return ApiMember(
        user_id=name, role=member.role, first_seq=member.stays[-1][0], delivered_seq=member.delivered_seq, read_seq=member.read_seq
    )
