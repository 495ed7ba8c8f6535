"""Which slots are this gateway's, which it should have, and where everybody else is: a state machine that knows no registry.

What the registry shows comes in, with the time; plans (what to lock, what to let go) and the slots that have ended come out. The
rules, in the order of their weight:

- A slot ends here only by a definite answer: somebody else holds its lock. Silence, a lost session, a lock that is merely free end
  nothing: the devices stay, the lock is taken again.
- A free slot is taken by the healthy gateway with the highest rank, a bounded number a second, and by nobody new within
  `settle_seconds` of a session's beginning: it may be a registry that has lost its data, and whose slot it is may come back.
- A slot that another one should have is let go in the registry first and served on until that one holds it.
"""

import math
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple

from chassis.rate import TokenBucket
from chassis.registry import Epoch, Holder, Instance
from parley.api.v1.messaging_service_pb2 import GoAwayReason
from parley_protocol.slots import DRAINING_PREFIX, fingerprint, rank, slot_of, slot_of_key
from services.gateway.goodbyes import Goodbye

KEYS_A_TRANSACTION: Final = 64  # Consul's bound
_HANDOVER_SECONDS: Final = 5.0  # for the one who should have a slot to take it; then it is taken back
_AGAIN_SECONDS: Final = 1.0  # after a lock was refused that looked free: a registry keeps those of the dead closed for a moment
_NEVER: Final = -math.inf
_SESSIONS_KEPT: Final = 64  # of ours, to know them in old views: those are seconds old, and a session lives for seconds at least
UNSURE_SECONDS: Final = 1.0  # then a device asks again where it belongs: a dead gateway's slots are taken within a few seconds
UNSURE_DETAIL: Final = "it is not clear at the moment which gateway serves this user"


class Plan(NamedTuple):
    """What to ask of the registry now, and when to look again at the latest (monotonic)."""

    acquire: Sequence[int]
    release: Sequence[int]
    again_at: float


class Ended(NamedTuple):
    """A slot that is another one's now, and where that one is (empty: not known)."""

    slot: int
    address: str


