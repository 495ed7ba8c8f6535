"""A violation for people: which message, and what became of it, step by step."""

import re
from collections.abc import Iterator, Sequence

from parley_protocol.topics import COMMANDS
from parley_simulation.reports import Report

LINES_MAX = 60  # what fits a screen or two; the whole trace is a command away

_REQUEST_ID = re.compile(r"\b[0-9a-f]{32}\b")
_LINE = re.compile(r"(?P<time>[\d.]+) (?P<who>[^ :]+): (?P<what>.*)")


def shortest(stories: Sequence[str]) -> str:
    """Return the story that is told soonest, of those that name a message if there are any."""
    return min(stories, key=lambda story: (not _REQUEST_ID.search(story), len(story)))


def steps(story: str, report: Report) -> Iterator[str]:
    """Yield the lines of the trace that are about the story's messages: asked for, polled, and what befell that batch.

    Of a story that names no message: the last lines.
    """
    wanted = set(_REQUEST_ID.findall(story))
    if not wanted:
        yield from report.trace[-LINES_MAX // 2 :]
        return
    positions = [position for request_id in wanted for position in report.positions.get(request_id, ())]
    following: set[str] = set()  # the processes that have the batch in hand
    told = 0
    for line in report.trace:
        match = _LINE.match(line)
        if match is None:
            continue
        who, what = match["who"], match["what"]
        if what.startswith("polled "):
            following.discard(who)
            if _polls(what, positions):
                following.add(who)
        if who in following or any(request_id in what for request_id in wanted):
            yield line
            told += 1
            if told == LINES_MAX:
                yield "... (--trace shows all)"
                return


def _polls(what: str, positions: Sequence[tuple[int, int]]) -> bool:
    match = re.fullmatch(r"polled (\S+)/(\d+) \[([\d, ]*)\]", what)
    if match is None or match[1] != COMMANDS:
        return False
    offsets = {int(offset) for offset in match[3].split(", ")}
    return any(partition == int(match[2]) and offset in offsets for partition, offset in positions)
