"""Histories as lines of JSON, one fact a line: what clients write while they run, and `parley check` reads.

A body is written as the beginning of its SHA-256: enough to see that it is another one, and nobody's message lies about in records.
The format is documented in docs/testing.md.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from parley_checker.history import Answered, Asked, Device, Entry, Fact, History, Mark, ReadBack, Scrolled, Settled, Shown, View

VERSION: Final = 1
_NUMBER_MAX: Final = 2**63 - 1
_BODY_BYTES: Final = 12  # two bodies of one run that agree in 96 bits are the same


class FormatError(Exception):
    """A line that is no fact; says where and why."""


def header() -> str:
    """Return the first line of a file."""
    return _line({"history": VERSION})


def unknown_line(device: Device, request_id: bytes) -> str:
    """Return the line of a command whose outcome its device did not learn. It says no more than its absence."""
    return _line({"device": [*device], "unknown": {"request": request_id.hex()}})


def fact_line(device: Device, fact: Fact) -> str:
    """Return a device's fact as a line."""
    match fact:
        case Asked(request_id, conversation_id, kind, body):
            told: Any = {"request": request_id.hex(), "conversation": conversation_id, "kind": kind} | _body(body)
            return _line({"device": [*device], "invoke": told})
        case Answered(request_id, conversation_id, seq):
            told = {"request": request_id.hex(), "conversation": conversation_id}
            return _line({"device": [*device], "ok": told | {"seq": seq}} if seq else {"device": [*device], "fail": told})
        case Shown(run, entry):
            return _line({"device": [*device], "shown": _event(entry), "run": run})
        case Mark(run, conversation_id, user_id, delivered_seq, read_seq):
            told = {"conversation": conversation_id, "user": user_id, "delivered": delivered_seq, "read": read_seq}
            return _line({"device": [*device], "mark": told, "run": run})
        case ReadBack(conversation_id, least_seq, head_seq):
            told = {"conversation": conversation_id, "least": least_seq, "head": head_seq}
            return _line({"device": [*device], "read": told})
        case View(conversation_id, held_seq, head_seq, read_seq, unread_count):
            told = {"conversation": conversation_id, "held": held_seq, "head": head_seq, "read": read_seq, "unread": unread_count}
            return _line({"device": [*device], "view": told})
        case Scrolled(conversation_id):
            return _line({"device": [*device], "scrolled": {"conversation": conversation_id}})
        case Settled(first_held):
            return _line({"device": [*device], "settled": dict(first_held)})


def entry_line(source: str, entry: Entry) -> str:
    """Return an entry of the tables as a line; `source` says how they were read."""
    return _line({"tables": source, "event": _event(entry)})


def lines_of(history: History) -> Iterator[str]:
    """Yield a whole history, device by device."""
    yield header()
    for device, own in history.devices.items():
        for facts in (own.asked, own.answered, own.shown, own.marks, own.reads, own.views):
            for fact in facts:
                yield fact_line(device, fact)
        for conversation_id in sorted(own.scrolled):
            yield fact_line(device, Scrolled(conversation_id))
        if own.settled:
            yield fact_line(device, Settled(own.first_held))
    for source, reading in history.readings.items():
        yield _line({"tables": source})
        for timeline in reading.values():
            for entry in timeline:
                yield entry_line(source, entry)


def read_lines(lines: Iterable[str], history: History) -> None:
    """Add what lines say to a history; a device may be spread over several files. Raises FormatError.

    A last line that was cut off in the middle (its writer was killed) is passed over.
    """
    for number, line in enumerate(lines, 1):
        try:
            told = json.loads(line)
            if number == 1:
                if told != {"history": VERSION}:
                    raise FormatError(f'line 1 is no {{"history": {VERSION}}}: this is no history, or one of another version')
            elif "tables" in told:
                _read_tables(told, history)
            else:
                device = _device(told["device"])
                if (fact := _fact(told)) is not None:
                    history.device(*device).take(fact)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            if not line.endswith("\n") and number > 1:
                return
            raise FormatError(f"line {number} is no fact ({type(error).__name__}: {error})") from error


def hashed(body: bytes) -> bytes:
    """Return what stands for a body in a file; nothing for none."""
    return hashlib.sha256(body).digest()[:_BODY_BYTES] if body else b""


def _line(told: Mapping[str, Any]) -> str:
    return json.dumps(told, separators=(",", ":"), ensure_ascii=False) + "\n"


def _body(body: bytes) -> dict[str, str]:
    return {"body": hashed(body).hex()} if body else {}


def _event(entry: Entry) -> dict[str, Any]:
    told: dict[str, Any] = {
        "conversation": entry.conversation_id,
        "seq": entry.seq,
        "actor": [*entry.actor],
        "request": entry.request_id.hex(),
        "kind": entry.kind,
    }
    told |= _body(entry.body)
    if entry.joined:
        told["joined"] = [*entry.joined]
    if entry.left:
        told["left"] = [*entry.left]
    return told


def _read_tables(told: Mapping[str, Any], history: History) -> None:
    reading = history.readings.setdefault(_text(told["tables"]), {})
    if "event" in told:
        entry = _entry(told["event"])
        timeline = reading.setdefault(entry.conversation_id, [])  # type: ignore[attr-defined]  # ours: a dict of lists
        timeline.append(entry)


def _text(told: object) -> str:
    if not isinstance(told, str):
        raise TypeError(f"{str(told)[:50]} is no text")
    return told


def _number(told: object) -> int:
    if type(told) is not int or not 0 <= told <= _NUMBER_MAX:
        raise ValueError(f"{str(told)[:50]} is no number from 0 to {_NUMBER_MAX}")
    return told


def _device(told: Any) -> Device:
    user_id, device_id = told
    return Device(_text(user_id), _text(device_id))


def _entry(told: Mapping[str, Any]) -> Entry:
    seq = _number(told["seq"])
    if not seq:
        raise ValueError("the first seq is 1")
    joined, left = (tuple(map(_text, told.get(name, ()))) for name in ("joined", "left"))
    request_id, body = bytes.fromhex(told["request"]), bytes.fromhex(told.get("body", ""))
    return Entry(_text(told["conversation"]), seq, _device(told["actor"]), request_id, _text(told["kind"]), body, joined, left)


def _fact(told: Mapping[str, Any]) -> Fact | None:
    match told:
        case {"invoke": it}:
            body = bytes.fromhex(it.get("body", ""))
            return Asked(bytes.fromhex(it["request"]), _text(it["conversation"]), _text(it["kind"]), body)
        case {"ok": it}:
            return Answered(bytes.fromhex(it["request"]), _text(it["conversation"]), _number(it["seq"]))
        case {"fail": it}:
            return Answered(bytes.fromhex(it["request"]), _text(it["conversation"]), 0)
        case {"shown": it, "run": run}:
            return Shown(_number(run), _entry(it))
        case {"mark": it, "run": run}:
            delivered_seq, read_seq = _number(it["delivered"]), _number(it["read"])
            return Mark(_number(run), _text(it["conversation"]), _text(it["user"]), delivered_seq, read_seq)
        case {"read": it}:
            return ReadBack(_text(it["conversation"]), _number(it["least"]), _number(it["head"]))
        case {"view": it}:
            return View(_text(it["conversation"]), *(_number(it[name]) for name in ("held", "head", "read", "unread")))
        case {"scrolled": it}:
            return Scrolled(_text(it["conversation"]))
        case {"settled": it}:
            return Settled({name: _number(seq) for name, seq in it.items()})
        case {"unknown": _}:
            return None
    raise ValueError("it says nothing that is known")
