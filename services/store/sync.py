"""Sync: what changed for a user while a device was away, by digests. No clock takes part, so none can be wrong."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from chassis.errors import InvalidArgument
from chassis.timeline import Cell, Timeline
from parley.api.v1.messaging_service_pb2 import SyncRequest, SyncResponse
from parley.store.v1.rows_pb2 import InboxRow
from parley_protocol.digests import BUCKET_COUNT, Held, bucket_of, digests_of, whole_digest
from parley_protocol.limits import PAGE_BYTES, PAGE_CONVERSATIONS
from services.store import rows
from services.store.page_tokens import decode_page_token, encode_page_token
from services.store.reads import Reader, conversation_of, page_size_of, seqs_before
from services.store.state import ConversationState

PAGE_DEFAULT = 50
LAST_EVENTS_MAX = 50
DIGESTS_MAX = 100


class _Entry(NamedTuple):
    """One conversation of the user's list."""

    last_time_ms: int
    held: Held
    peer: str

    def place(self, *, by_time: bool) -> tuple[int, str]:
        """Return what pages are ordered by.

        A new device gets the latest first. Of what differs, pages go by id alone: a conversation in which something happens between
        two pages must not move to where the device has been, for its row may be all that tells of somebody's watermarks.
        """
        return -self.last_time_ms if by_time else 0, self.held.conversation_id


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
        by_time = not digests
        question = f"sync {'all' if by_time else 'changes'} {user}"
        after = decode_page_token(question, request.page_token, _place_of) if request.page_token else None

        entries = await self._entries(user)
        if digests:
            ours = digests_of(entry.held for entry in entries)
            differing = {bucket for bucket in range(BUCKET_COUNT) if ours[bucket] != digests[bucket]}
            entries = [entry for entry in entries if bucket_of(entry.held.conversation_id) in differing]
        entries.sort(key=lambda entry: entry.place(by_time=by_time))
        if after is not None:
            entries = [entry for entry in entries if entry.place(by_time=by_time) > after]
        page = entries[:limit]
        response = SyncResponse()
        states = await self._reader.states(
            (entry.held.conversation_id, (user, entry.peer) if entry.peer else (user,)) for entry in page
        )
        await self._fill(response, user, page, states, request.last_events_count)
        if len(entries) > limit:
            number, conversation_id = page[-1].place(by_time=by_time)
            response.next_page_token = encode_page_token(question, f"{number} {conversation_id}")
        return response

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
        """Return the user's list as the digests see it."""
        return await self._entries_of(user, (await self._timeline.read_partitions(rows.INBOX, [user])).get(user, ()))

    async def _entries_of(self, user: str, cells: Iterable[Cell]) -> list[_Entry]:
        inbox = {cell.key.decode(): InboxRow.FromString(cell.value) for cell in cells}
        large = await self._reader.states((name, (user,)) for name, row in inbox.items() if row.large and not row.left)
        entries = []
        for name, row in inbox.items():
            if not row.large or row.left:
                numbers = (row.delivered_seq, row.read_seq, row.peer_delivered_seq, row.peer_read_seq, row.version)
                entries.append(_Entry(row.last_time_ms, Held(name, row.head_seq, *numbers), row.peer_user_id))
            elif name in large and user in large[name].members:
                entries.append(_large_entry(large[name], user))
        return entries

    async def _fill(
        self, response: SyncResponse, user: str, page: list[_Entry], states: Mapping[str, ConversationState], last_events_count: int
    ) -> None:
        wanted: list[tuple[str, list[int]]] = []
        for entry in page:
            state = states.get(entry.held.conversation_id)
            members = (user, entry.peer) if entry.peer else (user,)
            if state is None or any(name not in state.members for name in members):
                continue  # its first record is being applied: the device will hear of it
            view = response.conversations.add()
            view.CopyFrom(conversation_of(state, user))
            stays = state.members[user].stays
            wanted.append((state.conversation_id, seqs_before(stays, state.head_seq, view.head_seq + 1, last_events_count)))
        if last_events_count:  # what has no room is fetched like any other gap
            for view, events in zip(response.conversations, await self._reader.newest(wanted, PAGE_BYTES), strict=True):
                for event in events:
                    view.last_events.add().MergeFromString(event)


def _large_entry(state: ConversationState, user: str) -> _Entry:
    member = state.members[user]
    head_seq, _, version, last_time_ms = state.visible_head(member)
    held = Held(state.conversation_id, head_seq, member.delivered_seq, member.read_seq, 0, 0, version)
    return _Entry(last_time_ms, held, "")


def _place_of(cursor: str) -> tuple[int, str]:
    number, conversation_id = cursor.split(" ")
    return int(number), conversation_id
