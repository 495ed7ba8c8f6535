"""The store's contract over one state of the world: tables, what was published, and the committed offset.

What the log comes to is learned from applying it once, record by record and without faults; a model of its own judges that.
"""

from collections.abc import Sequence

from chassis.errors import reason_of
from chassis.testing.timeline_memory import Tables
from chassis.timeline import Point
from parley.api.v1.commands_pb2 import Outcome
from parley.api.v1.messaging_service_pb2 import ServerBatch
from parley.log.v1.records_pb2 import DeadLetter, EventBatch, EventRecord
from parley.store.v1.rows_pb2 import HeadRow, MemberRow
from parley_protocol.topics import DEAD_LETTERS, EVENTS
from services.store import rows
from tests.unit.store_stepper import Append, BrokenError

Fact = tuple[object, ...]  # ("outcome", request_id, seq or reason) | ("event", conversation, seq, bytes, recipients) |
#                            ("marks", conversation, user, delivered, read) | ("letter", offset)
Facts = frozenset[Fact]


def facts_of(append: Append) -> list[Fact]:
    """Return what an append tells, in order."""
    if append.topic == DEAD_LETTERS:
        return [("letter", DeadLetter.FromString(value).offset) for value in append.values]
    assert append.topic == EVENTS
    return [fact for value in append.values for record in EventBatch.FromString(value).events for fact in _told(record)]


def _told(record: EventRecord) -> list[Fact]:
    shared, own, actor = (ServerBatch.FromString(part) for part in (record.shared, record.own, record.actor))
    recipients = tuple(sorted(record.recipients))
    return [
        *(("event", event.conversation_id, event.seq, event.SerializeToString(), recipients) for event in shared.events),
        *(("outcome", outcome.request_id, _result(outcome)) for outcome in own.outcomes),
        *(("marks", one.conversation_id, one.user_id, one.delivered_seq, one.read_seq) for one in actor.receipts),
    ]


def _result(outcome: Outcome) -> object:
    return outcome.accepted.seq if outcome.WhichOneof("result") == "accepted" else reason_of(outcome.rejected)


class Contract:
    """Learns what the log comes to, then judges states."""

    def __init__(self, first_offset: int) -> None:
        self._first = first_offset
        self._rows: dict[Point, dict[int, bytes]] = {}  # every content of a row, by its stamp
        self._after: list[Tables] = []  # tables once a record is applied
        self.told: list[list[Fact]] = []  # what each record tells
        self._marks: set[Fact] = set()  # all watermarks that ever were
        self._events: Facts = frozenset()
        self._outcomes: Facts = frozenset()

    def learn(self, offset: int, tables: Tables, appends: Sequence[Append]) -> None:
        """Take in the next record."""
        for point, (stamp, value) in tables.items():
            known = self._rows.setdefault(point, {}).setdefault(stamp, value)
            assert known == value, f"{point} has two contents under one stamp, already without faults"
            if point.table == rows.STATE and point.key != rows.HEAD_KEY:
                member = MemberRow.FromString(value)
                self._marks.add(("marks", point.partition, point.key.decode(), member.delivered_seq, member.read_seq))
        self._after.append(tables)
        self.told.append([fact for append in appends for fact in facts_of(append)])

    def learnt(self) -> None:
        """Note that the log ends here."""
        told = [fact for facts in self.told for fact in facts]
        self._events = frozenset(fact for fact in told if fact[0] == "event")
        self._outcomes = frozenset(fact for fact in told if fact[0] == "outcome")

    @property
    def last(self) -> Tables:
        """What the tables come to."""
        return self._after[-1]

    def published(self, facts: Facts, append: Append) -> Facts:
        """Return the facts with an append's. Raises BrokenError if it tells what is not so, or events out of order."""
        known = set(facts)
        for fact in facts_of(append):
            kind = fact[0]
            if kind == "event" and fact not in self._events:
                raise BrokenError(f"an event is published otherwise than the log says: {fact}")
            if kind == "outcome" and fact not in self._outcomes:
                raise BrokenError(f"a request is answered otherwise than the log says: {fact}")
            if kind == "marks" and fact not in self._marks:
                raise BrokenError(f"watermarks are told that never were: {fact}")
            if kind == "event":
                before = {other for other in self._events if other[1] == fact[1] and other[2] < fact[2]}  # type: ignore[operator]
                missing = before - known - {other for told in self.told[: self._first] for other in told}
                if missing:
                    raise BrokenError(f"seq {fact[2]} is published before {len(missing)} that lie below it")
            known.add(fact)
        return frozenset(known)

    def judge(self, tables: Tables, facts: Facts, committed: int) -> None:
        """Judge a state. Raises BrokenError."""
        for point, (stamp, value) in tables.items():
            if self._rows.get(point, {}).get(stamp) != value:
                raise BrokenError(f"{point} at stamp {stamp} holds what no record writes")
        self._judge_heads(tables)
        for fact in facts:
            if fact[0] == "event":
                self._judge_told(tables, fact)
        self._judge_committed(tables, facts, committed)

    def _judge_heads(self, tables: Tables) -> None:
        """What a head announces is there for whoever asks."""
        for point, (_, value) in tables.items():
            if point.table != rows.STATE or point.key != rows.HEAD_KEY:
                continue
            head = HeadRow.FromString(value).head_seq
            stored = {
                int.from_bytes(p.key, "big") for p in tables if p.table == rows.TIMELINE and _conversation(p) == point.partition
            }
            if not stored >= set(range(1, head + 1)):
                raise BrokenError(f"{point.partition} announces seq {head} and holds {sorted(stored)}")

    def _judge_told(self, tables: Tables, fact: Fact) -> None:
        conversation_id, seq = fact[1], fact[2]
        head = tables.get(Point(rows.STATE, str(conversation_id), rows.HEAD_KEY))
        assert isinstance(seq, int)
        if head is None or HeadRow.FromString(head.value).head_seq < seq:
            raise BrokenError(f"{conversation_id} seq {seq} is told before whoever asks would find it")

    def _judge_committed(self, tables: Tables, facts: Facts, committed: int) -> None:
        """What the offset has passed nobody will do again: it must be written and told."""
        for point, (stamp, _) in (self._after[committed - 1] if committed else {}).items():
            if point not in tables or tables[point].stamp < stamp:
                raise BrokenError(f"offset {committed} is committed and {point} is not written")
        for offset in range(self._first, committed):
            for fact in self.told[offset]:
                if fact not in facts and not _made_good(fact, facts):
                    raise BrokenError(f"offset {committed} is committed and {fact} was not told")
        if committed == len(self._after) and tables != self._after[-1]:
            raise BrokenError("all is committed and the tables are not what the log comes to")


def _made_good(fact: Fact, facts: Facts) -> bool:
    """Tell whether nobody misses a fact: higher watermarks were told, or the device asks again and is answered then."""
    if fact[0] == "marks":
        return any(other[:3] == fact[:3] and other[3:] >= fact[3:] for other in facts)
    return fact[0] == "outcome" and fact[2] == "DEAD_LETTERED"


def _conversation(point: Point) -> str:
    return point.partition.rpartition("/")[0]
