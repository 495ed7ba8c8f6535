"""The judge: a pure function from a history to a verdict, one conversation at a time.

Its work grows with the facts, not with devices times conversations: some hundred thousand messages are judged in seconds.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from itertools import count
from typing import NamedTuple, Self

from parley_checker.guarantees import Guarantee
from parley_checker.history import Answered, Asked, Device, DeviceHistory, Entry, History, Mark, ReadBack, View
from parley_checker.judge_views import judge_marks, judge_reads, judge_views
from parley_checker.verdict import Fault, Verdict
from parley_protocol.ids import DIRECT_PREFIX, direct_conversation_id


class _Conversation(NamedTuple):
    """A history's facts about one conversation, per device in the order of their happening."""

    asked: dict[Device, list[Asked]]
    answered: dict[Device, list[Answered]]
    shown: dict[Device, list[tuple[int, Entry]]]
    marks: dict[Device, list[Mark]]
    reads: dict[Device, list[ReadBack]]
    views: dict[Device, View]

    @classmethod
    def empty(cls) -> Self:
        """Return no facts."""
        return cls(defaultdict(list), defaultdict(list), defaultdict(list), defaultdict(list), defaultdict(list), {})


def judge(history: History) -> Verdict:
    """Judge a history. Needs at least one reading of the tables that covers every conversation from seq 1 on."""
    if not history.readings:
        raise ValueError("a history without a reading of the tables proves nothing")
    verdict = Verdict()
    (_, truth), *others = history.readings.items()
    peers_of, devices_of = _peers(history), _devices_of(history)
    for conversation_id, facts in sorted(_by_conversation(history, truth).items()):
        stored = _judge_timeline(conversation_id, truth.get(conversation_id, ()), verdict)
        for source, reading in others:
            _judge_reading(source, stored, reading.get(conversation_id, ()), conversation_id, verdict)
        _judge_commands(facts, stored, history, verdict)
        stays = _stays(conversation_id, stored, peers_of)
        concerned = {device: None for user in stays for device in devices_of.get(user, ())} | dict.fromkeys(facts.shown)
        for device in concerned:
            own = history.devices[device]
            _judge_device(conversation_id, device, own, facts, stored, stays.get(device.user_id, ()), verdict)
        judge_marks(facts.marks, verdict)
        judge_reads(facts.reads, stored, verdict)
        judge_views(facts.views, stored, stays, verdict)
    return verdict


def _devices_of(history: History) -> dict[str, list[Device]]:
    """Return each user's devices."""
    devices: dict[str, list[Device]] = defaultdict(list)
    for device in history.devices:
        devices[device.user_id].append(device)
    return devices


def _peers(history: History) -> Callable[[str, set[str]], set[str]]:
    """Return who tells the users of a 1-1 conversation by its id, which is made of theirs; else those who wrote there are told."""
    recorded = {device.user_id for device in history.devices}

    @cache
    def conversations_of(user: str) -> dict[str, str]:
        return {direct_conversation_id(user, peer): peer for peer in recorded | {user}}

    def peers_of(conversation_id: str, actors: set[str]) -> set[str]:
        known = ((user, conversations_of(user).get(conversation_id)) for user in sorted(actors))
        return next(({user, peer} for user, peer in known if peer is not None), actors)

    return peers_of


def _by_conversation(history: History, truth: Mapping[str, Sequence[Entry]]) -> dict[str, _Conversation]:
    facts: dict[str, _Conversation] = defaultdict(_Conversation.empty)
    for conversation_id in truth:
        facts[conversation_id]  # a timeline that no device knows of is judged too
    for device, own in history.devices.items():
        for asked in own.asked:
            facts[asked.conversation_id].asked[device].append(asked)
        for answered in own.answered:
            facts[answered.conversation_id].answered[device].append(answered)
        for run, entry in own.shown:
            facts[entry.conversation_id].shown[device].append((run, entry))
        for mark in own.marks:
            facts[mark.conversation_id].marks[device].append(mark)
        for read in own.reads:
            facts[read.conversation_id].reads[device].append(read)
        if own.settled:
            for view in own.views:
                facts[view.conversation_id].views[device] = view
    return facts


