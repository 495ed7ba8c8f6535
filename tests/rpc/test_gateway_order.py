"""A sender's own order over refusals: rates, a log that is away, holds, Retry and Skip."""

from collections.abc import Sequence

import grpc
import pytest
from gateway_world import World, auth, batch, message, open_world, token, until

from chassis.errors import carried_status, reason_of, retry_delay_of
from chassis.eventlog import EventLog, LogEntry, LogUnavailableError, partition_for
from parley.api.v1 import messaging_service_pb2 as api
from parley_protocol.ids import direct_conversation_id
from parley_protocol.topics import COMMANDS


class SwitchedLog:
    """The real log with a switch for each partition of the commands: while one is off, its appends fail."""

    def __init__(self, inner: EventLog) -> None:
        self._inner = inner
        self.off: set[int] = set()

    @property
    def epoch(self) -> int:
        return self._inner.epoch

    async def ping(self) -> None:
        await self._inner.ping()

    async def partition_count(self, topic: str) -> int:
        return await self._inner.partition_count(topic)

    async def append(self, topic: str, partition: int, entries: Sequence[LogEntry]) -> None:
        if topic == COMMANDS and partition in self.off:
            raise LogUnavailableError("switched off")
        await self._inner.append(topic, partition, entries)

    def open_consumer(self, topic: str, group: str):  # type: ignore[no-untyped-def]
        return self._inner.open_consumer(topic, group)


async def test_rate_is_answered_by_retry_and_later_commands_wait_for_it():
    async with open_world(commands_per_second=1, commands_burst=5, commands_per_frame=5) as world:
        alice = await world.device("alice")
        commands = [message("bob", b"%d" % number) for number in range(4)]
        await alice.send(batch(*commands[:4]))
        assert [(await alice.outcome()).accepted.seq for _ in range(4)] == [1, 2, 3, 4]
        late = [message("bob", b"late %d" % number) for number in range(3)]
        await alice.send(batch(*late, first=5))
        outcomes = {outcome.request_id: outcome for outcome in [await alice.outcome() for _ in range(3)]}
        assert outcomes[late[0].request_id].accepted.seq == 5
        refused, held = outcomes[late[1].request_id].retry, outcomes[late[2].request_id].retry
        assert reason_of(refused.reason) == "RATE_LIMITED"
        assert refused.reason.code == grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]
        assert refused.delay.ToMilliseconds() > 0
        assert retry_delay_of(refused.reason) == pytest.approx(refused.delay.ToNanoseconds() / 1e9)
        assert (refused.number, held.number) == (6, 6)
        assert {refused.conversation_id, held.conversation_id} == {direct_conversation_id("alice", "bob")}


async def test_while_the_log_is_away_commands_get_retry_then_all_are_stored_in_order():
    log: list[SwitchedLog] = []

    def wrap(inner: EventLog) -> EventLog:
        log.append(SwitchedLog(inner))
        return log[0]

    async with open_world(wrap_log=wrap) as world:
        alice, bob = await world.device("alice"), await world.device("bob")
        commands = [message("bob", b"%d" % number) for number in range(10)]
        log[0].off.add(0)
        await alice.send(batch(commands[0]))  # taken: the append that fails holds it
        await until(lambda: world.value("parley_gateway_append_failures_total"))
        await alice.send(batch(*commands[1:5], first=2))
        retries = [(await alice.outcome()).retry for _ in range(4)]
        assert [retry.number for retry in retries] == [2, 2, 2, 2]
        assert reason_of(retries[0].reason) == "OVERLOADED"
        log[0].off.clear()
        assert (await alice.outcome()).accepted.seq == 1, "the unresolved append was repeated"
        await alice.send(batch(*commands[5:], first=6))
        assert [(await alice.outcome()).retry.number for _ in range(5)] == [2] * 5, "held until 2 comes again"
        await alice.send(batch(*commands[1:], first=2))
        assert [(await alice.outcome()).accepted.seq for _ in range(9)] == list(range(2, 11))
        assert [(await bob.event()).message.body for _ in range(10)] == [b"%d" % number for number in range(10)]


