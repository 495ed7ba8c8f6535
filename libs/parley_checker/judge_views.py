"""What devices show beside events: watermarks that only rise, reads that find what was stored, counts that are right."""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from functools import cache

from parley_checker.guarantees import Guarantee
from parley_checker.history import Device, Entry, Mark, ReadBack, View
from parley_checker.verdict import Fault, Verdict


def judge_marks(marks: Mapping[Device, Sequence[Mark]], verdict: Verdict) -> None:
    """G11: what a device was told of a member's watermarks only rises, and read never passes delivered."""
    for device, told in marks.items():
        highest: dict[str, tuple[int, int]] = {}
        for mark in told:
            verdict.judged[Guarantee.WATERMARKS] += 1
            delivered, read = highest.get(mark.user_id, (0, 0))
            who = f"{device} was told that {mark.user_id} has {mark.delivered_seq}, read {mark.read_seq} in {mark.conversation_id}"
            if mark.delivered_seq < delivered or mark.read_seq < read:
                verdict.blame(Fault.BACKWARD, Guarantee.WATERMARKS, f"{who}, after {delivered}, {read}")
            elif mark.read_seq > mark.delivered_seq:
                verdict.blame(Fault.BACKWARD, Guarantee.WATERMARKS, f"{who}: more than it has")
            highest[mark.user_id] = max(delivered, mark.delivered_seq), max(read, mark.read_seq)


def judge_reads(reads: Mapping[Device, Sequence[ReadBack]], stored: Mapping[int, Entry], verdict: Verdict) -> None:
    """G10: a read finds what its reader knew to be stored, and nothing that is not."""
    head = max(stored, default=0)
    for device, told in reads.items():
        for read in told:
            verdict.judged[Guarantee.READ_YOUR_WRITES] += 1
            if not read.least_seq <= read.head_seq <= head:
                known = f"{read.conversation_id} seq {read.least_seq}"
                what = f"{device} knew that {known} is stored, and read a head of {read.head_seq}"
                verdict.blame(Fault.STALE, Guarantee.READ_YOUR_WRITES, what)


def judge_views(
    views: Mapping[Device, View], stored: Mapping[int, Entry], stays: Mapping[str, Sequence[tuple[int, int]]], verdict: Verdict
) -> None:
    """G12: at the end unread is the messages of others above the read watermark, up to the head that the user may see."""

    @cache
    def messages_of_others(user: str) -> list[int]:
        return sorted(seq for seq, entry in stored.items() if entry.kind == "message" and entry.actor.user_id != user)

    for device, view in views.items():
        user = device.user_id
        if not (own := stays.get(user)):
            continue
        verdict.judged[Guarantee.UNREAD] += 1
        head = own[-1][1]
        seqs = messages_of_others(user)
        unread = bisect_right(seqs, head) - bisect_right(seqs, min(view.read_seq, head))
        told, counted = (view.held_seq, view.head_seq, view.unread_count), (head, head, unread)
        if told != counted:
            what = f"{device} shows of {view.conversation_id} (held, head, unread) = {told}, counted {counted}"
            verdict.blame(Fault.MISCOUNTED, Guarantee.UNREAD, what)