def _judge_timeline(conversation_id: str, timeline: Iterable[Entry], verdict: Verdict) -> dict[int, Entry]:
    """Judge that seqs are contiguous from 1 and no command is stored twice; return what is stored, by seq."""
    stored: dict[int, Entry] = {}
    seq_of: dict[tuple[Device, bytes], int] = {}
    head = 0
    for entry in timeline:
        if entry.seq in stored:
            verdict.blame(Fault.DUPLICATED, Guarantee.ONE_ORDER, f"{conversation_id} seq {entry.seq} was read twice")
            continue
        if entry.seq < head:
            verdict.blame(Fault.MISORDERED, Guarantee.ONE_ORDER, f"{conversation_id} seq {entry.seq} was read after seq {head}")
        stored[entry.seq] = entry
        head = max(head, entry.seq)
        first = seq_of.setdefault((entry.actor, entry.request_id), entry.seq)
        if first != entry.seq:
            verdict.blame(Fault.DUPLICATED, Guarantee.ONCE, f"{conversation_id} holds {_name(entry)} also as seq {first}")
    missing = head - len(stored)
    if missing:
        at = next(seq for seq in count(1) if seq not in stored)
        what = f"{conversation_id} holds nothing at seq {at} though its head is {head}"
        verdict.blame(Fault.GAPS, Guarantee.CONTIGUOUS, what, missing)
    verdict.stored += len(stored)
    verdict.judged[Guarantee.ONCE] += len(stored)
    verdict.judged[Guarantee.CONTIGUOUS] += head
    return stored


def _judge_reading(
    source: str, stored: Mapping[int, Entry], reading: Iterable[Entry], conversation_id: str, verdict: Verdict
) -> None:
    """Judge that another reading of the tables found the same."""
    found = {entry.seq: entry for entry in reading}
    for seq in sorted(stored.keys() | found.keys()):
        truth, told = stored.get(seq), found.get(seq)
        if truth != told:
            verdict.blame(Fault.DISAGREEING, Guarantee.ONE_ORDER, f"{conversation_id} seq {seq}: {source} says {told}, not {truth}")


def _judge_commands(facts: _Conversation, stored: Mapping[int, Entry], history: History, verdict: Verdict) -> None:
    """Judge what is stored against what was asked and answered."""
    seq_of = {(entry.actor, entry.request_id): entry.seq for entry in reversed(list(stored.values()))}  # the first wins
    wanted: dict[tuple[Device, bytes], Asked] = {}
    for device in dict.fromkeys((*facts.asked, *facts.answered)):
        answers = _judge_answers(device, facts.answered.get(device, ()), stored, seq_of, verdict)
        last = 0
        for asked in facts.asked.get(device, ()):
            key = (device, asked.request_id)
            wanted[key] = asked
            seq = seq_of.get(key)
            if asked.request_id not in answers:
                verdict.unanswered += 1
            if seq is None:
                continue
            verdict.judged[Guarantee.SENDERS_ORDER] += 1
            if seq < last:
                verdict.blame(
                    Fault.MISORDERED,
                    Guarantee.SENDERS_ORDER,
                    f"{_name(stored[seq])} was asked for after what is stored as seq {last}",
                )
            last = max(last, seq)
    for entry in stored.values():
        if entry.actor not in history.devices:
            continue  # nobody recorded what this device asked for
        verdict.judged[Guarantee.INTACT] += 1
        origin = wanted.get((entry.actor, entry.request_id))
        if origin is None:
            verdict.blame(Fault.INVENTED, Guarantee.INTACT, f"{_name(entry)} is stored, its device never asked for it")
        elif (origin.kind, origin.body) != (entry.kind, entry.body):
            verdict.blame(Fault.CORRUPTED, Guarantee.INTACT, f"{_name(entry)} is stored with another content than was asked for")


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
        name = f"{device} {answer.request_id.hex()} in {answer.conversation_id}"
        if answer.request_id in fates:
            before = fates[answer.request_id]
            if before != answer.seq:
                verdict.blame(Fault.CONTRADICTED, Guarantee.ONCE, f"{name} was answered {answer.seq} after {before} (0: rejected)")
            continue
        fates[answer.request_id] = answer.seq
        at = seq_of.get((device, answer.request_id))
        if not answer.seq:
            verdict.rejected += 1
            if at is not None:
                verdict.blame(Fault.CONTRADICTED, Guarantee.ONCE, f"{name} was rejected and is stored as seq {at}")
            continue
        verdict.acked += 1
        verdict.judged[Guarantee.STORED] += 1
        if at is None:
            verdict.blame(Fault.LOST, Guarantee.STORED, f"{name} was accepted as seq {answer.seq} and is not stored")
        elif not _is(stored.get(answer.seq), device, answer.request_id):
            what = f"{name} was accepted as seq {answer.seq} and is stored as seq {at}"
            verdict.blame(Fault.CONTRADICTED, Guarantee.STORED, what)
    return fates