async def held_world(world: World, log: SwitchedLog) -> None:
    """Have a partition closed: one append fails."""
    log.off.add(0)
    probe = await world.device("carol", "closer")
    await probe.send(batch(message("carol")))
    await until(lambda: world.value("parley_gateway_append_failures_total"))


async def test_skip_gives_a_held_command_up_and_other_conversations_are_not_held():
    log: list[SwitchedLog] = []

    def wrap(inner: EventLog) -> EventLog:
        log.append(SwitchedLog(inner))
        return log[0]

    async with open_world(wrap_log=wrap) as world:
        alice = await world.device("alice")
        await held_world(world, log[0])
        await alice.send(batch(message("bob", b"given up")))
        retry = (await alice.outcome()).retry
        log[0].off.clear()
        await until(lambda: not world.value("parley_gateway_closed_partitions"))
        await alice.send(batch(message("bob", b"held"), message("zoe", b"free"), first=2))
        outcomes = [await alice.outcome(), await alice.outcome()]
        assert [outcome.WhichOneof("result") for outcome in outcomes] == ["retry", "accepted"]
        skip = api.Skip(number=retry.number, conversation_id=retry.conversation_id)
        await alice.send(batch(message("bob", b"goes"), first=4, skips=[skip]))
        assert (await alice.outcome()).accepted.seq == 1


async def test_rejected_command_holds_nothing():
    async with open_world() as world:
        alice = await world.device("alice")
        await alice.send(batch(message("bob", b"x" * 20_000), message("bob", b"fine")))
        outcomes = [await alice.outcome(), await alice.outcome()]
        assert reason_of(outcomes[0].rejected) == "BODY_TOO_LARGE"
        assert outcomes[1].accepted.seq == 1


async def test_a_closed_partition_costs_the_others_nothing():
    log: list[SwitchedLog] = []

    def wrap(inner: EventLog) -> EventLog:
        log.append(SwitchedLog(inner))
        return log[0]

    async with open_world(wrap_log=wrap, partitions=2) as world:
        alice = await world.device("alice")
        peers: dict[int, str] = {}
        for number in range(50):
            partition = partition_for(direct_conversation_id("alice", f"u{number}").encode(), 2)
            peers.setdefault(partition, f"u{number}")
        log[0].off.add(0)
        await alice.send(batch(message(peers[0], b"taken, unresolved")))
        await until(lambda: world.value("parley_gateway_append_failures_total"))
        await alice.send(batch(message(peers[0]), message(peers[1]), first=2))
        outcomes = sorted([await alice.outcome(), await alice.outcome()], key=lambda outcome: outcome.WhichOneof("result") or "")
        assert [outcome.WhichOneof("result") for outcome in outcomes] == ["accepted", "retry"]
        log[0].off.clear()


async def test_submit_is_refused_with_a_delay_while_the_log_is_away_and_times_out_if_taken():
    log: list[SwitchedLog] = []

    def wrap(inner: EventLog) -> EventLog:
        log.append(SwitchedLog(inner))
        return log[0]

    async with open_world(wrap_log=wrap, submit_seconds=0.3) as world:
        log[0].off.add(0)
        with pytest.raises(grpc.aio.AioRpcError) as taken:
            await world.stub.Submit(api.SubmitRequest(device_id="d", command=message()), metadata=auth(token("alice")))
        unknown = carried_status(taken.value)
        assert unknown is not None
        assert (unknown.code, reason_of(unknown)) == (grpc.StatusCode.DEADLINE_EXCEEDED.value[0], "OUTCOME_UNKNOWN")
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await world.stub.Submit(api.SubmitRequest(device_id="d", command=message()), metadata=auth(token("alice")))
        status = carried_status(refused.value)
        assert status is not None
        assert (status.code, reason_of(status)) == (grpc.StatusCode.RESOURCE_EXHAUSTED.value[0], "OVERLOADED")
        assert retry_delay_of(status)
        log[0].off.clear()
