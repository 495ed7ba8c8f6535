"""Who gets an event of a large group, and what becomes of messages that no gateway takes."""

import asyncio
from collections.abc import Iterable
from contextlib import asynccontextmanager
from functools import partial
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from chassis.embedded import open_embedded_engines
from chassis.errors import Unavailable
from chassis.eventlog import LogEntry
from chassis.inprocess import InProcessChannel, InProcessServer
from chassis.registry import Instance
from chassis.testing.virtual_loop import VirtualClock, run_virtual
from parley.gateway.v1.gateway_service_pb2 import DeliverRequest, DeliverResponse
from parley.gateway.v1.gateway_service_pb2_grpc import (
    GatewayServiceServicer,
    GatewayServiceStub,
    add_GatewayServiceServicer_to_server,
)
from parley.log.v1.records_pb2 import EventBatch, EventRecord, MembershipChange, OfflineBatch
from parley.store.v1.store_service_pb2 import ListRecipientsResponse, Recipient
from parley_protocol.topics import EVENTS, OFFLINE
from services.router.app import open_router
from services.router.config import RouterSettings
from services.router.links import GatewayLink
from services.router.metrics import RouterMetrics
from services.router.recipients import Group, GroupCache

USERS = ("alice", "bob", "carol")
comings = st.lists(st.lists(st.sampled_from(USERS), max_size=2, unique=True), max_size=25)


class Model:
    """A group's history as sets: who sees each seq."""

    def __init__(self, toggles: list[list[str]]) -> None:
        """At each seq the users named come if they are away, else go."""
        self.changes: list[list[MembershipChange]] = []
        self.sees: list[set[str]] = []
        present: set[str] = set()
        for users in toggles:
            joining = {user for user in users if user not in present}
            self.changes.append([MembershipChange(user_id=user, joined=user in joining) for user in users])
            self.sees.append(present | joining)
            present = (present | joining) - ({*users} - joining)

    def answer(self, head_seq: int) -> ListRecipientsResponse:
        """Return what a store says at a head."""
        stays: dict[str, list[int]] = {}
        for seq, changes in enumerate(self.changes[:head_seq], 1):
            for change in changes:
                marks = stays.setdefault(change.user_id, [])
                if change.joined:
                    marks.extend((seq, 0))
                else:
                    marks[-1] = seq
        recipients = [Recipient(user_id=user, stays=marks) for user, marks in stays.items()]
        return ListRecipientsResponse(head_seq=head_seq, recipients=recipients)


def let_pass(group: Group, model: Model, seqs: Iterable[int]) -> None:
    for seq in seqs:
        group.apply(seq, model.changes[seq - 1])
        assert sorted(group.recipients(seq)) == sorted(model.sees[seq - 1])


def check_recipients(toggles: list[list[str]], data: st.DataObject) -> None:
    """Ask for a group at any head, then let events from any earlier seq on pass by, as after a restart."""
    model = Model(toggles)
    head_seq = data.draw(st.integers(0, len(toggles)))
    group = Group(model.answer(head_seq))
    let_pass(group, model, range(data.draw(st.integers(1, head_seq + 1)), len(toggles) + 1))


@given(comings, st.data())
def test_recipients_are_those_whose_stay_holds_the_seq(toggles, data):
    check_recipients(toggles, data)


def test_a_group_that_takes_changes_twice_is_found(monkeypatch):
    original = Group.apply

    def apply(self: Group, seq: int, changes: Any) -> None:
        self._head_seq = min(self._head_seq, seq - 1)
        original(self, seq, changes)

    monkeypatch.setattr(Group, "apply", apply)
    with pytest.raises(AssertionError):
        given(comings, st.data())(check_recipients)()


def test_changes_that_pass_by_again_count_once():
    """A store that crashed tells again what it told already."""
    model = Model([["alice"], [], ["bob"], ["bob"], ["carol"]])
    group = Group(model.answer(0))
    let_pass(group, model, [1, 2, 3])
    let_pass(group, model, [1, 2, 3, 4, 5])


def test_recipients_are_looked_for_anew_only_after_a_change():
    """A large group's stays are many, and its changes few."""
    group = Group(ListRecipientsResponse(head_seq=1, recipients=[Recipient(user_id="alice", stays=[1, 0])]))
    present = group.recipients(2)
    group.apply(3, [])
    assert group.recipients(3) is present
    group.apply(4, [MembershipChange(user_id="bob", joined=True)])
    assert group.recipients(5) == ["alice", "bob"]


def test_the_group_that_nobody_asked_for_the_longest_is_forgotten_first():
    groups, answer = GroupCache(2), ListRecipientsResponse(head_seq=1)
    groups.put("a", Group(answer))
    groups.put("b", Group(answer))
    groups.get("a")
    groups.put("c", Group(answer))
    assert [name for name in "abc" if groups.get(name)] == ["a", "c"]


def test_groups_are_forgotten_over_a_jump_and_beyond_their_number():
    groups, answer = GroupCache(2), ListRecipientsResponse(head_seq=1)
    groups.begin(0)
    for name in "abc":
        groups.put(name, Group(answer))
    assert [name for name in "abc" if groups.get(name)] == ["b", "c"]
    groups.finish(5)
    groups.begin(5)
    assert groups.get("b")
    groups.begin(6)  # the batch before did not end
    assert not groups.get("b")


