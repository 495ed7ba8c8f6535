"""`decide` against a model that is too simple to be wrong: lists, and counting by going through them."""

from dataclasses import dataclass, field

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from chassis.errors import reason_of
from parley.api.v1.commands_pb2 import AddMembers, ChangeRole, ChangeSettings, CreateGroup, Leave, RemoveMember, Role, SendMessage
from parley.api.v1.messaging_service_pb2 import ServerBatch
from services.store.decide import DEDUPE_MS
from services.store.state import GROUP
from tests.unit.store_scene import Scene, ack_record, command_record, outcome_of

USERS = ("alice", "bob", "carol", "dave", "erin")
CAP = 4
picks = st.integers(0, 23)  # of people: most are members, some anybody; 0 is mostly the owner
requests = st.integers(0, 40)  # a low one is a request that was made before, the others are new
backs = st.sampled_from((-1, 0, 0, 1, 2, 3, 4, 6, 50, 50))  # a watermark, this far behind the head


@dataclass
class Person:
    """A user of the model: his stays as sets of seqs, his watermarks, his role."""

    seen: set[int] = field(default_factory=set)
    present: bool = False
    role: int = 0
    role_seq: int = 0
    delivered: int = 0
    read: int = 0
    stay_first: int = 0
    last_visible: int = 0


class Model:
    """A group as lists and sets."""

    def __init__(self) -> None:
        self.log: list[tuple[str, bool, int]] = []  # (actor, is a message, log time), seq = index + 1
        self.people: dict[str, Person] = {}
        self.answers: dict[tuple[str, int], tuple[object, int, object]] = {}  # -> (payload, log time, answer)
        self.title = "t"

    def present(self) -> list[str]:
        return [user for user, person in self.people.items() if person.present]

    def append(self, actor: str, now_ms: int, *, message: bool) -> int:
        self.log.append((actor, message, now_ms))
        seq = len(self.log)
        for person in self.people.values():
            if person.present:
                person.seen.add(seq)
                person.last_visible = seq
        return seq

    def join(self, user: str, seq: int) -> None:
        person = self.people.setdefault(user, Person())
        person.present, person.role, person.role_seq, person.stay_first, person.last_visible = True, Role.ROLE_MEMBER, seq, seq, seq
        person.seen.add(seq)
        person.delivered = person.read = seq - 1

    def part(self, user: str) -> None:
        person = self.people[user]
        person.present, person.role = False, 0

    def unread(self, user: str) -> int:
        """Count one by one: messages of others above the watermark, up to the last that he may see."""
        person = self.people[user]
        return sum(
            message and actor != user
            for seq, (actor, message, _) in enumerate(self.log, 1)
            if person.read < seq <= person.last_visible
        )

    def visible_head(self, user: str) -> tuple[int, int, int, int]:
        """Return what the user sees last: its seq, the messages up to it, the seq of the last change of the group, its log time."""
        seen = self.log[: self.people[user].last_visible]
        changes = [seq for seq, (_, message, _) in enumerate(seen, 1) if not message]
        return len(seen), len(seen) - len(changes), changes[-1], seen[-1][2]


