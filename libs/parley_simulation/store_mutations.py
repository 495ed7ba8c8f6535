"""Ways to break the store, one rule of its design at a time: each must be found. Applied to a run, never left in the code."""

import asyncio
from collections.abc import Callable
from typing import Any, Protocol

from chassis.eventlog import LogBatch
from chassis.sqlite_write_behind import Part, WriteBehind
from chassis.testing.faulty_log import FaultyConsumer
from chassis.testing.virtual_loop import START_WALL_MS
from chassis.timeline_sqlite import SqliteTimeline
from parley.api.v1.commands_pb2 import SendMessage
from services.store import apply, decide, encoding, membership, rows, work
from services.store.apply import Applier
from services.store.decide import Known
from services.store.loaded import Loaded
from services.store.memory import PartitionMemory
from services.store.state import ConversationState, Member


class Patch(Protocol):
    """What applies a mutation and takes it back: pytest's MonkeyPatch."""

    def setattr(self, target: Any, name: str, value: Any) -> None:
        """Give the target's attribute another value until the run ends."""

    def setitem(self, dic: Any, name: Any, value: Any) -> None:
        """Give a key another value until the run ends."""


Mutation = Callable[[Patch], None]
mutations: dict[str, Mutation] = {}


def mutation(name: str) -> Callable[[Mutation], Mutation]:
    """Register a mutation under what it does."""

    def register(function: Mutation) -> Mutation:
        mutations[name] = function
        return function

    return register


@mutation("dedupe removed")
def _(patch: Patch) -> None:
    patch.setattr(Loaded, "known", lambda self, _: Known(None, self.count_at, self.events.__getitem__))


@mutation("dedupe looks only into the present week")
def _(patch: Patch) -> None:
    original = rows.dedupe_partitions
    patch.setattr(rows, "dedupe_partitions", lambda *args: original(*args)[1:2])


@mutation("a request counts however far log time has jumped back")
def _(patch: Patch) -> None:
    patch.setattr(decide, "AHEAD_MS", 1 << 62)


@mutation("rejections are not sticky")
def _(patch: Patch) -> None:
    original = decide._reject

    def reject(*args: Any) -> decide.Effect:
        effect = original(*args)
        effect.fate = None
        return effect

    patch.setattr(decide, "_reject", reject)


@mutation("another payload under the same request_id is answered as the first")
def _(patch: Patch) -> None:
    patch.setattr(encoding, "payload_hash", lambda *args: b"always the same.")


@mutation("offsets are committed before the write")
def _(patch: Patch) -> None:
    original = FaultyConsumer.poll

    async def poll(self: FaultyConsumer, max_records: int) -> LogBatch:
        batch = await original(self, max_records)
        if (inner := self._held[batch.partition]) is not None:
            self._inner.done(inner)
            self._held[batch.partition] = None
            self._again.setdefault(batch.partition, [])
        self._engine.commit((self._topic, self._group, batch.partition), batch.records[-1].offset)
        return batch

    patch.setattr(FaultyConsumer, "poll", poll)


@mutation("offsets and events get into the tables' file before their rows")
def _(patch: Patch) -> None:
    original = WriteBehind.mark

    def mark(self: WriteBehind, part: Part, size_bytes: int) -> None:
        if isinstance(part, SqliteTimeline):
            asyncio.get_running_loop().call_later(2.0, original, self, part, size_bytes)
        else:
            original(self, part, size_bytes)

    patch.setattr(WriteBehind, "mark", mark)


@mutation("states are written together with phase 1")
def _(patch: Patch) -> None:
    original = work.Work.rows

    def together(self: Any) -> tuple[list[Any], list[Any]]:
        first, second = original(self)
        return first + second, []

    patch.setattr(work.Work, "rows", together)


@mutation("states are written before phase 1")
def _(patch: Patch) -> None:
    original = work.Work.rows
    patch.setattr(work.Work, "rows", lambda self: original(self)[::-1])


@mutation("memory is kept over a jump of positions")
def _(patch: Patch) -> None:
    patch.setattr(PartitionMemory, "begin", lambda self, offset: None)


@mutation("memory is kept after a failure")
def _(patch: Patch) -> None:
    original = Applier.apply

    async def keeping(self: Applier, batch: LogBatch) -> None:
        memory = self._memory(batch.partition)
        drop, memory.drop = memory.drop, lambda: None  # type: ignore[method-assign]
        memory._next_offset = batch.records[0].offset
        try:
            await original(self, batch)
        finally:
            memory.drop = drop  # type: ignore[method-assign]

    patch.setattr(Applier, "apply", keeping)


@mutation("stamps are the log's time, unraised")
def _(patch: Patch) -> None:
    patch.setattr(ConversationState, "next_stamp", lambda self, log_ms: log_ms * 1000)


@mutation("stamps are the worker's wall clock")
def _(patch: Patch) -> None:
    def stamp(_self: ConversationState, _log_ms: int) -> int:
        return START_WALL_MS * 1000 + int(asyncio.get_running_loop().time() * 1_000_000)

    patch.setattr(ConversationState, "next_stamp", stamp)


@mutation("what was applied is decided again")
def _(patch: Patch) -> None:
    patch.setattr(ConversationState, "has_applied", lambda self, position: False)


@mutation("what was applied is not published again")
def _(patch: Patch) -> None:
    patch.setattr(decide, "_again", lambda *args: None)


@mutation("recipients of what is published again are the present members")
def _(patch: Patch) -> None:
    patch.setattr(Member, "sees", lambda self, seq: self.active)


@mutation("own messages count as unread")
def _(patch: Patch) -> None:
    patch.setattr(Member, "sent", lambda self, seq, count: None)


@mutation("watermarks go back")
def _(patch: Patch) -> None:
    original = decide._decide_ack

    def ack(state: ConversationState, record: Any, *args: Any) -> Any:
        member = state.members.get(record.user_id)
        if member is not None and record.ack.read_seq < member.read_seq:
            member.read_seq = record.ack.read_seq
        return original(state, record, *args)

    patch.setattr(decide, "_decide_ack", ack)


@mutation("who leaves keeps seeing")
def _(patch: Patch) -> None:
    def part(state: ConversationState, user: str) -> list[Any]:
        state.membership_changed()
        state.touch_member(user)
        return []

    patch.setattr(membership, "_part", part)


@mutation("seqs count up by two after a group event")
def _(patch: Patch) -> None:
    original = ConversationState.append

    def append(self: ConversationState, position: Any, log_ms: int, *, message: bool) -> None:
        self.head_seq += not message
        original(self, position, log_ms, message=message)

    patch.setattr(ConversationState, "append", append)


@mutation("the last byte of a body is lost")
def _(patch: Patch) -> None:
    original = decide._ACTIONS[decide.MESSAGE]

    def send(state: ConversationState, record: Any, payload: bytes, rules: Any) -> Any:
        message = SendMessage.FromString(payload)
        message.body = message.body[:-1]
        return original(state, record, payload, rules)._replace(payload=message.SerializeToString())

    patch.setitem(decide._ACTIONS, decide.MESSAGE, send)


@mutation("what can never be decided stops its partition")
def _(patch: Patch) -> None:
    patch.setattr(apply, "UndecidableError", ZeroDivisionError)
