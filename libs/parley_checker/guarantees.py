"""The guarantees by number, as docs/guarantees.md keeps them, in a few words each."""

from collections.abc import Mapping
from enum import IntEnum
from typing import Final


class Guarantee(IntEnum):
    """A number of docs/guarantees.md."""

    STORED = 1
    ONCE = 2
    INTACT = 3
    CONTIGUOUS = 4
    ONE_ORDER = 5
    SENDERS_ORDER = 6
    COMPLETE = 7
    SHOWN_ONCE = 8
    MEMBERS_ONLY = 9
    READ_YOUR_WRITES = 10
    WATERMARKS = 11
    UNREAD = 12
    PRESENCE = 13
    EPOCHS = 14
    REGISTRY = 15
    PUSH = 16
    MEMORY = 17
    ABUSE = 18
    BAD_INPUT = 19
    CLOCKS = 20
    RESUMES = 21
    REPLAY = 22


TITLES: Final[Mapping[Guarantee, str]] = {
    Guarantee.STORED: "what is accepted is stored",
    Guarantee.ONCE: "a request is stored at most once",
    Guarantee.INTACT: "nothing is invented, bodies are intact",
    Guarantee.CONTIGUOUS: "seqs run from 1 without gaps",
    Guarantee.ONE_ORDER: "one order on all devices",
    Guarantee.SENDERS_ORDER: "a sender's own order is kept",
    Guarantee.COMPLETE: "a member's devices have all of his stays",
    Guarantee.SHOWN_ONCE: "an app gets each event once a process",
    Guarantee.MEMBERS_ONLY: "nothing goes to those who are no members",
    Guarantee.READ_YOUR_WRITES: "what was accepted is found by who asks",
    Guarantee.WATERMARKS: "watermarks never go back",
    Guarantee.UNREAD: "unread is right",
    Guarantee.PRESENCE: "presence converges",
    Guarantee.EPOCHS: "frames only under the current epoch",
    Guarantee.REGISTRY: "a registry that is down is no outage",
    Guarantee.PUSH: "push reaches whose device is away",
    Guarantee.MEMORY: "memory is bounded",
    Guarantee.ABUSE: "an abuser costs others little",
    Guarantee.BAD_INPUT: "no malformed input stops a process",
    Guarantee.CLOCKS: "clocks may be wrong by an hour",
    Guarantee.RESUMES: "service resumes by itself",
    Guarantee.REPLAY: "the log replayed gives the same tables",
}