class DecideMachine(RuleBasedStateMachine):
    """Random commands, resends, replays, and states that are forgotten and loaded again."""

    def creation(self, title, names):
        return command_record("alice", CreateGroup(title=title, member_user_ids=names), number=1, member_cap=CAP)

    @initialize()
    def create(self) -> None:
        record = self.creation("t", ["bob"])
        self.scene = Scene(record.conversation_id)
        self.model = Model()
        self.created_ms = self.scene.now_ms
        self.asked: list[tuple[str, object, int, int]] = []  # what `run` was called with
        self.records = [(record, self.scene.now_ms, self.scene.apply(record))]
        self.model.answers["alice", 1] = (("CreateGroup", "t", ("bob",)), self.created_ms, 1)
        self.model.append("alice", self.scene.now_ms, message=False)
        for user in ("alice", "bob"):
            self.model.join(user, 1)
        self.model.people["alice"].role = Role.ROLE_OWNER

    def run(self, user, action, number, seen=0) -> None:
        """Apply a command to both and compare the outcomes."""
        record = command_record(
            user, action, number=number, conversation=self.scene.state.conversation_id, seen_seq=seen, member_cap=CAP
        )
        payload = (type(action).__name__, action.SerializeToString(deterministic=True))
        read = self.model.people.get(user, Person()).read
        known = self.model.answers.get((user, number))
        if known is not None and self.scene.now_ms - known[1] <= DEDUPE_MS:
            expected = known[2] if known[0] == payload else "REQUEST_ID_REUSED"
        else:
            expected = self.expect(user, action, seen)
            self.model.answers[user, number] = (payload, self.scene.now_ms, expected)
        effect = self.scene.apply(record)
        self.records.append((record, self.scene.now_ms, effect))
        outcome = outcome_of(effect)
        got = outcome.accepted.seq if outcome.WhichOneof("result") == "accepted" else reason_of(outcome.rejected)
        assert got == expected
        if effect.event:
            assert sorted(effect.recipients) == sorted(u for u, person in self.model.people.items() if got in person.seen)
            assert effect.wakes == isinstance(action, SendMessage)
        self.check_told(user, effect, moved=self.model.people.get(user, Person()).read > read)

    def check_told(self, user, effect, *, moved) -> None:
        """Where watermarks moved, the user's own devices are told of them and of what is unread, the others of the watermarks."""
        assert bool(effect is not None and effect.actor) == moved
        if not moved:
            return
        person, told = self.model.people[user], ServerBatch.FromString(effect.actor)
        (receipt,), (change,) = told.receipts, told.inbox_changes
        assert (receipt.user_id, receipt.delivered_seq, receipt.read_seq) == (user, person.delivered, person.read)
        assert (change.delivered_seq, change.read_seq, change.unread_count) == (
            person.delivered,
            person.read,
            self.model.unread(user),
        )
        assert (change.head_seq, change.message_count, change.version) == self.model.visible_head(user)[:3]
        others = ServerBatch.FromString(effect.shared).receipts
        assert list(others) == ([receipt] if person.present else [])

    def expect(self, user, action, seen) -> int | str:
        """Say what the rules of docs/client.md make of an action, and do it to the model."""
        person = self.model.people.get(user)
        if person is None:
            return "CONVERSATION_NOT_FOUND"
        if not person.present:
            return "NOT_A_MEMBER"
        problem = getattr(self, "_" + type(action).__name__)(user, person, action)
        if problem:
            return problem
        seen = min(seen, len(self.model.log))
        seq = self.model.append(user, self.scene.now_ms, message=isinstance(action, SendMessage))
        self.effect(user, action, seq)
        if person.present and seen > person.read:
            person.read = seen
            person.delivered = max(person.delivered, seen)
        return seq

    def _SendMessage(self, user, person, action) -> str:
        return ""

    def _AddMembers(self, user, person, action) -> str:
        if person.role < Role.ROLE_ADMIN:
            return "ROLE_TOO_LOW"
        new = set(action.user_ids) - set(self.model.present())
        if not new:
            return "ALREADY_A_MEMBER"
        return "GROUP_FULL" if len(self.model.present()) + len(new) > CAP else ""

    def _RemoveMember(self, user, person, action) -> str:
        target = self.model.people.get(action.user_id)
        if target is None or not target.present:
            return "TARGET_NOT_A_MEMBER"
        if action.user_id == user:
            return "NO_CHANGE"
        return "" if person.role >= Role.ROLE_ADMIN and person.role > target.role else "ROLE_TOO_LOW"

    def _Leave(self, user, person, action) -> str:
        return ""

    def _ChangeRole(self, user, person, action) -> str:
        target = self.model.people.get(action.user_id)
        if target is None or not target.present:
            return "TARGET_NOT_A_MEMBER"
        if person.role != Role.ROLE_OWNER:
            return "ROLE_TOO_LOW"
        return "NO_CHANGE" if target.role == action.role or action.user_id == user else ""

    def _ChangeSettings(self, user, person, action) -> str:
        if person.role < Role.ROLE_ADMIN:
            return "ROLE_TOO_LOW"
        return "NO_CHANGE" if action.title == self.model.title else ""

    def effect(self, user, action, seq) -> None:
        people = self.model.people
        if isinstance(action, AddMembers):
            for name in dict.fromkeys(action.user_ids):
                if name not in self.model.present():
                    self.model.join(name, seq)
        elif isinstance(action, RemoveMember):
            self.model.part(action.user_id)
        elif isinstance(action, Leave):
            was_owner = people[user].role == Role.ROLE_OWNER
            self.model.part(user)
            if was_owner and self.model.present():
                heir = min(self.model.present(), key=lambda name: (-people[name].role, people[name].role_seq, name))
                people[heir].role, people[heir].role_seq = Role.ROLE_OWNER, seq
        elif isinstance(action, ChangeRole):
            if action.role == Role.ROLE_OWNER:
                people[user].role, people[user].role_seq = Role.ROLE_ADMIN, seq
            people[action.user_id].role, people[action.user_id].role_seq = action.role, seq
        elif isinstance(action, ChangeSettings):
            self.model.title = action.title

    def person(self, pick: int) -> str:
        present = self.model.present()
        return present[pick % len(present)] if present and pick < 20 else USERS[pick % len(USERS)]

    def mark(self, back: int) -> int:
        return len(self.model.log) - back

    def ask(self, pick, action, request, seen=0) -> None:
        """Let somebody ask, mostly under a new request id."""
        seen = max(seen, 0)
        old = request < 5 and request < len(self.asked)
        number = self.asked[request][2] if old else 2 + len(self.asked)
        self.asked.append((self.person(pick), action, number, seen))
        self.run(*self.asked[-1])

    @rule(pick=picks, request=requests, body=st.sampled_from((b"a", b"b")), back=backs)
    def send(self, pick, request, body, back) -> None:
        self.ask(pick, SendMessage(body=body), request, self.mark(back))

    @rule(pick=picks, request=requests, names=st.lists(st.sampled_from(USERS), min_size=1, max_size=3))
    def add(self, pick, request, names) -> None:
        self.ask(pick, AddMembers(user_ids=names), request)

    @rule(pick=picks, request=requests, other=picks)
    def remove(self, pick, request, other) -> None:
        self.ask(pick, RemoveMember(user_id=self.person(other)), request)

    @rule(pick=picks, request=requests, back=backs)
    def leave(self, pick, request, back) -> None:
        if request < 10:  # else all are gone too soon
            self.ask(pick, Leave(), request, self.mark(back))

    @rule(pick=picks, request=requests, other=picks, role=st.sampled_from((Role.ROLE_ADMIN, Role.ROLE_MEMBER, Role.ROLE_OWNER)))
    def change_role(self, pick, request, other, role) -> None:
        self.ask(pick, ChangeRole(user_id=self.person(other), role=role), request)

    @rule(pick=picks, request=requests, title=st.sampled_from(("t", "u")))
    def rename(self, pick, request, title) -> None:
        self.ask(pick, ChangeSettings(title=title), request)

    @rule(data=st.data())
    def resend(self, data) -> None:
        """The same once more, whatever has become of it."""
        if self.asked:
            self.run(*self.asked[data.draw(st.integers(0, len(self.asked) - 1))])

    @rule(pick=picks, delivered=backs, read=backs)
    def ack(self, pick, delivered, read) -> None:
        user = self.person(pick)
        delivered, read = self.mark(delivered), self.mark(read)
        record = ack_record(user, self.scene.state.conversation_id, delivered=delivered, read=read)
        person = self.model.people.get(user)
        before = (person.delivered, person.read) if person else None
        effect = self.scene.apply(record)
        self.records.append((record, self.scene.now_ms, effect))
        if person is not None:
            read = min(read, person.last_visible)
            delivered = max(min(delivered, person.last_visible), read)
            if read >= person.stay_first:
                person.read = max(person.read, read)
            if delivered >= person.stay_first:
                person.delivered = max(person.delivered, delivered)
        self.check_told(user, effect, moved=person is not None and (person.delivered, person.read) != before)
        if effect is not None:
            assert sorted(effect.recipients) == sorted(set(self.model.present()) - {user} if person.present else ())

    @rule(title=st.sampled_from(("t", "u")), names=st.sampled_from((["bob"], ["carol"])))
    def create_again(self, title, names) -> None:
        """The same command, whenever, finds the group that it made; another one under its request_id does not."""
        known, payload = self.model.answers.get(("alice", 1)), ("CreateGroup", title, tuple(names))
        if known is not None and self.scene.now_ms - known[1] <= DEDUPE_MS:
            expected = known[2] if known[0] == payload else "REQUEST_ID_REUSED"
        elif (title, names) == ("t", ["bob"]):
            expected = 1  # the group itself remembers
        else:
            expected = "CONVERSATION_EXISTS"
            self.model.answers["alice", 1] = (payload, self.scene.now_ms, expected)
        effect = self.scene.apply(record := self.creation(title, names))
        self.records.append((record, self.scene.now_ms, effect))
        outcome = outcome_of(effect)
        if expected == 1:
            accepted = outcome.accepted
            assert (accepted.seq, accepted.duplicate, accepted.time.ToMilliseconds()) == (1, True, self.created_ms)
        else:
            assert reason_of(outcome.rejected) == expected
        assert not effect.event

    @rule(days=st.sampled_from((-0.05, 0.04, 7.0, 15.0)))
    def time_passes(self, days) -> None:
        self.scene.now_ms += int(days * 24 * 3600 * 1000)

    @rule(data=st.data())
    def replay(self, data) -> None:
        """All records from some position on are decided once more: nothing new is written, and what is told was told before."""
        start = data.draw(st.integers(0, len(self.records) - 1))
        state, now_ms = self.scene.state, self.scene.now_ms
        before = (state.head_seq, state.message_count, state.applied, state.stamp, repr(state.members))
        fates = dict(self.scene.fates)
        for offset in range(start, len(self.records)):
            record, self.scene.now_ms, first = self.records[offset]
            effect = self.scene.apply(record, offset=offset)
            assert effect is None or not effect.event
            assert effect is None or not effect.own or effect.own == first.own
            if effect is not None and effect.seq:
                told, then = ServerBatch.FromString(effect.shared), ServerBatch.FromString(first.shared)
                assert (effect.seq, told.events, effect.wakes) == (first.seq, then.events, first.wakes)
                assert sorted(effect.recipients) == sorted(u for u, person in self.model.people.items() if first.seq in person.seen)
                assert sorted(map(str, effect.membership_changes)) == sorted(map(str, first.membership_changes))
        self.scene.now_ms = now_ms
        assert (state.head_seq, state.message_count, state.applied, state.stamp, repr(state.members)) == before
        assert self.scene.fates == fates  # a rejection after the last applied record is decided again, alike

    @rule()
    def forget_and_load(self) -> None:
        """The state is dropped from memory and read back from its rows."""
        self.scene.load()

    @invariant()
    def same(self) -> None:
        if not hasattr(self, "scene"):
            return
        state, model = self.scene.state, self.model
        assert state.head_seq == len(model.log) == len(self.scene.events)
        assert state.message_count == sum(message for _, message, _ in model.log)
        assert state.member_count == len(model.present())
        assert set(state.members) == set(model.people)
        for user, person in model.people.items():
            member = state.members[user]
            assert member.active == person.present
            assert member.role == person.role
            assert {seq for seq in range(1, state.head_seq + 1) if member.sees(seq)} == person.seen
            assert (member.delivered_seq, member.read_seq) == (person.delivered, person.read)
            assert state.unread_count(member) == model.unread(user)
            assert state.visible_head(member) == model.visible_head(user)
            row = self.scene.inbox(user)
            assert (row.head_seq, row.message_count, row.version, row.last_time_ms) == model.visible_head(user)
            assert (row.delivered_seq, row.read_seq, row.unread_count) == (person.delivered, person.read, model.unread(user))
            assert (row.kind, row.left, row.large) == (GROUP, not person.present, False)


DecideMachine.TestCase.settings = settings(
    max_examples=150, stateful_step_count=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)
TestDecide = DecideMachine.TestCase
