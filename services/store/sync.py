"""Sync: what changed for a user while a device was away, by digests. No clock takes part, so none can be wrong."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from chassis.errors import InvalidArgument
from chassis.timeline import Cell, Timeline
from parley.api.v1.messaging_service_pb2 import SyncRequest, SyncResponse
from parley.store.v1.rows_pb2 import InboxRow
from parley_protocol.digests import BUCKET_COUNT, Held, bucket_of, digests_of, whole_digest
from parley_protocol.ids import is_conversation_id
from parley_protocol.limits import PAGE_BYTES, PAGE_CONVERSATIONS
from services.store import rows
from services.store.page_tokens import decode_page_token, encode_page_token
from services.store.reads import Reader, conversation_of, page_size_of, seqs_before
from services.store.state import ConversationState

PAGE_DEFAULT = 50
LAST_EVENTS_MAX = 50
DIGESTS_MAX = 100
_ALL_BUCKETS = (1 << BUCKET_COUNT) - 1
_ROWS_READ = 1_000  # of an inbox at once, where few buckets differ: some 100 KB
_BEHIND_IDS = b"\x7f"  # ids are ASCII


class _Entry(NamedTuple):
    """One conversation of the user's list."""

    last_time_ms: int
    held: Held
    users: tuple[str, ...]


class _Listed(NamedTuple):
    """One conversation of a page."""

    conversation_id: str
    users: tuple[str, ...]  # whose rows tell of it: the user's own, and of a 1-1 the peer's


class _Place(NamedTuple):
    """Where the pages after the first go on.

    They go by id: a page reads what it tells and not the whole inbox again, and a conversation in which something happens meanwhile
    can't move to where the device has been, for its row may be all that tells of somebody's watermarks.
    """

    after: str  # the last conversation that was looked at
    buckets: int  # those that differed when the first page was asked for, a bit each
    told: frozenset[str]  # what comes after that and was on the first page, the latest conversations of a new device

    def __str__(self) -> str:
        return " ".join((self.after, f"{self.buckets:x}", *sorted(self.told)))


def _place_of(cursor: str) -> _Place:
    after, buckets, *told = cursor.split(" ")
    place = _Place(after, int(buckets, 16), frozenset(told))
    if not 0 < place.buckets <= _ALL_BUCKETS or not all(map(is_conversation_id, told + [after] * bool(after))):
        raise ValueError(f"no place: {cursor}")
    return place