@pytest.mark.parametrize("gateways", [0, 1])
def test_what_no_gateway_takes_is_named_to_the_offline_topic_and_the_rest_goes_on(gateways):
    """No gateway at all, or one that is registered and silent: after some patience its users' messages are for push."""
    named, seconds, _ = run_virtual(partial(route_to_nobody, gateways, []), 1, 3600.0)
    assert named == [("bob", 1), ("carol", 1)]
    assert 10.0 <= seconds < 25.0


def test_a_record_that_can_not_be_parsed_is_passed_over_loudly():
    """The router that ended at it would end there again, whoever starts it."""
    named, _, unreadable = run_virtual(partial(route_to_nobody, 0, [b"\x0a\xff"]), 1, 3600.0)
    assert named == [("bob", 1), ("carol", 1)]
    assert unreadable == 1


async def route_to_nobody(gateways: int, before: list[bytes], rng: Random) -> tuple[list[tuple[str, int]], float, float | None]:
    """Route two events behind what lies before them; return who is named to push, when, and how many records were unreadable."""
    topics, clock = {EVENTS: 1, OFFLINE: 1}, VirtualClock()
    async with open_embedded_engines(None, topics=topics, durable_topics=(), tables=(), clock=clock) as engines:

        @asynccontextmanager
        async def nobody_there(instance: Instance) -> Any:
            async with InProcessChannel(None, name=instance.instance_id) as channel:
                yield channel

        records = [
            EventRecord(conversation_id="c", seq=1, user_id="alice", shared=b"x", recipients=USERS, wakes=True),
            EventRecord(conversation_id="c", seq=2, user_id="bob", shared=b"a receipt", recipients=["alice"]),
        ]
        values = [*before, EventBatch(events=records).SerializeToString()]
        await engines.log.append(EVENTS, 0, [LogEntry(b"", value) for value in values])
        metrics = CollectorRegistry()
        async with (
            InProcessChannel(InProcessServer(), name="store") as store,
            open_router(
                RouterSettings(),
                log=engines.log,
                registry=engines.registry,
                store_channel=store,
                open_gateway_channel=nobody_there,
                clock=clock,
                metrics=metrics,
                rng=rng,
            ),
            engines.log.open_consumer(OFFLINE, "push") as consumer,
        ):
            if gateways:
                async with engines.registry.open_session(Instance("gateway", "g1", "nowhere")):
                    batch = await consumer.poll(10)
            else:
                batch = await consumer.poll(10)
            named = [one for record in batch.records for one in OfflineBatch.FromString(record.value).users]
            unreadable = metrics.get_sample_value("parley_router_unreadable_total")
            return [(one.user_id, one.seq) for one in named], asyncio.get_running_loop().time(), unreadable


class DeadCall:
    """A stream that has ended, though nobody who reads from it has been told."""

    def __init__(self, error: BaseException) -> None:
        self.error = error
        self.writes = 0
        self.answers = [DeliverResponse()]

    def __call__(self) -> "DeadCall":
        return self

    @property
    def Deliver(self) -> "DeadCall":
        return self

    async def read(self) -> Any:
        if not self.answers:
            await asyncio.Event().wait()
        return self.answers.pop()

    async def write(self, request: Any) -> None:
        self.writes += 1
        if self.writes > 1:
            raise self.error

    def cancel(self) -> None:
        pass


@pytest.mark.parametrize("error", [asyncio.InvalidStateError(), asyncio.CancelledError()])
def test_a_frame_for_a_dead_stream_waits_for_the_next_one_and_gives_up_in_time(error):
    """It neither spins, which would starve the reader that finds out, nor takes the call's end for its own."""
    settings, dead = RouterSettings(), DeadCall(error)

    async def main(rng: Random) -> None:
        clock = VirtualClock()
        link = GatewayLink(Instance("gateway", "g1", ""), dead, settings, clock)
        reading = asyncio.create_task(link.run(RouterMetrics(CollectorRegistry()), rng))
        await asyncio.sleep(1)
        assert await link.deliver(DeliverRequest(events=[EventRecord(conversation_id="c")])) is None
        assert clock.monotonic() >= settings.unreachable_seconds + 1
        assert await link.deliver(DeliverRequest(events=[EventRecord(conversation_id="c")])) is None
        assert clock.monotonic() < settings.unreachable_seconds + 2, "of a gateway that is gone nobody waits again"
        reading.cancel()
        await asyncio.wait([reading])

    run_virtual(main, limit_seconds=60)
    assert dead.writes == 2


class HangingGateway(GatewayServiceServicer):
    """Never says who is there."""

    async def ListSessions(self, request: Any, context: Any) -> Any:
        await asyncio.Event().wait()


@pytest.mark.parametrize("who_ends_it", ["the channel", "whoever asks"])
def test_a_question_on_a_channel_that_is_closed_is_answered_with_unavailable(who_ends_it):
    """Its call looks cancelled, which whoever asked is not; he who is gets what he asked for."""

    async def main(_rng: Random) -> BaseException | None:
        server = InProcessServer()
        add_GatewayServiceServicer_to_server(HangingGateway(), server)
        channel = InProcessChannel(server)
        link = GatewayLink(Instance("gateway", "g1", ""), GatewayServiceStub(channel), RouterSettings(), VirtualClock())
        question = asyncio.create_task(link.online(["alice"]))
        await asyncio.sleep(1)
        if who_ends_it == "the channel":
            await channel.close()
        else:
            question.cancel()
        await asyncio.wait([question], timeout=5)
        assert question.done()
        return None if question.cancelled() else question.exception()

    error = run_virtual(main)
    assert isinstance(error, Unavailable) if who_ends_it == "the channel" else error is None
