"""Conversations as stores would have left them, decided by the store's rules and written into the tables without a log.

They are of log epoch 0, as after a change of epochs: a store of epoch 1 goes on with them from its first record. Left out is what
became of each request (the dedupe rows), which no reader looks at.
"""

import asyncio
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Final

from chassis.timeline import Row, Timeline, TimelineUnavailableError
from parley.api.v1.commands_pb2 import SendMessage
from parley.log.v1.records_pb2 import CommandRecord, RawCommand
from parley_protocol.ids import direct_conversation_id
from services.store import rows
from services.store.decide import Known, decide
from services.store.state import ConversationState, Position

_BODY: Final = b"x" * 100
_ROWS_A_WRITE: Final = 500
_WRITES_AT_ONCE: Final = 4
_AGAIN_SECONDS: Final = 0.5
_UNKNOWN: Final = Known(None, lambda _: 0, lambda _: b"")


def written_by(sender: str, to: str, count: int, log_ms: int) -> Iterator[Row]:
    """Yield the rows of a 1-1 conversation in which one wrote `count` messages, the last one at `log_ms`; its state comes last."""
    state = ConversationState(direct_conversation_id(sender, to))
    action = SendMessage(content_type="text/plain", body=_BODY).SerializeToString()
    record = CommandRecord(rules_version=1, conversation_id=state.conversation_id, user_id=sender, device_id="bulk")
    for number in range(count):
        command = RawCommand(request_id=number.to_bytes(16, "big"), to_user_id=to, send_message=action)
        record.command.CopyFrom(command)
        effect = decide(state, record, Position(0, 0, number + 1), log_ms - count + number, _UNKNOWN)
        assert effect is not None
        yield rows.event_row(state.conversation_id, effect.seq, effect.event, effect.stamp, rows.BUCKET_BITS)
    yield from rows.inbox_rows(state)
    yield from rows.state_rows(state)


async def write_all(timeline: Timeline, made: Iterable[Row]) -> None:
    """Write rows, several batches at a time."""
    gate = asyncio.Semaphore(_WRITES_AT_ONCE)

    async def write(piece: tuple[Row, ...]) -> None:
        while True:
            try:
                await timeline.write(piece)
            except TimelineUnavailableError:  # more than it can take on a crowded machine: the same rows once more
                await asyncio.sleep(_AGAIN_SECONDS)
            else:
                break
        gate.release()

    async with asyncio.TaskGroup() as group:
        left = iter(made)
        while piece := tuple(islice(left, _ROWS_A_WRITE)):
            await gate.acquire()
            group.create_task(write(piece))
