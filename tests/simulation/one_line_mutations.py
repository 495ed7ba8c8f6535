"""Rules of the store and of delivery, each broken in one line of the code itself; the piece that is replaced stands there once.

Beside those of `parley_simulation.store_mutations` and `world_mutations`, which need more than a line.
"""

from typing import Any, NamedTuple

import pytest

from chassis import log_epoch
from parley_client.timelines import Timelines
from parley_simulation.plan import Scene
from services.store import decide, membership, rows
from services.store.apply import Applier
from services.store.memory import PartitionMemory
from services.store.reads import Reader
from services.store.state import ConversationState, Member
from tests.mutation import replace

STORE, SYSTEM = Scene.STORE, Scene.SYSTEM


class OneLine(NamedTuple):
    """A function with a piece of it replaced."""

    scene: Scene
    owner: Any
    function: str
    old: str
    new: str

    def apply(self, patch: pytest.MonkeyPatch) -> None:
        """Break the rule until the patch is undone."""
        replace(patch, self.owner, self.function, self.old, self.new)
        if self.owner is membership:  # the table of actions holds the function itself
            name = self.function.removeprefix("_")
            for table in (membership.ACTIONS, decide._ACTIONS):
                if name in table:
                    patch.setitem(table, name, getattr(membership, self.function))


mutations: dict[str, OneLine] = {
    # One request, one fate.
    "a half-written row of its own answers a record": OneLine(
        STORE, decide, "_decide_command", "fate.position < position", "fate.position <= position"
    ),
    "a rejection moves what counts as applied": OneLine(
        STORE, decide, "_reject", "effect = Effect(", "state.applied = position; effect = Effect("
    ),
    "a rejection raises the stamp": OneLine(STORE, decide, "_reject", "effect = Effect(", "state.stamp += 1; effect = Effect("),
    "what was loaded of a sender's requests is all, however much later it is": OneLine(
        STORE, rows, "sender_span", "(log_ms // WEEK_MS + 1) * WEEK_MS", "1 << 62"
    ),
    "a batch's last record says which weeks of its senders are loaded": OneLine(
        STORE, PartitionMemory, "_load_senders", "stale[place].update(dict.fromkeys(", "stale[place] = (dict.fromkeys("
    ),
    # Seqs, stamps and rows.
    "the place in the log is not loaded with the state": OneLine(
        STORE, rows, "state_of", "Position(head.log_epoch, head.partition, head.offset)", "state.applied"
    ),
    "the stamp is not loaded with the state": OneLine(STORE, rows, "state_of", "state.stamp = head.stamp", "pass"),
    "member rows carry the stamp of their batch": OneLine(
        STORE, rows, "state_rows", "state.members[user]), stamp)", "state.members[user]), state.stamp)"
    ),
    "inbox rows carry the stamp of their batch": OneLine(
        STORE, rows, "inbox_rows", "inbox_row(state, user), stamp)", "inbox_row(state, user), state.stamp)"
    ),
    "a joining counts as a message": OneLine(STORE, decide, "_accept", "message=is_message", "message=True"),
    "dead letters are lost where states are written": OneLine(
        STORE, Applier, "_apply", "if letters:", "if letters and not second:"
    ),
    "the offset passes a batch that failed": OneLine(
        STORE, Applier, "_process", "sleep(delay)\n        consumer.retry(batch)", "sleep(delay)\n        consumer.done(batch)"
    ),
    "a question for the log epoch that gets no answer ends the store": OneLine(
        STORE, log_epoch, "wait_superseded", "except TimelineUnavailableError:", "except ZeroDivisionError:"
    ),
    # Watermarks and unread.
    "a read watermark may be beyond the head": OneLine(
        STORE, decide, "_decide_ack", "min(ack.read_seq, visible_head)", "ack.read_seq"
    ),
    "a delivered watermark may be beyond the head": OneLine(
        STORE, decide, "_decide_ack", "min(ack.delivered_seq, visible_head)", "ack.delivered_seq"
    ),
    "a watermark may go down": OneLine(
        STORE, decide, "_decide_ack", "reads, delivers = read_seq > member.read_seq,", "reads, delivers = read_seq > 0,"
    ),
    "sending reads up to the head": OneLine(
        STORE, decide, "_accept", "min(command.seen_seq, state.head_seq)", "state.head_seq - 1"
    ),
    "what is read stays among the own unread": OneLine(STORE, Member, "read_to", "del runs[0]", "break"),
    "the peer's inbox row does not hold the watermarks": OneLine(STORE, decide, "_decide_ack", "state.touch_inboxes()", "pass"),
    "the others' inbox rows do not learn of a message": OneLine(STORE, decide, "_accept", "state.touch_inboxes()", "pass"),
    "who joins has read nothing": OneLine(STORE, membership, "_join", "seq - 1, seq - 1, count", "0, 0, 0"),
    # Membership.
    "who joins sees what was before": OneLine(STORE, membership, "_join", "(seq, 0)]", "(1, 0)]"),
    "who leaves does not see his leave": OneLine(
        STORE, membership, "_part", "(member.stays[-1][0], state.head_seq)", "(member.stays[-1][0], state.head_seq - 1)"
    ),
    "who is removed is not told": OneLine(
        STORE, decide, "_address", "effect.recipients = state.present + leaving", "effect.recipients = state.present"
    ),
    "who is there is remembered over a change": OneLine(
        STORE, ConversationState, "membership_changed", "self._present = None", "pass"
    ),
    # Delivery.
    "a page has holes where memory has no event": OneLine(SYSTEM, Reader, "_events", "missing.append(seq)", "pass"),
    "a device does not fetch what it misses": OneLine(
        SYSTEM, Timelines, "_note_behind", "self.behind[state.conversation_id] = None", "pass"
    ),
    "a device keeps no higher watermarks of others": OneLine(
        SYSTEM, Timelines, "take_receipt", "max(receipt.read_seq, known.read_seq)", "known.read_seq"
    ),
}
