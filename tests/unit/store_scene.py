"""A conversation under test: commands go straight into `decide`, as the store would call it, with honest answers about the past."""

from parley.api.v1.commands_pb2 import AddMembers, ChangeRole, ChangeSettings, CreateGroup, Leave, RemoveMember, SendMessage
from parley.api.v1.events_pb2 import Ack, Event
from parley.api.v1.messaging_service_pb2 import ServerBatch
from parley.log.v1.records_pb2 import CommandRecord, RawCommand
from parley.store.v1.rows_pb2 import InboxRow
from parley_protocol.ids import direct_conversation_id, group_conversation_id
from services.store import encoding, rows
from services.store.decide import Effect, Fate, Known, decide, needs_count
from services.store.state import ConversationState, Position

AB = direct_conversation_id("alice", "bob")
T0 = 1_700_000_000_000  # log time of the first record, milliseconds
ACTIONS = {
    SendMessage: "send_message",
    CreateGroup: "create_group",
    AddMembers: "add_members",
    RemoveMember: "remove_member",
    Leave: "leave",
    ChangeRole: "change_role",
    ChangeSettings: "change_settings",
}


def request_id(number: int) -> bytes:
    return number.to_bytes(16, "big")


def command_record(user, action, *, number, to="", conversation="", device="d1", seen_seq=0, member_cap=500) -> CommandRecord:
    """Build a record as a gateway does."""
    command = RawCommand(request_id=request_id(number), seen_seq=seen_seq)
    setattr(command, ACTIONS[type(action)], action.SerializeToString())
    if to:
        command.to_user_id = to
        conversation = direct_conversation_id(user, to)
    elif conversation:
        command.conversation_id = conversation
    else:
        conversation = group_conversation_id(user, device, request_id(number))
    return CommandRecord(
        rules_version=1,
        conversation_id=conversation,
        user_id=user,
        device_id=device,
        gateway_id="g1",
        session_id="s1",
        command=command,
        member_cap=member_cap,
    )


def ack_record(user, conversation, *, delivered=0, read=0) -> CommandRecord:
    ack = Ack(conversation_id=conversation, delivered_seq=delivered, read_seq=read)
    return CommandRecord(rules_version=1, conversation_id=conversation, user_id=user, device_id="d1", ack=ack)


class Scene:
    """One conversation's state, and all that was stored about it."""

    def __init__(self, conversation: str) -> None:
        self.state = ConversationState(conversation)
        self.events: dict[int, bytes] = {}
        self.fates: dict[tuple[str, bytes], Fate] = {}
        self.tables: dict[tuple[str, str, bytes], tuple[int, bytes]] = {}  # (stamp, value), of the state and of inboxes
        self.offset = -1
        self.now_ms = T0

    def known(self, record: CommandRecord) -> Known:
        key = (record.user_id, rows.request_key(record.device_id, record.command.request_id))
        mark = record.command.seen_seq if record.HasField("command") else record.ack.read_seq
        counts = {mark: self.event(mark).message_count} if needs_count(self.state, mark) else {}  # no more than a store has loaded
        return Known(self.fates.get(key), counts.__getitem__, self.events.__getitem__)

    def event(self, seq: int) -> Event:
        return Event.FromString(self.events[seq])

    def apply(self, record: CommandRecord, *, offset: int | None = None) -> Effect | None:
        """Decide the record at the next offset (or again at an older one) and store what it causes."""
        if offset is None:
            self.offset += 1
            offset = self.offset
        effect = decide(self.state, record, Position(1, 0, offset), self.now_ms, self.known(record))
        if effect is not None and effect.event:
            self.events[effect.seq] = effect.event
        if effect is not None and effect.fate is not None:
            self.fates[(record.user_id, rows.request_key(record.device_id, record.command.request_id))] = effect.fate
        if self.state.dirty:
            self.write()
        if effect is not None and effect.own:
            assert outcome_of(effect).request_id == record.command.request_id
        return effect

    def write(self) -> None:
        """Write the rows that the state says have changed; then the tables must say all of it, or a row was not marked."""
        state = self.state
        for row in [*rows.inbox_rows(state), *rows.state_rows(state)]:
            place = (row.table, row.partition, row.key)
            if row.stamp >= self.tables.get(place, (0, b""))[0]:
                self.tables[place] = (row.stamp, row.value)
        rows.clear_dirty(state)
        key = state.conversation_id.encode()
        whole = {(row.table, row.partition, row.key): row.value for row in rows.state_rows(state)}  # the head alone
        for user, member in state.members.items():
            whole[rows.STATE, state.conversation_id, user.encode()] = encoding.member_row(member)
            whole[rows.INBOX, user, key] = rows.inbox_row(state, user)
        assert {place: value for place, (_, value) in self.tables.items()} == whole

    def load(self) -> None:
        """Forget the state and read it back from its rows."""
        conversation_id = self.state.conversation_id
        cells = sorted((key, value) for (table, _, key), (_, value) in self.tables.items() if table == rows.STATE)
        loaded = rows.state_of(conversation_id, cells)
        assert loaded == self.state  # nothing is left to write of either
        self.state = loaded

    def inbox(self, user: str) -> InboxRow:
        """Return a user's inbox row."""
        return InboxRow.FromString(self.tables[rows.INBOX, user, self.state.conversation_id.encode()][1])


def group_scene(*members: str, title: str = "", member_cap: int = 500) -> Scene:
    """Return the scene of a group that alice has made with these members."""
    record = command_record("alice", CreateGroup(title=title, member_user_ids=members), number=1, member_cap=member_cap)
    scene = Scene(record.conversation_id)
    scene.apply(record)
    return scene


def outcome_of(effect: Effect):
    """Return the one outcome that the actor's device gets."""
    outcomes = ServerBatch.FromString(effect.own).outcomes
    assert len(outcomes) == 1
    return outcomes[0]


def text(body: bytes = b"hi", **fields) -> SendMessage:
    return SendMessage(body=body, **fields)


def say(scene: Scene, user: str, number: int, **options):
    fields = {"to": "bob" if user == "alice" else "alice"} if scene.state.conversation_id == AB else {}
    if not fields:
        fields = {"conversation": scene.state.conversation_id}
    return scene.apply(command_record(user, text(b"m%d" % number), number=number, **fields, **options))


def act(scene: Scene, user: str, number: int, action, **options):
    return scene.apply(command_record(user, action, number=number, conversation=scene.state.conversation_id, **options))