def _stays(
    conversation_id: str, stored: Mapping[int, Entry], peers_of: Callable[[str, set[str]], set[str]]
) -> dict[str, list[tuple[int, int]]]:
    """Return each user's stays, first and last seq inclusive, as the stored timeline tells them."""
    if not stored:
        return {}
    head = max(stored)
    if conversation_id.startswith(DIRECT_PREFIX):
        actors = {entry.actor.user_id for entry in stored.values()}
        return {user: [(1, head)] for user in sorted(peers_of(conversation_id, actors))}
    stays: dict[str, list[tuple[int, int]]] = defaultdict(list)
    since: dict[str, int] = {}  # of those who are members at this point of the timeline
    for seq in sorted(stored):
        for user in stored[seq].joined:
            since.setdefault(user, seq)
        for user in stored[seq].left:
            if user in since:
                stays[user].append((since.pop(user), seq))
    for user, first in since.items():
        stays[user].append((first, head))
    return stays


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
    who = str(device)
    held = {answer.seq for answer in facts.answered.get(device, ())}  # its own commands come as outcomes
    shown = facts.shown.get(device, ())
    latest, seen, current = 0, set[int](), None
    for run, entry in shown:
        if run != current:
            latest, seen, current = 0, set(), run
        if entry.seq in seen:
            verdict.blame(Fault.DUPLICATED, Guarantee.SHOWN_ONCE, f"{who} showed {_name(entry)} twice")
        elif entry.seq < latest:
            verdict.blame(Fault.MISORDERED, Guarantee.ONE_ORDER, f"{who} showed {_name(entry)} after seq {latest}")
        seen.add(entry.seq)
        held.add(entry.seq)
        latest = max(latest, entry.seq)
        truth = stored.get(entry.seq)
        if entry != truth:
            verdict.blame(
                Fault.DISAGREEING,
                Guarantee.ONE_ORDER,
                f"{who} showed {_name(entry)}, stored is {_name(truth) if truth else 'nothing'}",
            )
        if not _within(stays, entry.seq):
            verdict.blame(Fault.LEAKED, Guarantee.MEMBERS_ONLY, f"{who} showed {_name(entry)}, whose user was no member then")
    for guarantee in (Guarantee.ONE_ORDER, Guarantee.SHOWN_ONCE, Guarantee.MEMBERS_ONLY):
        verdict.judged[guarantee] += len(shown)
    if not own.settled:
        return
    first_held: float = own.first_held.get(conversation_id, 1)
    if conversation_id in own.scrolled:  # what was scrolled to is held, and was no news
        first_held = min((entry.seq for _, entry in shown), default=math.inf)
    due = [seq for seq in stored if seq >= first_held and _within(stays, seq)]
    verdict.judged[Guarantee.COMPLETE] += len(due)
    missing = sorted(seq for seq in due if seq not in held)
    if missing:
        verdict.blame(
            Fault.LOST,
            Guarantee.COMPLETE,
            f"{who} never showed {_name(stored[missing[0]])} nor {len(missing) - 1} others",
            len(missing),
        )


def _within(stays: Sequence[tuple[int, int]], seq: int) -> bool:
    return any(first <= seq <= last for first, last in stays)


def _is(entry: Entry | None, device: Device, request_id: bytes) -> bool:
    return entry is not None and entry.actor == device and entry.request_id == request_id


def _name(entry: Entry) -> str:
    command = f"{entry.actor} {entry.request_id.hex()}"
    return f"{entry.kind} {command} ({entry.conversation_id} seq {entry.seq})"
