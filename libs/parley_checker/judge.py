"""The judge: a pure function from a history to a verdict, one conversation at a time."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations_with_replacement
from typing import NamedTuple

from parley_checker.history import Answered, Asked, Device, DeviceHistory, Entry, History
from parley_checker.verdict import Fault, Verdict
from parley_protocol.ids import DIRECT_PREFIX, direct_conversation_id


class _Conversation(NamedTuple):
    """A history's facts about one conversation, per device in the order of their happening."""

    asked: dict[Device, list[Asked]]
    answered: dict[Device, list[Answered]]
    shown: dict[Device, list[tuple[int, Entry]]]


def judge(history: History) -> Verdict:
    """Judge a history. Needs at least one reading of the tables that covers every conversation from seq 1 on."""
    if not history.readings:
        raise ValueError("a history without a reading of the tables proves nothing")
    verdict = Verdict()
    (_, truth), *others = history.readings.items()
    directs = _directs(history)
    for conversation_id, facts in sorted(_by_conversation(history, truth).items()):
        stored = _judge_timeline(conversation_id, truth.get(conversation_id, ()), verdict)
        for source, reading in others:
            _judge_reading(source, stored, reading.get(conversation_id, ()), conversation_id, verdict)
        _judge_commands(facts, stored, history, verdict)
        views = _views(conversation_id, stored, directs)
        for device, device_history in history.devices.items():
            _judge_device(conversation_id, device, device_history, facts, stored, views.get(device.user_id, ()), verdict)
    return verdict


def _directs(history: History) -> dict[str, tuple[str, str]]:
    users = sorted({device.user_id for device in history.devices})
    return {direct_conversation_id(*pair): pair for pair in combinations_with_replacement(users, 2)}


def _by_conversation(history: History, truth: Mapping[str, Sequence[Entry]]) -> dict[str, _Conversation]:
    facts: dict[str, _Conversation] = defaultdict(lambda: _Conversation(defaultdict(list), defaultdict(list), defaultdict(list)))
    for conversation_id in truth:
        facts[conversation_id]  # a timeline that no device knows of is judged too
    for device, own in history.devices.items():
        for asked in own.asked:
            facts[asked.conversation_id].asked[device].append(asked)
        for answered in own.answered:
            facts[answered.conversation_id].answered[device].append(answered)
        for run, entry in own.shown:
            facts[entry.conversation_id].shown[device].append((run, entry))
    return facts


def _judge_timeline(conversation_id: str, timeline: Iterable[Entry], verdict: Verdict) -> dict[int, Entry]:
    """Judge that seqs are contiguous from 1 and no command is stored twice; return what is stored, by seq."""
    stored: dict[int, Entry] = {}
    seq_of: dict[tuple[Device, bytes], int] = {}
    head = 0
    for entry in timeline:
        if entry.seq in stored:
            verdict.blame(Fault.DUPLICATED, f"{conversation_id} seq {entry.seq} was read twice")
            continue
        if entry.seq < head:
            verdict.blame(Fault.MISORDERED, f"{conversation_id} seq {entry.seq} was read after seq {head}")
        stored[entry.seq] = entry
        head = max(head, entry.seq)
        first = seq_of.setdefault((entry.actor, entry.request_id), entry.seq)
        if first != entry.seq:
            verdict.blame(Fault.DUPLICATED, f"{conversation_id} holds {_name(entry)} also as seq {first}")
    missing = head - len(stored)
    if missing:
        at = next(seq for seq in range(1, head + 1) if seq not in stored)
        verdict.blame(Fault.GAPS, f"{conversation_id} holds nothing at seq {at} though its head is {head}", missing)
    verdict.stored += len(stored)
    return stored


def _judge_reading(
    source: str, stored: Mapping[int, Entry], reading: Iterable[Entry], conversation_id: str, verdict: Verdict
) -> None:
    """Judge that another reading of the tables found the same."""
    found = {entry.seq: entry for entry in reading}
    for seq in sorted(stored.keys() | found.keys()):
        truth, told = stored.get(seq), found.get(seq)
        if truth != told:
            verdict.blame(Fault.DISAGREEING, f"{conversation_id} seq {seq}: {source} says {told}, not {truth}")


def _judge_commands(facts: _Conversation, stored: Mapping[int, Entry], history: History, verdict: Verdict) -> None:
    """Judge what is stored against what was asked and answered."""
    seq_of = {(entry.actor, entry.request_id): entry.seq for entry in reversed(list(stored.values()))}  # the first wins
    wanted: dict[tuple[Device, bytes], Asked] = {}
    for device, commands in facts.asked.items():
        answers = _judge_answers(device, facts.answered.get(device, ()), stored, seq_of, verdict)
        last = 0
        for asked in commands:
            key = (device, asked.request_id)
            wanted[key] = asked
            seq = seq_of.get(key)
            if asked.request_id not in answers:
                verdict.unanswered += 1
            if seq is None:
                continue
            if seq < last:
                verdict.blame(Fault.MISORDERED, f"{_name(stored[seq])} was asked for after what is stored as seq {last}")
            last = max(last, seq)
    for device, answered in facts.answered.items():
        if device not in facts.asked:
            _judge_answers(device, answered, stored, seq_of, verdict)
    for entry in stored.values():
        if entry.actor not in history.devices:
            continue  # nobody recorded what this device asked for
        origin = wanted.get((entry.actor, entry.request_id))
        if origin is None:
            verdict.blame(Fault.INVENTED, f"{_name(entry)} is stored, its device never asked for it")
        elif (origin.kind, origin.body) != (entry.kind, entry.body):
            verdict.blame(Fault.CORRUPTED, f"{_name(entry)} is stored with another content than was asked for")


