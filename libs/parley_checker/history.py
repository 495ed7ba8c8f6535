"""The facts that a verdict rests on: what each device asked, was answered and showed, and what readings of the tables found."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from parley.api.v1.commands_pb2 import Command
from parley.api.v1.events_pb2 import Event

# Command.action -> Event.content: what a command that was accepted must have become.
KIND_OF_ACTION: Mapping[str, str] = {
    "send_message": "message",
    "create_group": "group_created",
    "add_members": "members_added",
    "remove_member": "member_removed",
    "leave": "member_left",
    "change_role": "role_changed",
    "change_settings": "settings_changed",
}


class Device(NamedTuple):
    """One device of one user."""

    user_id: str
    device_id: str

    def __str__(self) -> str:
        return f"{self.user_id}/{self.device_id}"


class Asked(NamedTuple):
    """A command as a device composed it; a resend is no second one."""

    request_id: bytes
    conversation_id: str
    kind: str  # the content of the event that it asks for
    body: bytes  # a message's; else empty


class Answered(NamedTuple):
    """A final outcome. `seq` 0: rejected."""

    request_id: bytes
    conversation_id: str
    seq: int


class Entry(NamedTuple):
    """One place of a timeline, wherever it was seen."""

    conversation_id: str
    seq: int
    actor: Device
    request_id: bytes
    kind: str
    body: bytes  # a message's; else empty
    joined: tuple[str, ...] = ()  # users whose view begins here
    left: tuple[str, ...] = ()  # users whose view ends here


class Shown(NamedTuple):
    """An entry that a device handed to its app; `run` counts the starts of the device's process."""

    run: int
    entry: Entry


class Mark(NamedTuple):
    """Watermarks of a member as a device was told them; its own user's, too."""

    run: int
    conversation_id: str
    user_id: str
    delivered_seq: int
    read_seq: int


class ReadBack(NamedTuple):
    """A read through any gateway, begun when the reader knew that `least_seq` was stored: the head that it found."""

    conversation_id: str
    least_seq: int
    head_seq: int


class View(NamedTuple):
    """What a settled device shows of a conversation at the end."""

    conversation_id: str
    held_seq: int
    head_seq: int
    read_seq: int
    unread_count: int


class Scrolled(NamedTuple):
    """Older events of a conversation were fetched: they are held from now on and were no news to the app."""

    conversation_id: str


class Settled(NamedTuple):
    """The device was online and quiet at the end. `first_held`: per conversation the oldest seq that it fetched; absent: 1."""

    first_held: Mapping[str, int]


Fact = Asked | Answered | Shown | Mark | ReadBack | View | Scrolled | Settled


@dataclass
class DeviceHistory:
    """What one device did, each list in the order of its happening."""

    asked: list[Asked] = field(default_factory=list)
    answered: list[Answered] = field(default_factory=list)
    shown: list[Shown] = field(default_factory=list)
    marks: list[Mark] = field(default_factory=list)
    reads: list[ReadBack] = field(default_factory=list)
    views: list[View] = field(default_factory=list)
    scrolled: set[str] = field(default_factory=set)
    settled: bool = False  # it was online and quiet at the end, so all that it may see must have been shown
    first_held: Mapping[str, int] = field(default_factory=dict)  # per conversation: the oldest seq it fetched; absent: 1

    def take(self, fact: Fact) -> None:
        """Add a fact."""
        match fact:
            case Asked():
                self.asked.append(fact)
            case Answered(request_id, conversation_id, _):
                if not conversation_id:  # of a command of an earlier run, whose recorder knew the conversation
                    known = (one.conversation_id for one in reversed(self.asked) if one.request_id == request_id)
                    fact = fact._replace(conversation_id=next(known, ""))
                self.answered.append(fact)
            case Shown():
                self.shown.append(fact)
            case Mark():
                self.marks.append(fact)
            case ReadBack():
                self.reads.append(fact)
            case View():
                self.views.append(fact)
            case Scrolled():
                self.scrolled.add(fact.conversation_id)
            case Settled():
                self.settled, self.first_held = True, fact.first_held


@dataclass
class History:
    """All facts of one run, from its first command on. `readings` name how the tables were read; each maps conversations to all
    of their entries, in the order in which they were read. The first reading is the truth that the others must equal.
    """

    devices: dict[Device, DeviceHistory] = field(default_factory=dict)
    readings: dict[str, Mapping[str, Sequence[Entry]]] = field(default_factory=dict)

    def device(self, user_id: str, device_id: str) -> DeviceHistory:
        """Return the device's facts, empty at first."""
        return self.devices.setdefault(Device(user_id, device_id), DeviceHistory())


def asked_of(command: Command, conversation_id: str) -> Asked:
    """Return the fact that a command was composed; `conversation_id` is the resolved one."""
    action = command.WhichOneof("action")
    if action is None:
        raise ValueError("a command without an action asks for nothing")
    return Asked(bytes(command.request_id), conversation_id, KIND_OF_ACTION[action], command.send_message.body)


def entry_of(event: Event) -> Entry:
    """Return an event as the judge sees it. Content of an unknown kind is kept as `unsupported`."""
    kind = event.WhichOneof("content") or "unsupported"
    joined: tuple[str, ...] = ()
    left: tuple[str, ...] = ()
    if kind == "group_created":
        joined = tuple(event.group_created.member_user_ids)
    elif kind == "members_added":
        joined = tuple(event.members_added.user_ids)
    elif kind == "member_removed":
        left = (event.member_removed.user_id,)
    elif kind == "member_left":
        left = (event.actor_user_id,)
    actor = Device(event.actor_user_id, event.actor_device_id)
    return Entry(event.conversation_id, event.seq, actor, event.request_id, kind, event.message.body, joined, left)
