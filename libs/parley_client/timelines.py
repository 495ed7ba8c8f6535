"""All conversations of a device: where an incoming event goes, what is missing, what a watermark changes. Pure but for the store's
answers to two questions about events that are held already.

Every transition notes what it changed in the step's Change; the caller commits that before it does anything that others can see.
"""

from collections.abc import Iterable
from typing import Final, Protocol

from parley.api.v1 import events_pb2, messaging_service_pb2
from parley_client.conversation_state import ConversationState
from parley_client.errors import ProtocolError
from parley_client.store import Change, Watermarks

AHEAD_MAX: Final = 256  # events kept per conversation while those before them are fetched: more than one page


class Counting(Protocol):
    """What is asked of the store."""

    def count_of_others(self, conversation_id: str, user_id: str, after_seq: int) -> int:
        """Count the messages above a seq that others than this user sent."""


class Timelines:
    """The conversations by id, those that are behind in the order of noticing, and the user whom they belong to."""

    def __init__(
        self,
        conversations: Iterable[ConversationState] = (),
        watermarks: dict[tuple[str, str], Watermarks] | None = None,
        *,
        counting: Counting,
    ) -> None:
        self.me = ""
        self.conversations = {state.conversation_id: state for state in conversations}
        self.watermarks = dict(watermarks or {})
        self.behind: dict[str, None] = {}
        self._ahead: dict[str, dict[int, events_pb2.Event]] = {}
        self._counting = counting

    def find_behind(self) -> None:
        """Note every conversation of which something is missing, as after a restart."""
        self.behind.update((state.conversation_id, None) for state in self.conversations.values() if state.is_behind)

    def place_live(self, events: Iterable[events_pb2.Event], change: Change) -> None:
        """Take events as they come, sorted by (conversation, seq): append what is next, drop what is held, keep what is ahead."""
        for event in events:
            state = self._state(event.conversation_id)
            seq = event.seq
            if not state.is_placed and seq == 1:
                state.begin_at(1)
            if seq == state.held_seq + 1:
                self._append(state, event, change)
                self._drain(state, change)
            elif seq > state.held_seq:
                self._keep_ahead(state, event)
                self.announce(event.conversation_id, seq, change)

    def announce(self, conversation_id: str, head_seq: int, change: Change) -> None:
        """Note that a seq exists; if it is not held, the conversation is behind."""
        state = self._state(conversation_id)
        if head_seq > state.known_head_seq:
            state.known_head_seq = head_seq
            change.conversations[conversation_id] = state
        self._note_behind(state)

    def meet(self, conversation_id: str, peer: str) -> None:
        """Note who the other user of a 1-1 conversation is, where that is not known; kept with what follows."""
        state = self._state(conversation_id)
        if state.kind == 0:
            state.meet(peer, self.me)

    def take_row(self, row: events_pb2.Conversation, *, new_device: bool, change: Change) -> bool:
        """Take a row of Sync or GetConversation with its last events; tell whether our watermarks exceed the server's.

        A new device begins with the last events that it is given; one that missed a conversation's beginning fetches all of it.
        """
        state = self._state(row.conversation_id)
        ahead = state.take_row(row)
        self._take_count(state, row, change)
        if not state.is_placed and row.head_seq > 0:
            if not new_device:
                state.begin_at(state.next_visible(0) or row.head_seq)
            elif row.last_events:
                state.begin_at(row.last_events[0].seq)
        change.conversations[row.conversation_id] = state
        for event in row.last_events:
            self._keep_ahead(state, event)
        self._drain(state, change)
        return ahead

    def take_page(self, conversation_id: str, page: messaging_service_pb2.ListEventsResponse, change: Change) -> None:
        """Append a page that continues the held stretch, or begins it. Raises ProtocolError on a hole inside what is visible."""
        state = self._state(conversation_id)
        if page.head_seq >= state.held_seq:  # else older than what came live meanwhile
            state.take_intervals(page.visible_intervals, page.first_available_seq)
        events = [event for event in page.events if event.seq > state.held_seq]
        held_seq = state.held_seq if state.is_placed or not events else events[0].seq - 1
        for event in events:
            if event.seq != state.next_visible(held_seq):
                raise ProtocolError(f"{conversation_id}: after {held_seq} the server's page goes on at {event.seq}")
            held_seq = event.seq
        change.conversations[conversation_id] = state
        if not state.is_placed and events:
            state.begin_at(events[0].seq)
        for event in events:
            self._append(state, event, change)
        self._drain(state, change)

    def end_fetch(self, conversation_id: str, change: Change) -> None:
        """Settle for what is held: nothing of what was announced beyond it can be had. Sync tells again if that was wrong."""
        state = self._state(conversation_id)
        state.known_head_seq = state.held_seq
        self._ahead.pop(conversation_id, None)
        self.behind.pop(conversation_id, None)
        change.conversations[conversation_id] = state

    def take_history(
        self, conversation_id: str, before_seq: int, page: messaging_service_pb2.ListEventsResponse, change: Change
    ) -> None:
        """Put the page below before_seq in front of the held stretch, if it still begins there. Raises ProtocolError on a hole."""
        state = self._state(conversation_id)
        if state.first_held_seq != before_seq:
            return  # somebody else fetched the same, or old events were let go meanwhile
        if page.head_seq >= state.held_seq:
            state.take_intervals(page.visible_intervals, page.first_available_seq)
        first = before_seq
        for event in reversed(page.events):
            if event.seq != state.previous_visible(first):
                raise ProtocolError(f"{conversation_id}: before {first} the server's page goes on at {event.seq}")
            first = event.seq
        state.first_held_seq = first
        change.prepended.extend(page.events)
        change.conversations[conversation_id] = state

    def raise_own(self, conversation_id: str, delivered_seq: int, read_seq: int, change: Change) -> bool:
        """Raise the user's own watermarks; tell whether one rose."""
        state = self._state(conversation_id)
        read_before = state.read_seq
        if not state.raise_own(delivered_seq, read_seq):
            return False
        if state.read_seq > read_before:
            self._recount(state, change)
        change.conversations[conversation_id] = state
        return True

    def take_receipt(self, receipt: events_pb2.Receipt, change: Change) -> bool:
        """Take somebody's watermarks; False: not above what is known, dropped."""
        conversation, user = receipt.conversation_id, receipt.user_id
        if user == self.me:
            return self.raise_own(conversation, receipt.delivered_seq, receipt.read_seq, change)
        state = self._state(conversation)
        known = self.watermarks.get((conversation, user), Watermarks(0, 0))
        is_news = receipt.delivered_seq > known.delivered_seq or receipt.read_seq > known.read_seq
        raised = Watermarks(max(receipt.delivered_seq, known.delivered_seq), max(receipt.read_seq, known.read_seq))
        if state.peer_user_id == user:
            # `known` is what came before it was clear that this is a 1-1.
            if not state.raise_peer(raised.delivered_seq, raised.read_seq):
                return False
            change.conversations[conversation] = state
            return is_news
        if not is_news:
            return False
        self.watermarks[conversation, user] = change.watermarks[conversation, user] = raised
        return True

    def take_inbox_change(self, inbox: events_pb2.InboxChange, change: Change) -> bool:
        """Take the absolute view of the user's own row; tell whether anything changed."""
        conversation = inbox.conversation_id
        state = self._state(conversation)
        changed = state.raise_own(inbox.delivered_seq, inbox.read_seq)
        changed = self._take_count(state, inbox, change) or changed
        if changed:
            change.conversations[conversation] = state
        self.announce(conversation, inbox.head_seq, change)
        return changed

    def trim(self, conversation_id: str, keep: int, change: Change) -> None:
        """Let go of old events: history fetches them again."""
        state = self.conversations[conversation_id]
        if state.held_seq - state.first_held_seq >= 2 * keep:  # twice: to cut once in a while, not at each event
            state.first_held_seq = state.held_seq - keep + 1
            change.trimmed.append((conversation_id, state.first_held_seq))
            change.conversations[conversation_id] = state

    def _state(self, conversation_id: str) -> ConversationState:
        state = self.conversations.get(conversation_id)
        if state is None:
            state = self.conversations[conversation_id] = ConversationState(conversation_id)
        return state

    def _append(self, state: ConversationState, event: events_pb2.Event, change: Change) -> None:
        read_before = state.read_seq
        state.place(event, self.me)
        change.appended.append(event)
        change.conversations[state.conversation_id] = state
        if state.read_seq != read_before:
            self._recount(state, change)

    def _keep_ahead(self, state: ConversationState, event: events_pb2.Event) -> None:
        ahead = self._ahead.setdefault(state.conversation_id, {})
        if len(ahead) < AHEAD_MAX:
            ahead[event.seq] = event

    def _drain(self, state: ConversationState, change: Change) -> None:
        """Append what was kept and comes next now, and let go of what is held meanwhile."""
        ahead = self._ahead.pop(state.conversation_id, {})
        while state.is_placed and (following := state.next_visible(state.held_seq)) in ahead:
            self._append(state, ahead.pop(following), change)
        if later := {seq: event for seq, event in ahead.items() if seq > state.held_seq}:
            self._ahead[state.conversation_id] = later
        self._note_behind(state)

    def _note_behind(self, state: ConversationState) -> None:
        if state.is_behind:
            self.behind[state.conversation_id] = None
        else:
            self.behind.pop(state.conversation_id, None)

    def _take_count(self, state: ConversationState, view: events_pb2.Conversation | events_pb2.InboxChange, change: Change) -> bool:
        """Take the server's count of what is unread, after its watermarks; tell whether it changed anything.

        Events that came after it may be held already, live ones overtake what was asked for: they are counted on top. Without its
        count, the one that is known would stay as it was below the older watermark.
        """
        head_seq, unread_count = view.head_seq, view.unread_count
        if state.first_held_seq - 1 <= head_seq < state.held_seq:
            unread_count += self._others_above(state, head_seq, change)
            head_seq = state.held_seq
        return state.set_unread(head_seq, view.read_seq, unread_count)

    def _recount(self, state: ConversationState, change: Change) -> None:
        if state.read_seq >= state.counted_seq:
            state.unread_count = 0
        elif state.counts_locally:
            state.unread_count = self._others_above(state, state.read_seq, change)
            state.counted_seq = state.held_seq  # what was announced beyond is counted when it comes

    def _others_above(self, state: ConversationState, seq: int, change: Change) -> int:
        """Count the messages of others that are held above a seq, those of this step among them."""
        stored = self._counting.count_of_others(state.conversation_id, self.me, seq)
        return stored + sum(
            1
            for event in change.appended
            if event.conversation_id == state.conversation_id
            and event.seq > seq
            and event.actor_user_id != self.me
            and event.HasField("message")
        )
