"""What a device holds of one conversation: its stretch of the timeline, membership, watermarks, unread. Pure.

A device holds a contiguous suffix of what its user may see: every visible seq from `first_held_seq` to `held_seq`. Contiguity is
judged inside the visible intervals: a user who left at 10 and came back at 20 goes from 10 to 20 without a gap.

Title, members, role and intervals are as of `version`, the seq of the last event that changed them; rows and events that are older
change nothing. Watermarks only grow. `unread_count` speaks for events up to `counted_seq`: a server's absolute count may run ahead
of what is held, and those events must not be counted again when they come.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from parley.api.v1 import events_pb2
from parley.api.v1.commands_pb2 import Role
from parley.api.v1.events_pb2 import ConversationKind
from parley_protocol import ids
from parley_protocol.digests import Held


@dataclass(slots=True)
class ConversationState:
    """One conversation. Numbers that are unknown are 0."""

    conversation_id: str
    kind: int = 0
    peer_user_id: str = ""
    title: str = ""
    member_count: int = 0
    role: int = 0
    version: int = 0
    intervals: list[list[int]] = field(default_factory=list)  # [first, last], last 0: open; oldest first
    first_available_seq: int = 1
    first_held_seq: int = 0  # 0: nothing is placed yet, where the stretch begins is not known
    held_seq: int = 0
    known_head_seq: int = 0  # announced; above held_seq: something is missing
    message_count: int = 0  # at held_seq
    last_time_ms: int = 0
    delivered_seq: int = 0
    read_seq: int = 0
    peer_delivered_seq: int = 0
    peer_read_seq: int = 0
    unread_count: int = 0
    counted_seq: int = 0

    @property
    def is_placed(self) -> bool:
        """Whether the held stretch has a beginning."""
        return self.first_held_seq > 0

    @property
    def is_behind(self) -> bool:
        """Whether something is known to exist that is not held: events, or what kind of conversation it is."""
        return self.known_head_seq > self.held_seq or (self.kind == 0 and self.known_head_seq > 0)

    def held(self) -> Held:
        """Return what goes into the digest: only what is held, never what was announced."""
        return Held(
            self.conversation_id,
            self.held_seq if self.is_placed else 0,
            self.delivered_seq,
            self.read_seq,
            self.peer_delivered_seq,
            self.peer_read_seq,
            self.version,
        )

    def next_visible(self, seq: int) -> int | None:
        """Return the lowest seq above `seq` that the user may see and the server still has; None: there is none, he has left."""
        seq = max(seq, self.first_available_seq - 1)
        for first, last in self.intervals:
            if seq < first:
                return first
            if last == 0 or seq < last:
                return seq + 1
        return None

    def previous_visible(self, seq: int) -> int | None:
        """Return the highest seq below `seq` that the user may see and the server still has, or None."""
        for first, last in reversed(self.intervals):
            candidate = seq - 1 if last == 0 else min(seq - 1, last)
            if candidate >= max(first, self.first_available_seq):
                return candidate
        return None

    def begin_at(self, first_seq: int) -> None:
        """Let the held stretch begin at a seq; nothing of it is held yet."""
        self.first_held_seq, self.held_seq = first_seq, first_seq - 1

    def place(self, event: events_pb2.Event, me: str) -> None:
        """Append the event that comes next."""
        seq = event.seq
        self.held_seq = seq
        self.known_head_seq = max(self.known_head_seq, seq)
        self.message_count = event.message_count
        self.last_time_ms = event.time.seconds * 1000 + event.time.nanos // 1_000_000
        if event.HasField("message"):
            if seq > self.counted_seq:
                self.counted_seq = seq
                if seq > self.read_seq and event.actor_user_id != me:
                    self.unread_count += 1
            if self.kind == 0:
                self._found_direct(event, me)
        elif seq > self.version:
            self._apply_membership(event, me)
            self.version = seq

    def _found_direct(self, event: events_pb2.Event, me: str) -> None:
        """Learn of a 1-1 conversation from its message: the id tells whose it is."""
        actor = event.actor_user_id
        if self.conversation_id != ids.direct_conversation_id(me, actor):
            return  # sent by this user's other device: only the server's row names the peer
        self.meet(actor, me)

    def meet(self, peer: str, me: str) -> None:
        """Note who the other user of this 1-1 conversation is."""
        kind = ConversationKind.CONVERSATION_KIND_SELF if peer == me else ConversationKind.CONVERSATION_KIND_DIRECT
        self.kind, self.peer_user_id, self.role = kind, "" if peer == me else peer, Role.ROLE_MEMBER
        self.member_count = 1 if peer == me else 2
        self.intervals = [[1, 0]]

    def _apply_membership(self, event: events_pb2.Event, me: str) -> None:
        content = event.WhichOneof("content")
        if content == "group_created":
            created = event.group_created
            self.kind, self.title = ConversationKind.CONVERSATION_KIND_GROUP, created.title
            self.member_count = len(created.member_user_ids)
            self._join(event.seq, Role.ROLE_OWNER if event.actor_user_id == me else Role.ROLE_MEMBER)
        elif content == "members_added":
            self.member_count += len(event.members_added.user_ids)
            if me in event.members_added.user_ids:
                if self.role == Role.ROLE_UNSPECIFIED:
                    self.kind = ConversationKind.CONVERSATION_KIND_UNSPECIFIED  # who comes back was not told what changed: ask
                self._join(event.seq, Role.ROLE_MEMBER)
        elif content == "member_removed":
            self._part(event.seq, event.member_removed.user_id == me)
        elif content == "member_left":
            self._part(event.seq, event.actor_user_id == me)
            if event.member_left.new_owner_user_id == me:
                self.role = Role.ROLE_OWNER
        elif content == "role_changed":
            if event.role_changed.user_id == me:
                self.role = event.role_changed.role
            elif event.role_changed.role == Role.ROLE_OWNER and self.role == Role.ROLE_OWNER:
                self.role = Role.ROLE_ADMIN
        elif event.settings_changed.HasField("title"):
            self.title = event.settings_changed.title

    def _join(self, seq: int, role: int) -> None:
        self.role = role
        if not any(first <= seq and (last == 0 or seq <= last) for first, last in self.intervals):  # else a page told of it
            self.intervals.append([seq, 0])
        self.raise_own(0, seq - 1)  # what was before counts as read

    def _part(self, seq: int, is_me: bool) -> None:
        self.member_count -= 1
        if is_me:
            self.role = Role.ROLE_UNSPECIFIED
            if self.intervals and self.intervals[-1][0] <= seq:  # else a page told of later stays
                self.intervals[-1][1] = seq

    def raise_own(self, delivered_seq: int, read_seq: int) -> bool:
        """Raise the user's own watermarks, over all devices; tell whether one rose. What is read is delivered.

        After a rise of read_seq the caller recounts what is unread.
        """
        delivered_seq = max(delivered_seq, read_seq)
        if delivered_seq <= self.delivered_seq and read_seq <= self.read_seq:
            return False
        self.delivered_seq = max(self.delivered_seq, delivered_seq)
        self.read_seq = max(self.read_seq, read_seq)
        return True

    def raise_peer(self, delivered_seq: int, read_seq: int) -> bool:
        """Raise the other user's watermarks in a 1-1 conversation; tell whether one rose."""
        if delivered_seq <= self.peer_delivered_seq and read_seq <= self.peer_read_seq:
            return False
        self.peer_delivered_seq = max(self.peer_delivered_seq, delivered_seq)
        self.peer_read_seq = max(self.peer_read_seq, read_seq)
        return True

    @property
    def counts_locally(self) -> bool:
        """Whether every unread event that `unread_count` speaks for is held, so that it can be counted here."""
        return self.is_placed and self.first_held_seq <= self.read_seq + 1

    def set_unread(self, head_seq: int, read_seq: int, unread_count: int) -> bool:
        """Take an absolute count, unless it speaks of an older moment than what is known; tell whether it changed anything."""
        if head_seq < self.counted_seq or read_seq < self.read_seq or (head_seq < self.held_seq):
            return False
        changed = unread_count != self.unread_count
        self.unread_count, self.counted_seq = unread_count, head_seq
        return changed

    def take_row(self, row: events_pb2.Conversation) -> bool:
        """Take the server's view; tell whether our own watermarks exceed it, so that it must be told again.

        Never places anything: the row announces a head, the events have to come. Its count is the caller's to take: it may speak of
        an older head than what is held.
        """
        if row.version >= self.version or self.kind == 0:
            self.kind, self.peer_user_id, self.title = row.kind, row.peer_user_id, row.title
            self.member_count, self.role, self.version = row.member_count, row.role, row.version
            self.take_intervals(row.visible_intervals, row.first_available_seq)
        self.known_head_seq = max(self.known_head_seq, row.head_seq)
        if row.head_seq >= self.held_seq and row.HasField("last_time"):
            self.last_time_ms = row.last_time.ToMilliseconds()
        ahead = self.delivered_seq > row.delivered_seq or self.read_seq > row.read_seq
        self.raise_own(row.delivered_seq, row.read_seq)
        self.raise_peer(row.peer_delivered_seq, row.peer_read_seq)
        return ahead

    def take_intervals(self, intervals: Iterable[events_pb2.Interval], first_available_seq: int) -> None:
        """Take what the user may see, as the server says it."""
        self.intervals = [[interval.first_seq, interval.last_seq] for interval in intervals]
        self.first_available_seq = max(first_available_seq, 1)
