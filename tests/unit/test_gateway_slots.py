"""Which slots a gateway takes, keeps and lets go, and when: transitions one by one, then whole clusters on a faulty registry."""

import math

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from chassis.registry import Epoch, Holder, Instance
from parley.api.v1.messaging_service_pb2 import GoAwayReason
from parley_protocol.slots import DRAINING_PREFIX, rank, slot_key, slot_of
from services.gateway.slots import KEYS_A_TRANSACTION, UNSURE_DETAIL, UNSURE_SECONDS, Ended, Slots
from tests.unit.slots_scene import COUNT, FIRST, ONE, SETTLE, TWO, gateway, held, owner


def test_nothing_is_asked_for_before_the_registry_has_shown_who_holds_what():
    slots = gateway(alone=True)
    assert slots.plan(0.0) == ((), (), math.inf)
    slots.on_session_lost()
    slots.on_holders({}, 0.0)
    assert slots.plan(0.0) == ((), (), math.inf)


def test_a_gateway_alone_takes_all_slots_at_once_64_a_transaction():
    slots = gateway(1024, rate=1.0, alone=True)
    slots.on_instances([ONE], 0.0)
    slots.on_holders({}, 0.0)
    for _ in range(1024 // KEYS_A_TRANSACTION):
        plan = slots.plan(0.0)
        assert len(plan.acquire) == KEYS_A_TRANSACTION
        slots.on_acquired(plan.acquire, {slot: Epoch("s1", slot) for slot in plan.acquire}, 0.0)
    assert slots.is_whole
    assert slots.plan(0.0) == ([], [], math.inf)


def test_a_new_gateway_waits_before_it_takes_what_may_be_anothers():
    slots = gateway()
    slots.on_instances([ONE, TWO], 0.0)
    slots.on_holders({}, 0.0)
    assert slots.plan(SETTLE - 0.01) == ([], [], SETTLE)
    assert set(slots.plan(SETTLE).acquire) == FIRST


def test_what_is_taken_a_second_is_bounded():
    slots = gateway(1024, rate=64.0)
    slots.on_instances([ONE], 0.0)
    slots.on_holders({}, 0.0)
    first = slots.plan(SETTLE)
    assert len(first.acquire) == 64
    slots.on_acquired(first.acquire, {slot: Epoch("s1", 1) for slot in first.acquire}, SETTLE)
    second = slots.plan(SETTLE)
    assert (second.acquire, second.again_at) == ([], pytest.approx(SETTLE + 1 / 64))
    assert len(slots.plan(SETTLE + 0.5).acquire) == 32


def test_a_lock_that_is_refused_though_it_looks_free_is_asked_for_again_a_moment_later():
    slots = gateway()
    slots.on_instances([ONE], 0.0)
    slots.on_holders({}, 0.0)
    slots.on_acquired(range(COUNT), {}, SETTLE)
    assert slots.plan(SETTLE + 0.5) == ([], [], SETTLE + 1.0)
    assert list(slots.plan(SETTLE + 1.0).acquire) == list(range(COUNT))


@pytest.mark.parametrize("view", [{}, held(range(COUNT)), held(range(COUNT), session="s0", index=9)], ids=["free", "ours", "old"])
def test_nothing_ends_a_slot_but_another_ones_lock(view):
    """Neither a lock that is free, nor a view of before, nor the session's end, nor silence."""
    slots = owner()
    slots.on_session_lost()
    slots._own_sessions.append("s0")
    assert slots.on_holders(view, 1.0) == []
    assert slots.misplaced("alice") is None
    assert set(slots.epochs) == set(range(COUNT))


def test_of_ones_own_sessions_the_newest_are_remembered_and_not_each_of_a_life():
    slots = owner()
    for number in range(10_000):
        slots.on_session_lost()
        slots.on_session(f"again {number}", float(number))
    assert slots.on_holders(held(range(COUNT), session="again 9998", index=9), 10_000.0) == [], "an old view"
    assert len(slots._own_sessions) < 1_000


def test_a_slot_that_another_one_holds_has_ended_and_its_devices_are_told_where_it_is():
    slots = owner()
    mine = slot_of("alice", COUNT)
    assert slots.on_holders(held(range(COUNT)) | held([mine], "g2", "s9", 7), 1.0) == [Ended(mine, "g2:1")]
    goodbye = slots.misplaced("alice")
    assert goodbye is not None
    assert (goodbye.reason, goodbye.address) == (GoAwayReason.GO_AWAY_REASON_MOVED, "g2:1")
    assert slots.address_of(mine) == "g2:1"


@pytest.mark.parametrize("view", [{}, held([slot_of("alice", COUNT)], "g3", "s9")], ids=["free", "of one who is not there"])
def test_who_belongs_nowhere_for_sure_comes_again(view):
    slots = gateway()
    slots.on_instances([ONE, TWO], 0.0)
    slots.on_holders(view, 0.0)
    goodbye = slots.misplaced("alice")
    assert goodbye is not None
    assert goodbye == (GoAwayReason.GO_AWAY_REASON_OVERLOADED, UNSURE_DETAIL, "", UNSURE_SECONDS)
    assert UNSURE_DETAIL
    assert UNSURE_SECONDS == 1.0, "a dead gateway's slots are taken within a few"
    assert slots.address_of(slot_of("alice", COUNT)) is None


def test_after_a_lost_session_ones_own_slots_are_taken_again_at_once_and_strange_ones_later():
    """The registry may have lost its data: whose slots the others are may come back."""
    slots = owner(of=FIRST)
    slots.on_holders({}, 20.0)
    slots.on_session_lost()
    slots.on_session("s2", 20.0)
    slots.on_instances([ONE], 20.0)
    plan = slots.plan(20.0)
    assert set(plan.acquire) == FIRST
    slots.on_acquired(plan.acquire, {slot: Epoch("s2", 1) for slot in plan.acquire}, 20.0)
    assert slots.plan(29.9).acquire == []
    assert set(slots.plan(30.0).acquire) == set(range(COUNT)) - FIRST
    assert all(slots.since[slot] == 0.0 for slot in FIRST), "their devices never left"


def test_what_another_one_should_have_is_let_go_and_served_until_he_holds_it():
    slots = owner()
    plan = slots.plan(1.0)
    assert set(plan.release) == set(range(COUNT)) - FIRST
    slots.on_released(plan.release, 1.0)
    assert slots.on_holders(held(FIRST), 1.1) == []
    assert slots.is_whole
    gone = slots.on_holders(held(FIRST) | held(plan.release, "g2", "s9"), 1.2)
    assert {ended.slot for ended in gone} == set(plan.release)


def test_what_nobody_takes_is_taken_back():
    slots = owner()
    plan = slots.plan(1.0)
    slots.on_released(plan.release, 1.0)
    slots.on_holders(held(FIRST), 1.1)
    assert slots.plan(5.9) == ([], [], 6.0)
    assert set(slots.plan(6.0).acquire) == set(plan.release)


def test_a_newcomer_is_given_nothing_before_he_would_take_it():
    slots = owner(instances=(ONE,))
    slots.on_instances([ONE, TWO], 50.0)
    assert slots.plan(50.0) == ([], [], 50.0 + SETTLE)
    assert set(slots.plan(50.0 + SETTLE).release) == set(range(COUNT)) - FIRST


def test_whoever_comes_after_nobody_was_there_is_a_newcomer():
    """A registry that lost its data shows nobody for a moment, and who comes back has a session that has just begun."""
    slots = owner()
    slots.on_instances([], 50.0)
    slots.on_instances([ONE, TWO], 50.1)
    assert slots.plan(50.1) == ([], [], 50.1 + SETTLE)
    assert set(slots.plan(50.1 + SETTLE).release) == set(range(COUNT)) - FIRST


def test_who_begins_together_shares_though_nobody_was_shown_at_first():
    """Else each would take all that is free, since the others' time to settle ends a moment after his own."""
    slots = gateway()
    slots.on_instances([], 0.0)
    slots.on_instances([ONE, TWO], 0.1)
    slots.on_holders({}, 0.1)
    assert set(slots.plan(SETTLE).acquire) == FIRST


def test_one_that_drains_lets_all_go_and_takes_nothing():
    slots = owner()
    slots.draining = True
    assert set(slots.plan(1.0).release) == set(range(COUNT))
    assert slots.has_heir


def test_with_nobody_to_hand_them_to_a_draining_gateway_keeps_its_slots():
    slots = owner()
    slots.draining = True
    slots.on_holders(held(range(COUNT)) | {DRAINING_PREFIX + "g2": Holder("g2", Epoch("s9", 1))}, 1.0)
    assert not slots.has_heir
    assert slots.plan(1.0).release == []


def test_a_draining_gateway_is_given_nothing():
    slots = owner()
    slots.on_holders(held(range(COUNT)) | {DRAINING_PREFIX + "g2": Holder("g2", Epoch("s9", 1))}, 1.0)
    assert slots.plan(1.0).release == []


def test_an_answer_that_never_came_shows_in_the_view():
    slots = owner(of=())
    slots.on_holders(held([3]), 1.0)
    assert slots.epochs == {3: Epoch("s1", 1)}
    assert slots.since == {3: 1.0}


@pytest.mark.parametrize("ours", [True, False])
def test_a_view_that_may_be_older_than_our_lock_is_doubted_and_the_registry_asked(ours: bool):
    slots = owner(of=())
    slots.on_acquired([3], {3: Epoch("s1", 9)}, 1.0)
    assert slots.on_holders(held([3], "g2", "s9", 7), 1.1) == []
    assert slots.plan(1.1).acquire == [3]
    ended = slots.on_acquired([3], {3: Epoch("s1", 9)} if ours else {}, 1.2)
    assert ended == ([] if ours else [Ended(3, "g2:1")])
    assert (3 in slots.epochs) is ours
    assert slots.plan(1.2).acquire == []
    if ours:
        slots.on_holders(held([3], index=9), 1.3)
        assert slots.on_holders(held([3], "g2", "s9", 11), 1.4) == [Ended(3, "g2:1")], "that one is newer"


def test_a_router_s_word_ends_a_slot_and_an_old_view_does_not_bring_it_back():
    slots = owner()
    assert slots.on_told(3, Epoch("s1", 1), Holder("g9", Epoch("s9", 5)), "g9:1") == Ended(3, "g9:1")
    assert slots.address_of(3) == "g9:1"
    assert slots.on_holders(held(range(COUNT)), 2.0) == []
    assert 3 not in slots.epochs
    slots.on_holders(held(range(COUNT), index=2), 3.0)
    assert slots.epochs[3] == Epoch("s1", 2), "a new epoch is ours again"


class FaultyCluster(RuleBasedStateMachine):
    """Gateways on a registry whose views come late, whose answers get lost, which ends sessions and loses all its data.

    Whatever happens: a slot ends at a gateway only while another one holds, or held, its lock. And in the end each has one owner.
    """

    @initialize()
    def begin(self) -> None:
        self.now = 0.0
        self.index = 0
        self.locks: dict[str, Holder] = {}
        self.log: list[dict[str, Holder]] = [{}]
        self.seen: dict[str, int] = {}
        self.sessions: dict[str, str] = {}
        self.gateways: dict[str, Slots] = {}
        self.foreign: dict[str, set[tuple[int, Epoch]]] = {}
        for name in ("g1", "g2", "g3"):
            self.gateways[name] = Slots(name, COUNT, settle_seconds=SETTLE, slots_per_second=100.0)
            self.gateways[name].on_instances(self.instances(), self.now)
            self.open_session(name)
            self.seen[name] = 0
        for name in self.gateways:
            self.show(name, 1)
        self.now = SETTLE

    def instances(self) -> list[Instance]:
        return [Instance("gateway", name, "", f"{name}:1") for name in ("g1", "g2", "g3")]

    def open_session(self, name: str) -> None:
        self.index += 1
        self.sessions[name] = f"{name}/{self.index}"
        self.gateways[name].on_session(self.sessions[name], self.now)

    def changed(self) -> None:
        self.log.append(dict(self.locks))

    names = st.sampled_from(["g1", "g2", "g3"])

    @rule(name=names, answered=st.booleans(), shown=st.booleans())
    def step(self, name: str, answered: bool, shown: bool) -> None:
        """Act on a plan; the answer may get lost, and show itself in the next view."""
        slots, session = self.gateways[name], self.sessions[name]
        plan = slots.plan(self.now)
        held = {}
        for slot in plan.acquire:
            key = slot_key(slot)
            if session and key not in self.locks:
                self.index += 1
                self.locks[key] = Holder(name, Epoch(session, self.index))
            if key in self.locks and self.locks[key].epoch.session_id == session:
                held[slot] = self.locks[key].epoch
        if answered:
            slots.on_acquired(plan.acquire, held, self.now)
        slots.on_released(plan.release, self.now)
        for slot in plan.release:
            if self.locks.get(slot_key(slot), Holder("", Epoch("", 0))).epoch.session_id == session:
                del self.locks[slot_key(slot)]
        self.changed()
        if shown:
            self.show(name, len(self.log))

    @rule(name=names, skipped=st.integers(1, 5))
    def show(self, name: str, skipped: int) -> None:
        """Let a view arrive: views come in order, some are left out."""
        self.seen[name] = min(self.seen[name] + skipped, len(self.log) - 1)
        view = self.log[self.seen[name]]
        for ended in self.gateways[name].on_holders(view, self.now):
            assert view[slot_key(ended.slot)].instance_id != name, "only another one's lock ends a slot"

    @rule(seconds=st.sampled_from([0.1, 1.0, 6.0, 11.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule(name=names)
    def lose_session(self, name: str) -> None:
        before = set(self.gateways[name].epochs)
        self.locks = {key: holder for key, holder in self.locks.items() if holder.instance_id != name}
        self.changed()
        self.gateways[name].on_session_lost()
        self.open_session(name)
        assert set(self.gateways[name].epochs) == before

    @rule(empty=st.booleans())
    def lose_data(self, empty: bool) -> None:
        before = {name: set(slots.epochs) for name, slots in self.gateways.items()}
        self.locks = {}
        self.changed()
        for name, slots in self.gateways.items():
            slots.on_session_lost()
            self.open_session(name)
            assert set(slots.epochs) == before[name]
            if empty:  # also shown so, before all are back
                slots.on_instances([], self.now)
                slots.on_instances(self.instances(), self.now)
            plan = slots.plan(self.now)
            assert set(plan.acquire) <= before[name], "right after that nobody takes what was not his"
            assert not (empty and plan.release), "nor is given anything"

    @invariant()
    def what_is_held_is_served(self) -> None:
        """Nobody who has seen all turns away the users of a slot that he holds."""
        for name, slots in self.gateways.items():
            if self.seen.get(name) == len(self.log) - 1:
                mine = {key for key, holder in self.locks.items() if holder.epoch.session_id == self.sessions[name]}
                unserved = {key for key in mine if int(key.rpartition("/")[2]) not in slots.epochs}
                assert not unserved, f"{name} holds and does not serve {unserved}"

    @precondition(lambda self: self.gateways)
    @rule()
    def settle(self) -> None:
        """Let everything work for a while: each slot has exactly the owner that it should have, and everybody knows."""
        for _ in range(60):
            self.now += 0.5
            for name in self.gateways:
                self.step(name, True, True)
        for name in self.gateways:
            self.show(name, len(self.log))
        for name, slots in self.gateways.items():
            best = {slot for slot in range(COUNT) if max(self.gateways, key=lambda one, slot=slot: rank(one, slot)) == name}
            assert set(slots.epochs) == best
            assert {slot: self.locks[slot_key(slot)].epoch for slot in best} == slots.epochs


FaultyCluster.TestCase.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
TestClusters = FaultyCluster.TestCase
