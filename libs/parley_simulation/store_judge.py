"""Judges the store's work: tables against the log, against a replay of it, and against what was published."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from chassis.errors import reason_of
from chassis.timeline import Point
from parley.api.v1.events_pb2 import ConversationKind, Event
from parley.api.v1.messaging_service_pb2 import ServerBatch
from parley.log.v1.records_pb2 import CommandRecord, DeadLetter, EventRecord
from parley.store.v1.rows_pb2 import HeadRow, InboxRow, MemberRow
from parley_checker.guarantees import Guarantee
from parley_checker.history import Answered, Device, Entry, entry_of
from parley_checker.judge import judge
from parley_checker.verdict import Fault, Verdict
from parley_simulation.request_uses import Request, RequestUses
from parley_simulation.store_workload import Workload
from services.store import rows

Tables = Mapping[Point, tuple[int, bytes]]
STORIES_MAX = 10  # a kind


def judge_store(
    workload: Workload,
    records: Sequence[tuple[CommandRecord, int]],
    events: Sequence[EventRecord],
    letters: Sequence[bytes],
    tables: Tables,
    replayed: Tables,
) -> Verdict:
    """Judge one run, after heal and quiet. `records` come with their log times."""
    timelines = timelines_of(tables)
    entries = {conversation_id: [entry_of(event) for event in timeline.values()] for conversation_id, timeline in timelines.items()}
    uses = RequestUses(records, workload.undecidable)
    history = workload.history
    history.readings["tables"] = authored(timelines, uses)
    wrong = [*_collect_answers(workload, events, uses)]
    for device, asked in uses.later.items():
        history.device(*device).asked += asked
    verdict = judge(history)
    for story in wrong:
        verdict.blame(Fault.CONTRADICTED, Guarantee.ONCE, story)
    judge_replay(verdict, tables, replayed)
    judge_published(verdict, events, timelines, entries)
    judge_rows(verdict, workload.directs, records, tables, timelines)
    verdict.judged[Guarantee.BAD_INPUT] += len(workload.undecidable)
    found = {DeadLetter.FromString(letter).value for letter in letters}
    wanted = {(device, request_id) for device, request_id in workload.undecidable}
    lettered = {(Device(r.user_id, r.device_id), r.command.request_id) for r in map(CommandRecord.FromString, found)}
    if lettered != wanted:
        what = f"dead letters differ: missing {sorted(wanted - lettered)}, foreign {sorted(lettered - wanted)}"
        verdict.blame(Fault.LOST, Guarantee.BAD_INPUT, what)
    return verdict


def judge_replay(verdict: Verdict, tables: Tables, replayed: Tables) -> None:
    """G22: the log applied again, record by record and without faults, gives the same rows."""
    verdict.judged[Guarantee.REPLAY] += len(tables)
    for story in differences(tables, replayed):
        verdict.blame(Fault.DIFFERENT, Guarantee.REPLAY, story)


def judge_published(
    verdict: Verdict,
    events: Sequence[EventRecord],
    timelines: Mapping[str, Mapping[int, Event]],
    entries: Mapping[str, Sequence[Entry]],
) -> None:
    """G7, G9: what is stored is published, to those who may see it."""
    verdict.judged[Guarantee.MEMBERS_ONLY] += len(events)
    for story in judge_events(events, timelines, entries):
        leaked = " went to " in story
        fault, guarantee = (Fault.LEAKED, Guarantee.MEMBERS_ONLY) if leaked else (Fault.LOST, Guarantee.COMPLETE)
        verdict.blame(fault, guarantee, story)


def judge_rows(
    verdict: Verdict,
    directs: Mapping[str, tuple[str, str]],
    records: Sequence[tuple[CommandRecord, int]],
    tables: Tables,
    timelines: Mapping[str, Mapping[int, Event]],
) -> None:
    """G11, G12: watermarks and counts in the tables are what the log says."""
    verdict.judged[Guarantee.UNREAD] += sum(point.table == rows.INBOX for point in tables)
    for story in judge_inboxes(tables, timelines):
        verdict.blame(Fault.MISCOUNTED, Guarantee.UNREAD, story)
    verdict.judged[Guarantee.WATERMARKS] += len(directs)
    for story in judge_watermarks(directs, records, tables, timelines):
        verdict.blame(Fault.BACKWARD, Guarantee.WATERMARKS, story)


def timelines_of(tables: Tables) -> dict[str, dict[int, Event]]:
    timelines: defaultdict[str, dict[int, Event]] = defaultdict(dict)
    for point, (_, value) in tables.items():
        if point.table == rows.TIMELINE:
            event = Event.FromString(value)
            timelines[event.conversation_id][event.seq] = event
    return {conversation_id: dict(sorted(timeline.items())) for conversation_id, timeline in sorted(timelines.items())}


def authored(timelines: Mapping[str, Mapping[int, Event]], uses: RequestUses) -> dict[str, list[Entry]]:
    """Return what is stored, each later use of a request id as by another device."""
    found: dict[str, list[Entry]] = {}
    for conversation_id, timeline in timelines.items():
        for event in timeline.values():
            entry = entry_of(event)
            actor = uses.user_at((entry.actor, entry.request_id), event.time.ToMilliseconds())
            found.setdefault(conversation_id, []).append(entry._replace(actor=actor))
    return found


def _collect_answers(workload: Workload, events: Sequence[EventRecord], uses: RequestUses) -> Iterator[str]:
    """Put the published outcomes into the history; yield what is wrong with them by themselves."""
    answered: set[Request] = set()
    refused: set[Request] = set()
    stored = defaultdict[bytes, set[Device]](set)
    for timeline in workload.history.readings["tables"].values():
        for entry in timeline:
            stored[entry.request_id].add(entry.actor)
    for record in events:
        device = Device(record.user_id, record.device_id)
        for outcome in ServerBatch.FromString(record.own).outcomes:
            request = device, outcome.request_id
            answered.add(request)
            reason = reason_of(outcome.rejected) if outcome.WhichOneof("result") == "rejected" else ""
            if reason == "DEAD_LETTERED":
                if request not in workload.undecidable:
                    yield f"{device} {outcome.request_id.hex()} was dead-lettered: {outcome.rejected.message}"
            elif reason == "REQUEST_ID_REUSED":
                refused.add(request)
                if request not in uses.refused:
                    yield f"{device} {outcome.request_id.hex()} was refused as reused and was not"
            else:
                seq, time_ms = outcome.accepted.seq, outcome.accepted.time.ToMilliseconds()
                whose = uses.user_at(request, time_ms) if seq else uses.rejected_user(request, stored[outcome.request_id])
                workload.history.device(*whose).answered.append(Answered(outcome.request_id, record.conversation_id, seq))
    for device, request_id in sorted(uses.refused - refused):
        yield f"{device} {request_id.hex()} was used for another payload and not refused"
    for device, own in workload.history.devices.items():
        for asked in own.asked:
            if (device, asked.request_id) not in answered:
                yield f"{device} {asked.request_id.hex()} ({asked.kind}) was never answered"


def differences(tables: Tables, replayed: Tables) -> Iterator[str]:
    """G22: the log applied again, record by record and without faults, gives the same rows."""
    different = [point for point in sorted({*tables, *replayed}) if tables.get(point) != replayed.get(point)]
    for point in different[:STORIES_MAX]:
        yield f"{point.table} {point.partition} {point.key!r}: {_told(point, tables)}, replayed {_told(point, replayed)}"


def _told(point: Point, tables: Tables) -> str:
    if point not in tables:
        return "nothing"
    stamp, value = tables[point]
    kinds: dict[str, Any] = {
        rows.TIMELINE: Event,
        rows.INBOX: InboxRow,
        rows.STATE: HeadRow if point.key == rows.HEAD_KEY else MemberRow,
    }
    kind = kinds.get(point.table)
    return f"at {stamp} {' '.join(str(kind.FromString(value) if kind else value.hex()).split())}"


def judge_events(
    events: Sequence[EventRecord], timelines: Mapping[str, Mapping[int, Event]], entries: Mapping[str, Sequence[Entry]]
) -> Iterator[str]:
    """Every stored event is published, as stored, in order, to exactly those who were members then."""
    recipients = {conversation_id: _members_by_seq(timeline) for conversation_id, timeline in entries.items()}
    heads: defaultdict[str, int] = defaultdict(int)
    for record in events:
        for event in ServerBatch.FromString(record.shared).events:
            conversation_id, seq = event.conversation_id, event.seq
            if seq == heads[conversation_id] + 1:
                heads[conversation_id] = seq
            elif seq > heads[conversation_id]:
                yield f"{conversation_id} seq {seq} was published before seq {heads[conversation_id] + 1}"
            if event != timelines.get(conversation_id, {}).get(seq):
                yield f"{conversation_id} seq {seq} was published otherwise than it is stored"
            elif record.all_members:
                continue  # named by the router: the devices' views are judged
            elif conversation_id.startswith("g_") and {*record.recipients} != (seen := recipients[conversation_id][seq]):
                yield f"{conversation_id} seq {seq} went to {sorted(record.recipients)}, not {sorted(seen)}"
    for conversation_id, timeline in timelines.items():
        if heads[conversation_id] != len(timeline):
            yield f"{conversation_id} was published up to seq {heads[conversation_id]} of {len(timeline)}"


def _members_by_seq(timeline: Sequence[Entry]) -> dict[int, set[str]]:
    """Return who sees each event of a group: the joining and the leaving included."""
    members: set[str] = set()
    seen: dict[int, set[str]] = {}
    for entry in timeline:
        members |= {*entry.joined}
        seen[entry.seq] = set(members)
        members -= {*entry.left}
    return seen


def judge_inboxes(tables: Tables, timelines: Mapping[str, Mapping[int, Event]]) -> Iterator[str]:
    """G12: what each user's rows say equals what counting says."""
    for point, (_, value) in tables.items():
        if point.table != rows.INBOX:
            continue
        user, conversation_id, inbox = point.partition, point.key.decode(), InboxRow.FromString(value)
        if inbox.large:
            continue  # says no more than that he has it
        if (row := tables.get(Point(rows.STATE, conversation_id, user.encode()))) is None or conversation_id not in timelines:
            yield f"{user}'s inbox has {conversation_id}, which is not there"
            continue
        member = MemberRow.FromString(row[1])
        timeline = timelines[conversation_id]
        head = member.stays[-1].last_seq or len(timeline)
        unread = sum(
            event.WhichOneof("content") == "message" and event.actor_user_id != user
            for seq, event in timeline.items()
            if inbox.read_seq < seq <= head
        )
        if inbox.kind == ConversationKind.CONVERSATION_KIND_SELF:
            unread = 0
        told = (inbox.head_seq, inbox.unread_count, inbox.read_seq, inbox.delivered_seq, inbox.left)
        counted = (head, unread, member.read_seq, member.delivered_seq, bool(member.stays[-1].last_seq))
        if told != counted:
            yield f"{user}'s inbox says of {conversation_id} (head, unread, read, delivered, left) = {told}, counted {counted}"
        if not inbox.read_seq <= inbox.delivered_seq <= head:
            yield f"{user}'s watermarks in {conversation_id} are {inbox.read_seq}, {inbox.delivered_seq} at head {head}"


