"""Who owns each slot, as far as this router knows, and what of a batch of events goes to whom. Pure.

A table outlives the registry's silence: an owner is believed in until another one is shown. Epochs are compared for equality only.
"""

from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import NamedTuple

from chassis.registry import Epoch, Holder
from parley.gateway.v1.gateway_service_pb2 import SlotEpochs
from parley.log.v1.records_pb2 import EventRecord
from parley_protocol.slots import fingerprint, slot_of, slot_of_key


class Move(NamedTuple):
    """A slot went from one holder to another."""

    slot: int
    old: Holder
    new: Holder


class Part:
    """What one gateway gets of a batch: events cut to its users, and their slots."""

    __slots__ = ("all_slots", "events", "slots")

    def __init__(self) -> None:
        self.events: list[EventRecord] = []
        self.slots: AbstractSet[int] = set()
        self.all_slots = 0  # their fingerprint, if the gateway owns all


class SlotTable:
    """The owners."""

    def __init__(self, slot_count: int) -> None:
        self._count = slot_count
        self._owners: dict[int, Holder] = {}
        self._shown: dict[int, Holder] = {}  # by the registry, last: a gateway's word may be newer or older than its next view
        self._sole: tuple[str, int] | None = None  # who owns all slots, if there is such a one, and their fingerprint
        self._every_slot = frozenset(range(slot_count))

    def slot_of(self, user_id: str) -> int:
        """Return a user's slot."""
        return slot_of(user_id, self._count)

    def owner_of(self, slot: int) -> Holder | None:
        """Return a slot's last known owner."""
        return self._owners.get(slot)

    def on_holders(self, view: Mapping[str, Holder]) -> list[Move]:
        """Take in what the registry shows; return what went from one gateway to another. A free slot keeps its last owner.

        Only two views, one after the other, prove a move: an old owner believes it as it does the registry, and lets go.
        """
        moves = []
        for key, holder in view.items():
            slot = slot_of_key(key)
            if slot is None or slot >= self._count:
                continue
            before = self._shown.get(slot)
            if before is not None and before.instance_id != holder.instance_id:
                moves.append(Move(slot, before, holder))
            self._owners[slot] = self._shown[slot] = holder
        self._look_for_sole()
        return moves

    def on_refused(self, instance_id: str, refused: Iterable[int], owners: Iterable[SlotEpochs]) -> bool:
        """Take a gateway's word for slots that it was believed to own; return whether that is news."""
        asked = {slot for slot in refused if (owner := self._owners.get(slot)) is not None and owner.instance_id == instance_id}
        news = False
        for stamp in owners:
            for slot, lock_index in zip(stamp.slots, stamp.lock_indexes, strict=False):
                holder = Holder(stamp.owner_id, Epoch(stamp.session_id, lock_index))
                if slot in asked and self._owners[slot] != holder:
                    self._owners[slot] = holder
                    news = True
        self._look_for_sole()
        return news

    def _look_for_sole(self) -> None:
        names = {holder.instance_id for holder in self._owners.values()}
        if len(self._owners) == self._count and len(names) == 1:
            self._sole = names.pop(), fingerprint({slot: holder.epoch for slot, holder in self._owners.items()})
        else:
            self._sole = None

    def stamps(self, slots: Iterable[int]) -> list[SlotEpochs]:
        """Return slots, all of them known, with their epochs."""
        by_session: dict[str, tuple[list[int], list[int]]] = {}
        for slot in slots:
            session_id, lock_index = self._owners[slot].epoch
            numbers, indexes = by_session.setdefault(session_id, ([], []))
            numbers.append(slot)
            indexes.append(lock_index)
        return [
            SlotEpochs(session_id=session_id, slots=numbers, lock_indexes=indexes)
            for session_id, (numbers, indexes) in by_session.items()
        ]

    def split(self, events: Sequence[EventRecord]) -> tuple[dict[str, Part], list[EventRecord]]:
        """Cut events into what each gateway gets, by instance, and what belongs to users without an owner. The order stays.

        `own` goes to the actor's gateway, and to the one where he asked, if that is another: he may still be waiting there.
        """
        parts: dict[str, Part] = {}
        homeless: list[EventRecord] = []
        if self._sole is not None:
            name, all_slots = self._sole
            part = parts[name] = Part()
            part.events.extend(events)
            part.slots, part.all_slots = self._every_slot, all_slots
            return parts, homeless
        for event in events:
            self._split_one(event, parts, homeless)
        return parts, homeless

    def _split_one(self, event: EventRecord, parts: dict[str, Part], homeless: list[EventRecord]) -> None:
        places: dict[str, tuple[list[str], set[int]]] = {}  # by owner; "" for nobody
        for user_id in event.recipients:
            slot = slot_of(user_id, self._count)
            owner = self._owners.get(slot)
            users, slots = places.setdefault(owner.instance_id if owner is not None else "", ([], set()))
            users.append(user_id)
            slots.add(slot)
        own, actor = event.own, event.actor
        actor_place = None
        if own or actor:
            slot = slot_of(event.user_id, self._count)
            owner = self._owners.get(slot)
            actor_place = owner.instance_id if owner is not None else ""
            places.setdefault(actor_place, ([], set()))[1].add(slot)
            if own and event.gateway_id:
                places.setdefault(event.gateway_id, ([], set()))
        for name, (users, slots) in places.items():
            here = name == actor_place
            if len(places) == 1:
                cut = event
            else:
                cut = EventRecord(
                    conversation_id=event.conversation_id,
                    seq=event.seq,
                    user_id=event.user_id,
                    device_id=event.device_id,
                    gateway_id=event.gateway_id,
                    session_id=event.session_id,
                    recipients=users,
                    wakes=event.wakes,
                )
                if users:
                    cut.shared = event.shared
                if here or (name and name == event.gateway_id):
                    cut.own = own
                if here:
                    cut.actor = actor
            if not name:
                homeless.append(cut)
                continue
            part = parts.setdefault(name, Part())
            part.events.append(cut)
            part.slots = part.slots | slots


def refused_of(events: Sequence[EventRecord], refused: frozenset[int], table: SlotTable) -> list[EventRecord]:
    """Return what of the events a gateway did not deliver because it refused slots."""
    left = []
    for event in events:
        users = [user_id for user_id in event.recipients if table.slot_of(user_id) in refused]
        actor_refused = bool(event.own or event.actor) and table.slot_of(event.user_id) in refused
        if not users and not actor_refused:
            continue
        again = EventRecord()
        again.CopyFrom(event)
        del again.recipients[:]
        again.recipients.extend(users)
        if not actor_refused:
            again.own = again.actor = b""
        left.append(again)
    return left
