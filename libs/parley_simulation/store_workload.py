"""What devices ask of the store: a seeded mix of every command there is, sensible and not, with acks and resends."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Self

from parley.api.v1.commands_pb2 import AddMembers, ChangeRole, ChangeSettings, CreateGroup, Leave, RemoveMember, Role, SendMessage
from parley.api.v1.events_pb2 import Ack
from parley.log.v1.records_pb2 import CommandRecord, RawCommand
from parley_checker.history import KIND_OF_ACTION, Asked, Device, History
from parley_protocol.ids import direct_conversation_id, group_conversation_id
from parley_protocol.limits import RULES_VERSION

USERS = ("alice", "bob", "carol", "dave")
MEMBER_CAP = 3  # below the number of users, so that groups are full at times
GROUPS = 2


@dataclass
class Workload:
    """Composes records and keeps what the judge must know of them."""

    rng: Random
    users: Sequence[str]
    history: History = field(default_factory=History)
    conversations: dict[str, None] = field(default_factory=dict)
    directs: dict[str, tuple[str, str]] = field(default_factory=dict)
    undecidable: set[tuple[Device, bytes]] = field(default_factory=set)
    # Some runs have devices that ask again and again, or users who all write to one: what was decided before counts more there.
    resends: float = 0.08
    to_the_first: float = 0.0
    _groups: list[str] = field(default_factory=list)
    _sent: dict[str, int] = field(default_factory=dict)
    _numbers: int = 0

    @classmethod
    def drawn(cls, rng: Random, users: Sequence[str]) -> Self:
        """Return the workload of a run."""
        return cls(rng, users, resends=rng.choice((0.08, 0.3)), to_the_first=rng.choice((0.0, 0.8)))

    def devices(self) -> list[Device]:
        """Return the devices of this run: one or two a user."""
        return [Device(user, f"{user}-{n}") for user in self.users for n in range(self.rng.randint(1, 2))]

    def records(self, device: Device, count: int) -> Iterator[CommandRecord]:
        """Yield what one device asks for, in order. Some of it again, as after a reconnect."""
        asked: list[CommandRecord] = []
        for _ in range(count):
            kind = self.rng.random()
            if kind < 0.22 and self.conversations:
                yield self._ack(device)
            elif kind < 0.22 + self.resends and asked:
                yield self.rng.choice(asked[-5:])
            elif kind < 0.24 + self.resends and asked:
                yield self._reuse(self.rng.choice(asked))
            elif kind < 0.25 + self.resends:
                yield self._undecidable(device)
            else:
                record = self._command(device)
                asked.append(record)
                yield record

    def record(self, device: Device, conversation_id: str, command: RawCommand) -> CommandRecord:
        """Return a command as a gateway would hand it on, noted as asked."""
        action = command.WhichOneof("action")
        assert action is not None
        body = SendMessage.FromString(command.send_message).body if action == "send_message" else b""
        self.history.device(*device).asked.append(Asked(command.request_id, conversation_id, KIND_OF_ACTION[action], body))
        self.conversations[conversation_id] = None
        self._sent[conversation_id] = self._sent.get(conversation_id, 0) + 1
        return self._record(device, conversation_id, command)

    def message(self, device: Device, peer: str, text: str) -> CommandRecord:
        """Return a 1-1 message."""
        conversation_id = direct_conversation_id(device.user_id, peer)
        self.directs[conversation_id] = (device.user_id, peer)
        payload = SendMessage(body=text.encode()).SerializeToString()
        command = RawCommand(
            request_id=self._request_id(), to_user_id=peer, seen_seq=self._seen(conversation_id), send_message=payload
        )
        return self.record(device, conversation_id, command)

    def _command(self, device: Device) -> CommandRecord:
        rng = self.rng
        if len(self._groups) < GROUPS and rng.random() < 0.2:
            return self._create_group(device)
        if not self._groups or rng.random() < 0.5:
            peer = self.users[0] if rng.random() < self.to_the_first else rng.choice(self.users)
            return self.message(device, peer, f"{device.device_id} {self._numbers}")
        conversation_id = rng.choice(self._groups)
        command = RawCommand(request_id=self._request_id(), conversation_id=conversation_id, seen_seq=self._seen(conversation_id))
        user = rng.choice(self.users)
        match rng.choices(("message", "add", "remove", "leave", "role", "title"), (60, 14, 8, 4, 6, 4))[0]:
            case "message":
                reply = rng.randint(1, 20) if rng.random() < 0.2 else 0
                body = f"{device.device_id} {self._numbers}".encode()
                command.send_message = SendMessage(body=body, reply_to_seq=reply).SerializeToString()
            case "add":
                command.add_members = AddMembers(
                    user_ids=rng.sample(self.users, rng.randint(1, min(3, len(self.users))))
                ).SerializeToString()
            case "remove":
                command.remove_member = RemoveMember(user_id=user).SerializeToString()
            case "leave":
                command.leave = Leave().SerializeToString()
            case "role":
                role = rng.choice((Role.ROLE_MEMBER, Role.ROLE_ADMIN, Role.ROLE_OWNER))
                command.change_role = ChangeRole(user_id=user, role=role).SerializeToString()
            case _:
                command.change_settings = ChangeSettings(title=f"title {rng.randint(0, 3)}").SerializeToString()
        return self.record(device, conversation_id, command)

    def _create_group(self, device: Device) -> CommandRecord:
        request_id = self._request_id()
        conversation_id = group_conversation_id(*device, request_id)
        self._groups.append(conversation_id)
        members = self.rng.sample(self.users, self.rng.randint(0, 2))
        command = RawCommand(
            request_id=request_id, create_group=CreateGroup(title="group", member_user_ids=members).SerializeToString()
        )
        return self.record(device, conversation_id, command)

    def _reuse(self, before: CommandRecord) -> CommandRecord:
        """The same request_id with another payload: refused, whatever became of the first."""
        record = CommandRecord()
        record.CopyFrom(before)
        record.command.send_message = SendMessage(body=b"another").SerializeToString()
        return record

    def _undecidable(self, device: Device) -> CommandRecord:
        """A record that no gateway makes: its payload does not parse."""
        conversation_id = direct_conversation_id(device.user_id, self.rng.choice(self.users))
        command = RawCommand(request_id=self._request_id(), conversation_id=conversation_id, send_message=b"\x0a\xff")
        self.undecidable.add((device, command.request_id))
        return self._record(device, conversation_id, command)

    def _ack(self, device: Device) -> CommandRecord:
        conversation_id = self.rng.choice(list(self.conversations))
        read = self.rng.randint(0, self._sent[conversation_id] + 1)
        ack = Ack(conversation_id=conversation_id, delivered_seq=read + self.rng.randint(0, 2), read_seq=read)
        return CommandRecord(
            rules_version=RULES_VERSION,
            conversation_id=conversation_id,
            user_id=device.user_id,
            device_id=device.device_id,
            ack=ack,
            member_cap=MEMBER_CAP,
        )

    def _seen(self, conversation_id: str) -> int:
        return self.rng.randint(0, self._sent.get(conversation_id, 0) + 1) if self.rng.random() < 0.5 else 0

    def _request_id(self) -> bytes:
        self._numbers += 1
        return self._numbers.to_bytes(16, "big")

    def _record(self, device: Device, conversation_id: str, command: RawCommand) -> CommandRecord:
        return CommandRecord(
            rules_version=RULES_VERSION,
            conversation_id=conversation_id,
            user_id=device.user_id,
            device_id=device.device_id,
            gateway_id="g1",
            session_id=f"session of {device.device_id}",
            command=command,
            member_cap=MEMBER_CAP,
        )