def _judge_answers(
    device: Device,
    answers: Iterable[Answered],
    stored: Mapping[int, Entry],
    seq_of: Mapping[tuple[Device, bytes], int],
    verdict: Verdict,
) -> dict[bytes, int]:
    """Judge one device's outcomes against each other and the tables; return them by request."""
    fates: dict[bytes, int] = {}
    for answer in answers:
        name = f"{device.user_id}/{device.device_id} {answer.request_id.hex()} in {answer.conversation_id}"
        if answer.request_id in fates:
            before = fates[answer.request_id]
            if before != answer.seq:
                verdict.blame(Fault.CONTRADICTED, f"{name} was answered {answer.seq} after {before} (0: rejected)")
            continue
        fates[answer.request_id] = answer.seq
        at = seq_of.get((device, answer.request_id))
        if not answer.seq:
            verdict.rejected += 1
            if at is not None:
                verdict.blame(Fault.CONTRADICTED, f"{name} was rejected and is stored as seq {at}")
            continue
        verdict.acked += 1
        if at is None:
            verdict.blame(Fault.LOST, f"{name} was accepted as seq {answer.seq} and is not stored")
        elif not _is(stored.get(answer.seq), device, answer.request_id):
            verdict.blame(Fault.CONTRADICTED, f"{name} was accepted as seq {answer.seq} and is stored as seq {at}")
    return fates


def _views(
    conversation_id: str, stored: Mapping[int, Entry], directs: Mapping[str, tuple[str, str]]
) -> dict[str, Sequence[tuple[int, int]]]:
    """Return each user's stays, first and last seq inclusive, as the stored timeline tells them."""
    head = max(stored, default=0)
    if conversation_id.startswith(DIRECT_PREFIX):
        return {user: [(1, head)] for user in directs.get(conversation_id, ())}
    stays: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for seq in sorted(stored):
        for user in stored[seq].joined:
            if not stays[user] or stays[user][-1][1] < seq:
                stays[user].append((seq, head))
        for user in stored[seq].left:
            if stays[user]:
                stays[user][-1] = (stays[user][-1][0], seq)
    return dict(stays)


def _judge_device(
    conversation_id: str,
    device: Device,
    own: DeviceHistory,
    facts: _Conversation,
    stored: Mapping[int, Entry],
    stays: Sequence[tuple[int, int]],
    verdict: Verdict,
) -> None:
    """Judge what one device showed: in order, once a run, as stored, nothing foreign, nothing missing."""
    who = f"{device.user_id}/{device.device_id}"
    visible = {seq for first, last in stays for seq in range(first, last + 1)}
    held = {answer.seq for answer in facts.answered.get(device, ())}  # its own commands come as outcomes
    latest, seen, current = 0, set[int](), None
    for run, entry in facts.shown.get(device, ()):
        if run != current:
            latest, seen, current = 0, set(), run
        if entry.seq in seen:
            verdict.blame(Fault.DUPLICATED, f"{who} showed {_name(entry)} twice")
        elif entry.seq < latest:
            verdict.blame(Fault.MISORDERED, f"{who} showed {_name(entry)} after seq {latest}")
        seen.add(entry.seq)
        held.add(entry.seq)
        latest = max(latest, entry.seq)
        truth = stored.get(entry.seq)
        if entry != truth:
            verdict.blame(Fault.DISAGREEING, f"{who} showed {_name(entry)}, stored is {_name(truth) if truth else 'nothing'}")
        if entry.seq not in visible:
            verdict.blame(Fault.LEAKED, f"{who} showed {_name(entry)}, whose user was no member then")
    if not own.settled:
        return
    first_held = own.first_held.get(conversation_id, 1)
    missing = sorted(seq for seq in visible if seq >= first_held and seq in stored and seq not in held)
    if missing:
        verdict.blame(Fault.LOST, f"{who} never showed {_name(stored[missing[0]])} nor {len(missing) - 1} others", len(missing))


def _is(entry: Entry | None, device: Device, request_id: bytes) -> bool:
    return entry is not None and entry.actor == device and entry.request_id == request_id


def _name(entry: Entry) -> str:
    command = f"{entry.actor.user_id}/{entry.actor.device_id} {entry.request_id.hex()}"
    return f"{entry.kind} {command} ({entry.conversation_id} seq {entry.seq})"
