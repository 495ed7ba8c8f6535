"""Events, pages, and a device that takes them, for the tests of its timelines."""

from collections.abc import Sequence

from parley.api.v1 import events_pb2 as e
from parley.api.v1.commands_pb2 import SendMessage
from parley.api.v1.messaging_service_pb2 import ListEventsResponse
from parley_client.conversation_state import ConversationState
from parley_client.store import Change
from parley_client.store_memory import MemoryStore
from parley_client.timelines import Timelines
from parley_protocol.ids import direct_conversation_id

ME, PEER = "alice", "bob"
DIRECT = direct_conversation_id(ME, PEER)
GROUP = "g_" + "a" * 26


def message(seq: int, actor: str = PEER, conversation: str = DIRECT, count: int = 0) -> e.Event:
    return e.Event(
        conversation_id=conversation, seq=seq, actor_user_id=actor, message_count=count or seq, message=SendMessage(body=b"x")
    )


def added(seq: int, *users: str) -> e.Event:
    return e.Event(conversation_id=GROUP, seq=seq, actor_user_id="carol", members_added=e.MembersAdded(user_ids=users))


def removed(seq: int, user: str) -> e.Event:
    return e.Event(conversation_id=GROUP, seq=seq, actor_user_id="carol", member_removed=e.MemberRemoved(user_id=user))


def created(*users: str, actor: str = "carol") -> e.Event:
    return e.Event(
        conversation_id=GROUP, seq=1, actor_user_id=actor, group_created=e.GroupCreated(title="t", member_user_ids=users)
    )


def page(events: Sequence[e.Event], intervals: Sequence[tuple[int, int]] = ((1, 0),), more: bool = False) -> ListEventsResponse:
    head = max((event.seq for event in events), default=0)
    return ListEventsResponse(
        events=events,
        visible_intervals=[e.Interval(first_seq=first, last_seq=last) for first, last in intervals],
        first_available_seq=1,
        head_seq=head,
        more=more,
    )


class Device:
    """Timelines with a store behind them, as a client has them."""

    def __init__(self) -> None:
        self.store = MemoryStore()
        self.timelines = Timelines(counting=self.store)
        self.timelines.me = ME

    def live(self, *events: e.Event) -> list[int]:
        """Take events; return the seqs that were appended."""
        change = Change()
        self.timelines.place_live(events, change)
        return self.keep(change)

    def keep(self, change: Change) -> list[int]:
        self.store.commit(change)
        return [event.seq for event in change.appended]

    def page(self, conversation: str, content: ListEventsResponse) -> list[int]:
        change = Change()
        self.timelines.take_page(conversation, content, change)
        return self.keep(change)

    def row(self, row: e.Conversation, *, new_device: bool = False) -> bool:
        change = Change()
        ahead = self.timelines.take_row(row, new_device=new_device, change=change)
        self.keep(change)
        return ahead

    def inbox(self, **row: int) -> bool:
        """Take an InboxChange; tell whether it changed anything."""
        change = Change()
        changed = self.timelines.take_inbox_change(e.InboxChange(conversation_id=DIRECT, **row), change)
        self.keep(change)
        return changed

    def state(self, conversation: str = DIRECT) -> ConversationState:
        return self.timelines.conversations[conversation]

    def read(self, seq: int, conversation: str = DIRECT) -> None:
        change = Change()
        self.timelines.raise_own(conversation, seq, seq, change)
        self.keep(change)

    def unread(self, conversation: str = DIRECT) -> int:
        return self.timelines.conversations[conversation].unread_count
