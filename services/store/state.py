"""What the store knows of a conversation: the state that `decide` moves from record to record.

Pure: no I/O, no clock. States are mutable on purpose: a copy of 500 members a message would cost more than the message. Whoever
decides owns the state, and drops it when anything goes wrong before its rows are written (docs/decisions/0006).
"""

from dataclasses import dataclass, field
from typing import NamedTuple

from parley.api.v1.commands_pb2 import Role
from parley.api.v1.events_pb2 import ConversationKind

OWN_RANGES_MAX = 256  # separate runs of own messages above the own read watermark; bounds a member row to a few kB
STAYS_MAX = 16  # stays kept a member: the oldest are forgotten, which hides the oldest stretch from who came and went 16 times
LARGE_ABOVE = 50  # members above which inbox heads are no longer written per member

# Bound once: the generated enums look their values up at every access, which the hot path would pay for each message.
NO_KIND = ConversationKind.CONVERSATION_KIND_UNSPECIFIED
DIRECT = ConversationKind.CONVERSATION_KIND_DIRECT
GROUP = ConversationKind.CONVERSATION_KIND_GROUP
SELF = ConversationKind.CONVERSATION_KIND_SELF


class Position(NamedTuple):
    """Where a record lies. Only positions of one partition are compared."""

    epoch: int
    partition: int
    offset: int


NOWHERE = Position(0, 0, 0)  # epochs of logs start at 1


class NewerEpochError(Exception):
    """The state was written from a newer log than the one that is read: this store must not go on."""


@dataclass(slots=True)
class OwnRange:
    """Consecutive messages of one member."""

    first_seq: int
    last_seq: int
    last_count: int  # message_count at last_seq


@dataclass(slots=True)
class Member:
    """One member, also after he left. Watermarks only grow within a stay."""

    stays: list[tuple[int, int]]  # (first_seq, last_seq), last_seq 0: still there; oldest first
    role: Role.ValueType
    role_seq: int
    delivered_seq: int
    read_seq: int
    read_count: int  # message_count at read_seq
    own_after_read: list[OwnRange] = field(default_factory=list)
    left_count: int = 0
    left_time_ms: int = 0
    left_version: int = 0
    left_title: str = ""
    left_member_count: int = 0

    @property
    def active(self) -> bool:
        """Whether he is a member now."""
        return self.stays[-1][1] == 0

    def sees(self, seq: int) -> bool:
        """Whether the event at seq is his to see."""
        return any(first <= seq and (last == 0 or seq <= last) for first, last in self.stays)

    def own_count(self) -> int:
        """Return the number of own messages above read_seq."""
        return sum(run.last_seq - run.first_seq + 1 for run in self.own_after_read)

    def read_to(self, seq: int, count: int) -> None:
        """Move the read watermark up to seq, where the timeline holds `count` messages."""
        self.read_seq, self.read_count = seq, count
        runs = self.own_after_read
        while runs and runs[0].last_seq <= seq:
            del runs[0]
        if runs and runs[0].first_seq <= seq:
            runs[0].first_seq = seq + 1

    def sent(self, seq: int, count: int) -> None:
        """Note an own message. Who answered 256 times without reading has read up to the first answer by now."""
        runs = self.own_after_read
        if runs and runs[-1].last_seq == seq - 1:
            runs[-1].last_seq, runs[-1].last_count = seq, count
            return
        runs.append(OwnRange(seq, seq, count))
        if len(runs) > OWN_RANGES_MAX:
            self.read_to(runs[0].last_seq, runs[0].last_count)
            self.delivered_seq = max(self.delivered_seq, self.read_seq)


@dataclass(slots=True)
class ConversationState:
    """A conversation as of its last applied record, and which of its rows changed since they were written."""

    conversation_id: str
    kind: ConversationKind.ValueType = NO_KIND  # does not exist
    head_seq: int = 0
    message_count: int = 0
    applied: Position = NOWHERE
    stamp: int = 0
    title: str = ""
    large: bool = False
    version: int = 0
    last_time_ms: int = 0
    member_count: int = 0
    members: dict[str, Member] = field(default_factory=dict)

    # Rows to write, each with the stamp of the last record that changed its content.
    dirty: bool = False
    dirty_members: dict[str, int] = field(default_factory=dict)
    dirty_inboxes: dict[str, int] = field(default_factory=dict)
    dirty_inboxes_of_all: int = 0
    _present: list[str] | None = field(default=None, compare=False)  # derived from members

    @property
    def exists(self) -> bool:
        """Whether an event was ever stored here."""
        return self.kind != NO_KIND

    @property
    def present(self) -> list[str]:
        """The ids of those who are members now, in the order of `members`; do not change it."""
        if self._present is None:
            self._present = [user for user, member in self.members.items() if member.active]
        return self._present

    def has_applied(self, position: Position) -> bool:
        """Tell whether the record is part of this state. A state of an older log epoch applied nothing of this one."""
        if self.applied.epoch > position.epoch:
            raise NewerEpochError(f"{self.conversation_id} was written from log epoch {self.applied.epoch}, not {position.epoch}")
        return self.applied.epoch == position.epoch and position.offset <= self.applied.offset

    def next_stamp(self, log_ms: int) -> int:
        """Return the write timestamp of a record decided now: grows even where log time jumps back."""
        return max(self.stamp + 1, log_ms * 1000)

    def advance(self, position: Position, log_ms: int) -> None:
        """Take the record into the state."""
        self.stamp = self.next_stamp(log_ms)
        self.applied = position
        self.dirty = True

    def append(self, position: Position, log_ms: int, *, message: bool) -> None:
        """Take the record into the state, with a place in the timeline."""
        self.advance(position, log_ms)
        self.head_seq += 1
        self.message_count += message
        self.last_time_ms = log_ms

    def touch_member(self, user: str) -> None:
        """Mark a member's row as changed by the record that was taken in last, and his inbox row where it shows that."""
        self.dirty_members[user] = self.stamp
        if not self.large or not self.members[user].active:
            self.touch_inbox(user)

    def touch_inbox(self, user: str) -> None:
        """Mark a user's inbox row as changed."""
        self.dirty_inboxes[user] = self.stamp

    def touch_inboxes(self) -> None:
        """Mark the inbox rows of all present members as changed."""
        self.dirty_inboxes_of_all = self.stamp

    def membership_changed(self) -> None:
        """Forget what was derived from the members, and settle whether the conversation is large now."""
        self._present = None
        self.member_count = len(self.present)
        self.version = self.head_seq
        if not self.large and self.member_count > LARGE_ABOVE:
            self.large = True
            self.touch_inboxes()

    def visible_head(self, member: Member) -> tuple[int, int, int, int]:
        """Return (head_seq, message_count, version, last_time_ms) as this member sees them: frozen at his leave."""
        if member.active:
            return self.head_seq, self.message_count, self.version, self.last_time_ms
        return member.stays[-1][1], member.left_count, member.left_version, member.left_time_ms

    def unread_count(self, member: Member) -> int:
        """Return how many messages of others the member has not read: exact by construction."""
        return self.visible_head(member)[1] - member.read_count - member.own_count()
