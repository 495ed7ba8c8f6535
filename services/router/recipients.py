"""Who gets an event of a large group: a cache of stays, kept right by the membership changes that pass by.

Pure. Recipients of seq s are those with first_seq <= s <= last_seq, never "the present ones". A change is taken in only if its seq
is newer than what the cache speaks of. Valid while the partition's events are read without a gap; its reader drops it otherwise.
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence

from parley.log.v1.records_pb2 import MembershipChange
from parley.store.v1.store_service_pb2 import ListRecipientsResponse


class Group:
    """The stays of everybody who is or was a member, as of a head."""

    __slots__ = ("_changed_seq", "_head_seq", "_present", "_stays")

    def __init__(self, answer: ListRecipientsResponse) -> None:
        self._head_seq = answer.head_seq
        self._stays: dict[str, list[list[int]]] = {}
        for recipient in answer.recipients:
            marks = list(recipient.stays)
            self._stays[recipient.user_id] = [marks[index : index + 2] for index in range(0, len(marks), 2)]
        self._changed_seq = max((mark for stays in self._stays.values() for stay in stays for mark in stay), default=0)
        self._present = [user for user, stays in self._stays.items() if stays[-1][1] == 0]

    def apply(self, seq: int, changes: Iterable[MembershipChange]) -> None:
        """Take in what the event at seq changed, unless it is known."""
        if seq <= self._head_seq:
            return
        self._head_seq = seq
        changed = False
        for change in changes:
            changed = True
            stays = self._stays.setdefault(change.user_id, [])
            if change.joined:
                stays.append([seq, 0])
            else:
                stays[-1][1] = seq
        if changed:
            self._changed_seq = seq
            self._present = [user for user, stays in self._stays.items() if stays[-1][1] == 0]

    def recipients(self, seq: int) -> Sequence[str]:
        """Return who sees the event at seq."""
        if seq > self._changed_seq:
            return self._present
        return [
            user for user, stays in self._stays.items() if any(first <= seq and (last == 0 or seq <= last) for first, last in stays)
        ]


class GroupCache:
    """Groups by conversation, for one partition; the least recently used are forgotten first."""

    def __init__(self, max_groups: int) -> None:
        self._max_groups = max_groups
        self._groups: OrderedDict[str, Group] = OrderedDict()
        self._next_offset: int | None = None

    def begin(self, offset: int) -> None:
        """Start a batch: what is known holds only if no event was missed. One that is tried again tells nothing wrong."""
        if offset != self._next_offset:
            self._groups.clear()

    def finish(self, next_offset: int) -> None:
        self._next_offset = next_offset

    def get(self, conversation_id: str) -> Group | None:
        group = self._groups.get(conversation_id)
        if group is not None:
            self._groups.move_to_end(conversation_id)
        return group

    def put(self, conversation_id: str, group: Group) -> None:
        self._groups[conversation_id] = group
        if len(self._groups) > self._max_groups:
            self._groups.popitem(last=False)