class Slots:
    """The state. `epochs` are the slots that are served here, each with the epoch that frames for it must bear."""

    def __init__(
        self, instance_id: str, slot_count: int, *, settle_seconds: float, slots_per_second: float, alone: bool = False
    ) -> None:
        """Begin without a slot. `alone`: no other gateway is, or ever was, in the registry, so there is nothing to wait for."""
        self.alone = alone
        self.epochs: dict[int, Epoch] = {}
        self._fingerprint = 0  # of the epochs; 0: to be computed
        self.since: dict[int, float] = {}  # when a slot that is served here came from elsewhere
        self.draining = False
        self.public_address = ""  # where devices find this gateway
        self._me = instance_id
        self.count = slot_count
        self._settle_seconds = 0.0 if alone else settle_seconds
        self._bucket = TokenBucket(slots_per_second, slot_count if alone else max(slots_per_second, KEYS_A_TRANSACTION))
        self._session_id = ""  # empty: none at the moment
        self._own_sessions: deque[str] = deque(maxlen=_SESSIONS_KEPT)
        self._strange_at = 0.0  # from then on slots may be taken that were not ours before
        self._holders: dict[int, Holder] | None = None  # as shown last; None: nothing was shown yet
        self._peers: dict[str, float] = {}  # since when it counts as a place for slots
        self._met = False  # somebody was shown: who comes now is a newcomer
        self._addresses: dict[str, str] = {}
        self._draining: frozenset[str] = frozenset()
        self._let_go: dict[int, float] = {}
        self._refused: dict[int, float] = {}
        self._unshown: set[int] = set()  # ours by an answer that no view has shown yet: one with another holder may be older
        self._doubted: set[int] = set()  # those where such a view came: the registry is asked
        self._told: dict[int, Epoch] = {}  # epochs of ours that a router says are over: an old view does not revive them
        self._winners: tuple[frozenset[str], list[str]] = (frozenset(), [])

    # What the registry says.

    def on_session(self, session_id: str, now: float) -> None:
        """Go on under a new session: what is served stays, nothing new is taken before things have settled."""
        self._session_id = session_id
        self._own_sessions.append(session_id)
        self._strange_at = now + self._settle_seconds

    def on_session_lost(self) -> None:
        """Note that the registry has ended the session. Nothing else ends by that."""
        self._session_id = ""

    def on_instances(self, instances: Iterable[Instance], now: float) -> None:
        """Note who is healthy. A newcomer is given nothing before it would take anything.

        Those who are shown first may have been there for long. Whoever comes later has a session that has just begun, also where
        nobody was shown before: as after a loss of all data.
        """
        shown = {instance.instance_id: instance for instance in instances}
        since = now + self._settle_seconds if self._met else _NEVER
        self._met = self._met or bool(shown)
        self._peers = {name: self._peers.get(name, since) for name in shown}
        self._addresses.update((name, instance.public_address) for name, instance in shown.items())
        for name in self._addresses.keys() - shown.keys():
            del self._addresses[name]

    def on_holders(self, view: Mapping[str, Holder], now: float) -> list[Ended]:
        """Note who holds what; return the slots that have ended here."""
        self._draining = frozenset(key.removeprefix(DRAINING_PREFIX) for key in view if key.startswith(DRAINING_PREFIX))
        holders = {slot: holder for key, holder in view.items() if (slot := slot_of_key(key)) is not None and slot < self.count}
        self._holders = holders
        ended = []
        for slot, holder in holders.items():
            epoch = self.epochs.get(slot)
            if epoch == holder.epoch:
                self._unshown.discard(slot)
                self._doubted.discard(slot)
            elif holder.epoch.session_id not in self._own_sessions:
                if slot in self._unshown:
                    self._doubted.add(slot)
                elif epoch is not None:
                    ended.append(self._end(slot, holder))
            elif holder.epoch.session_id == self._session_id and self._told.get(slot) != holder.epoch:
                self._begin(slot, holder.epoch, now)  # ours by an answer that never came
        return ended

    def on_acquired(self, asked: Iterable[int], held: Mapping[int, Epoch], now: float) -> list[Ended]:
        """Note what an attempt to lock has brought; return the slots that have ended here, as a view had said."""
        ended = []
        for slot in asked:
            epoch = held.get(slot)
            holder = self._holders.get(slot) if self._holders is not None else None
            if epoch is None:
                self._refused[slot] = now + _AGAIN_SECONDS
                if slot in self._doubted and holder is not None and holder.instance_id != self._me:
                    ended.append(self._end(slot, holder))
            else:
                if self.epochs.get(slot) != epoch:
                    self._unshown.add(slot)
                self._begin(slot, epoch, now)
                if self._holders is not None:  # the watch will show it, later than the next plan
                    self._holders[slot] = Holder(self._me, epoch)
        return ended

    def on_released(self, slots: Iterable[int], now: float) -> None:
        """Note that slots are free for those who should have them. They are served until those do."""
        for slot in slots:
            self._let_go[slot] = now
            if self._holders is not None:
                self._holders.pop(slot, None)

    def on_told(self, slot: int, epoch: Epoch, holder: Holder, address: str) -> Ended | None:
        """Take a router's word that a slot, ours under that epoch, is another one's now: as definite as the registry's own."""
        if self.epochs.get(slot) != epoch or holder.epoch.session_id in self._own_sessions:
            return None
        self._told[slot] = epoch
        if self._holders is not None:
            self._holders[slot] = holder
        if address:
            self._addresses.setdefault(holder.instance_id, address)
        return self._end(slot, holder)

    @property
    def fingerprint(self) -> int:
        """Return one number over all that is served here."""
        if not self._fingerprint:
            self._fingerprint = fingerprint(self.epochs)
        return self._fingerprint

    def _begin(self, slot: int, epoch: Epoch, now: float) -> None:
        self._fingerprint = 0
        self._doubted.discard(slot)
        if slot not in self.epochs:
            self.since[slot] = now
        self.epochs[slot] = epoch
        self._let_go.pop(slot, None)
        self._refused.pop(slot, None)

    def _end(self, slot: int, holder: Holder) -> Ended:
        self._fingerprint = 0
        del self.epochs[slot], self.since[slot]
        self._unshown.discard(slot)
        self._doubted.discard(slot)
        self._let_go.pop(slot, None)
        return Ended(slot, self._addresses.get(holder.instance_id, ""))

    # What follows.

    @property
    def is_whole(self) -> bool:
        """Tell whether every slot is ours."""
        return len(self.epochs) == self.count

    @property
    def is_clear(self) -> bool:
        """Tell whether it is known of every slot where its devices belong."""
        return all(self.address_of(slot) is not None for slot in range(self.count))

    @property
    def has_heir(self) -> bool:
        """Tell whether there is another gateway that slots can go to."""
        return any(name != self._me and name not in self._draining for name in self._peers)

    @property
    def shared_among(self) -> frozenset[str]:
        """Return the gateways that the last plan shared the slots out among."""
        return self._winners[0]

    def slot_of(self, user_id: str) -> int:
        """Return a user's slot."""
        return slot_of(user_id, self.count)

    def misplaced(self, user_id: str) -> Goodbye | None:
        """Return what to tell a device of a user who is not served here, None to one who is."""
        slot = slot_of(user_id, self.count)
        if slot in self.epochs:
            return None
        address = self.address_of(slot)
        if address is None:
            return Goodbye(GoAwayReason.GO_AWAY_REASON_OVERLOADED, UNSURE_DETAIL, delay_seconds=UNSURE_SECONDS)
        return Goodbye(GoAwayReason.GO_AWAY_REASON_MOVED, "another gateway serves this user", address)

    def owner_of(self, slot: int) -> Holder | None:
        """Return who owns a slot, as far as is known."""
        epoch = self.epochs.get(slot)
        if epoch is not None:
            return Holder(self._me, epoch)
        holder = self._holders.get(slot) if self._holders is not None else None
        return holder if holder is not None and holder.instance_id != self._me else None

    def address_of(self, slot: int) -> str | None:
        """Return where devices of a slot belong (empty: at the address that they came by), None if that is not known for sure."""
        if slot in self.epochs:
            return self.public_address
        owner = self.owner_of(slot)
        return self._addresses.get(owner.instance_id) or None if owner is not None else None

    def plan(self, now: float) -> Plan:
        """Return what to ask of the registry now; each list fits into one transaction."""
        if not self._session_id or self._holders is None:
            return Plan((), (), math.inf)
        winners = self._winners_at(now)
        times = [self._strange_at, *self._peers.values()]
        back: list[int] = []  # served here and free: nothing moves
        new: list[int] = []
        leaving: list[int] = []
        for slot in range(self.count):
            holder, served = self._holders.get(slot), slot in self.epochs
            mine = bool(winners) and winners[slot] == self._me
            if holder is None or slot in self._doubted:
                until = max(self._refused.get(slot, now), self._let_go.get(slot, _NEVER) + _HANDOVER_SECONDS)
                if until > now:
                    times.append(until)
                elif served:
                    back.append(slot)
                elif mine and now >= self._strange_at:
                    new.append(slot)
            elif served and winners and not mine and holder.epoch.session_id == self._session_id:
                leaving.append(slot)
        acquire = back[:KEYS_A_TRANSACTION]
        release: list[int] = []
        for move, to in ((new, acquire), (leaving, release)):
            while move and len(to) < KEYS_A_TRANSACTION:
                if wait := self._bucket.take(now):
                    times.append(now + wait)
                    break
                to.append(move.pop(0))
        return Plan(acquire, release, min((time for time in times if time > now), default=math.inf))

    def _winners_at(self, now: float) -> list[str]:
        """Return who should have each slot; empty: nobody can."""
        draining = self._draining | ({self._me} if self.draining else frozenset())
        names = {name for name, since in self._peers.items() if since <= now} | {self._me}
        names -= draining
        if self._winners[0] != names:
            ordered = sorted(names)
            best = [max((rank(name, slot), name) for name in ordered)[1] for slot in range(self.count)] if ordered else []
            self._winners = (frozenset(names), best)
        return self._winners[1]