class Syncer:
    """Compares a device's digests with the user's inbox."""

    def __init__(self, timeline: Timeline, reader: Reader) -> None:
        self._timeline = timeline
        self._reader = reader

    async def sync(self, user: str, request: SyncRequest) -> SyncResponse:
        """Return a page of the conversations in buckets that differ, clipped to their states."""
        digests = list(request.digests)
        if len(digests) not in (0, BUCKET_COUNT):
            raise InvalidArgument("FIELD_INVALID", f"digests are none or {BUCKET_COUNT}")
        if not 0 <= request.last_events_count <= LAST_EVENTS_MAX:
            raise InvalidArgument("FIELD_INVALID", f"last_events_count is 0 to {LAST_EVENTS_MAX}")
        limit = page_size_of(request.page_size, PAGE_DEFAULT, PAGE_CONVERSATIONS)
        question = f"sync {bool(digests)} {user}"
        if request.page_token:
            place = decode_page_token(question, request.page_token, _place_of)
            page, further = await self._later_page(user, place, limit)
        else:
            page, further = await self._first_page(user, digests, limit)
        response = SyncResponse()
        states = await self._reader.states(page)
        await self._fill(response, user, page, states, request.last_events_count)
        if further is not None:
            response.next_page_token = encode_page_token(question, str(further))
        return response

    async def _first_page(self, user: str, digests: list[int], limit: int) -> tuple[list[_Listed], _Place | None]:
        """Look at the whole inbox: for what differs, or for what is the latest."""
        entries, buckets = await self._entries(user), _ALL_BUCKETS
        if digests:
            ours = digests_of(entry.held for entry in entries)
            buckets = sum(1 << bucket for bucket in range(BUCKET_COUNT) if ours[bucket] != digests[bucket])
            entries = [entry for entry in entries if buckets >> bucket_of(entry.held.conversation_id) & 1]
        else:
            entries.sort(key=lambda entry: (-entry.last_time_ms, entry.held.conversation_id))
        page = [_Listed(entry.held.conversation_id, entry.users) for entry in entries[:limit]]
        if len(entries) <= limit:
            return page, None
        if digests:
            return page, _Place(page[-1].conversation_id, buckets, frozenset())
        return page, _Place("", buckets, frozenset(listed.conversation_id for listed in page))

    async def _later_page(self, user: str, place: _Place, limit: int) -> tuple[list[_Listed], _Place | None]:
        """Read on in the inbox until the page is full, and one more: then there is another page."""
        page: list[_Listed] = []
        after, told = place.after, place.told
        more = True
        while more and len(page) <= limit:
            count = min((limit + 1 - len(page)) * BUCKET_COUNT // place.buckets.bit_count(), _ROWS_READ)
            cells = await self._timeline.read_range(rows.INBOX, user, after.encode() + b"\0", _BEHIND_IDS, count)
            for key, value in cells:
                after = key.decode()
                if place.buckets >> bucket_of(after) & 1 and after not in told:
                    page.append(_Listed(after, _users_of(user, InboxRow.FromString(value))))
            more = len(cells) == count
        if len(page) <= limit:
            return page, None
        page = page[:limit]
        after = page[-1].conversation_id
        return page, _Place(after, place.buckets, frozenset(name for name in told if name > after))

    async def whole_digests(self, users: Sequence[str]) -> list[int]:
        """Return for each user all that his devices should hold, in one number."""
        if len(users) > DIGESTS_MAX:
            raise InvalidArgument("FIELD_INVALID", f"at most {DIGESTS_MAX} user_ids at once")
        cells = await self._timeline.read_partitions(rows.INBOX, sorted({*users}))
        whole = {}
        for user, found in cells.items():
            entries = await self._entries_of(user, found)
            whole[user] = whole_digest(digests_of(entry.held for entry in entries))
        return [whole.get(user, 0) for user in users]

    async def _entries(self, user: str) -> list[_Entry]:
        """Return the user's list as the digests see it, by id."""
        return await self._entries_of(user, (await self._timeline.read_partitions(rows.INBOX, [user])).get(user, ()))

    async def _entries_of(self, user: str, cells: Iterable[Cell]) -> list[_Entry]:
        inbox = {cell.key.decode(): InboxRow.FromString(cell.value) for cell in cells}
        large = await self._reader.states((name, (user,)) for name, row in inbox.items() if row.large)
        entries = []
        for name, row in inbox.items():
            if not row.large:
                numbers = (row.delivered_seq, row.read_seq, row.peer_delivered_seq, row.peer_read_seq, row.version)
                entries.append(_Entry(row.last_time_ms, Held(name, row.head_seq, *numbers), _users_of(user, row)))
            elif name in large and user in large[name].members:
                entries.append(_large_entry(large[name], user))
        return entries

    async def _fill(
        self, response: SyncResponse, user: str, page: Sequence[_Listed], states: Mapping[str, ConversationState], events_count: int
    ) -> None:
        wanted: list[tuple[str, list[int]]] = []
        for listed in page:
            state = states.get(listed.conversation_id)
            if state is None or any(name not in state.members for name in listed.users):
                continue  # its first record is being applied: the device will hear of it
            view = response.conversations.add()
            view.CopyFrom(conversation_of(state, user))
            stays = state.members[user].stays
            wanted.append((state.conversation_id, seqs_before(stays, view.head_seq + 1, events_count)))
        newest = await self._reader.newest(wanted, PAGE_BYTES)  # what has no room is fetched like any other gap
        for view, events in zip(response.conversations, newest, strict=True):
            for event in events:
                view.last_events.add().MergeFromString(event)


def _large_entry(state: ConversationState, user: str) -> _Entry:
    member = state.members[user]
    head_seq, _, version, last_time_ms = state.visible_head(member)
    held = Held(state.conversation_id, head_seq, member.delivered_seq, member.read_seq, 0, 0, version)
    return _Entry(last_time_ms, held, (user,))


def _users_of(user: str, row: InboxRow) -> tuple[str, ...]:
    return (user, row.peer_user_id) if row.peer_user_id else (user,)