def judge_watermarks(
    directs: Mapping[str, tuple[str, str]],
    records: Sequence[tuple[CommandRecord, int]],
    tables: Tables,
    timelines: Mapping[str, Mapping[int, Event]],
) -> Iterator[str]:
    """G11 in 1-1 conversations: watermarks are what a few lines of arithmetic over the log say."""
    for conversation_id, users in directs.items():
        timeline = timelines.get(conversation_id, {}).items()
        seq_of = {(e.actor_device_id, e.request_id, e.time.ToMilliseconds()): seq for seq, e in timeline}
        head, delivered, read = 0, dict.fromkeys(users, 0), dict.fromkeys(users, 0)
        for record, time_ms in records:
            user = record.user_id
            if record.conversation_id != conversation_id or user not in read:
                continue
            if record.WhichOneof("body") == "ack":
                mark = min(record.ack.read_seq, head)
                read[user] = max(read[user], mark)
                delivered[user] = max(delivered[user], min(record.ack.delivered_seq, head), mark)
            elif seq_of.get((record.device_id, record.command.request_id, time_ms), 0) == head + 1:
                read[user] = max(read[user], min(record.command.seen_seq, head))
                delivered[user] = max(delivered[user], read[user])
                head += 1
        for user in read if head else ():
            if (row := tables.get(Point(rows.STATE, conversation_id, user.encode()))) is None:
                yield f"{user} has no row in {conversation_id}, whose head is {head}"
                continue
            member = MemberRow.FromString(row[1])
            told, counted = (member.delivered_seq, member.read_seq), (delivered[user], read[user])
            if told != counted:
                yield f"{user}'s watermarks in {conversation_id} are {told}, the log says {counted}"
