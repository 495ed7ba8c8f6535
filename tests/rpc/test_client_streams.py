"""What a client does on its stream and when it ends, on virtual time: resends, holds, heartbeats, goodbyes, tokens."""

import asyncio
import copy
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import pytest
from scripted_gateway import DEVICE, DIRECT, HEARTBEAT_SECONDS, ME, PEER, Gateway, accepted, message, retry, until, virtual

from chassis.errors import PermissionDenied, ResourceExhausted, Unauthenticated, Unavailable, build_status
from parley.api.v1 import commands_pb2 as commands
from parley.api.v1 import messaging_service_pb2 as api
from parley_client import (
    ClosedError,
    CommandCancelledError,
    CommandHeld,
    CommandRejected,
    ConnectionChanged,
    ConnectionState,
    FailedError,
    FrameRefused,
    MemoryStore,
    RejectedError,
    SignedOffError,
    StoreError,
    StoreMismatchError,
    TokenUnavailableError,
    open_client,
)
from parley_client.store import Change


@virtual
async def test_a_command_is_kept_before_it_is_sent_and_its_event_stands_at_its_place(gateway: Gateway):
    store = MemoryStore()
    async with gateway.client(store) as client:
        ticket = await client.send(to_user=PEER, body="hi", content_type="text/plain")
        assert [kept.request_id for kept in store.load().commands] == [ticket.request_id]
        stream = await gateway.stream()
        numbers, (command,) = await stream.commands(1)
        assert numbers == [1]
        assert command.send_message.body == b"hi"
        await stream.send(outcomes=[accepted(command, 1)])
        place = await ticket.accepted()
        assert (place.conversation_id, place.seq, place.duplicate) == (DIRECT, 1, False)
        assert store.load().commands == []
        event = await anext(client.events())
        assert (event.seq, event.text, event.own, event.event.request_id) == (1, "hi", True, ticket.request_id)
        assert (event.actor, event.event.actor_device_id) == (ME, DEVICE)


@virtual
async def test_after_a_cut_everything_without_an_outcome_is_resent_in_order_byte_for_byte(gateway: Gateway):
    async with gateway.client() as client:
        tickets = [await client.send(to_user=PEER, body=f"m{number}") for number in range(3)]
        first = await gateway.stream()
        _, sent = await first.commands(3)
        await first.send(outcomes=[accepted(sent[0], 1)])
        await tickets[0].accepted()
        first.end()
        second = await gateway.stream()
        numbers, resent = await second.commands(2)
        assert numbers == [1, 2]
        assert [command.SerializeToString() for command in resent] == [command.SerializeToString() for command in sent[1:]]
        await second.send(outcomes=[accepted(resent[0], 2), accepted(resent[1], 3)])
        assert [(await ticket.accepted()).seq for ticket in tickets] == [1, 2, 3]


@virtual
async def test_commands_of_a_killed_app_go_on_with_the_next_one_on_the_same_store(gateway: Gateway):
    store = MemoryStore()
    async with gateway.client(store) as client:
        ticket = await client.send(to_user=PEER, body="hi")
        await (await gateway.stream()).commands(1)
        image = copy.deepcopy(store)  # what a crash leaves
    with pytest.raises(ClosedError):
        await ticket.accepted()
    async with gateway.client(image) as client:
        (survivor,) = client.pending()
        assert survivor.request_id == ticket.request_id
        stream = await gateway.stream()
        _, (command,) = await stream.commands(1)
        await stream.send(outcomes=[accepted(command, 1)])
        assert (await survivor.accepted()).seq == 1


@virtual
async def test_a_refused_command_is_resent_with_its_number_after_the_delay_and_holds_later_ones(gateway: Gateway):
    async with gateway.client() as client:
        with client.changes() as changes:
            await client.send(to_user=PEER, body="a")
            stream = await gateway.stream()
            _, (first,) = await stream.commands(1)
            await stream.send(outcomes=[retry(first, 1, seconds=3)])
            while not isinstance(notice := await anext(changes), CommandHeld):
                pass
            assert notice.delay_seconds == 3
        refused_at = gateway.clock.monotonic()
        await client.send(to_user=PEER, body="b")
        await client.send(to_user="carol", body="c")
        numbers, (other,) = await stream.commands(1)
        assert (numbers, other.to_user_id) == ([2], "carol")
        numbers, again = await stream.commands(2)
        assert (numbers[0], [command.send_message.body for command in again]) == (1, [b"a", b"b"])
        assert again[0] == first
        assert gateway.clock.monotonic() - refused_at >= 3


@virtual
async def test_cancelling_a_refused_command_skips_it(gateway: Gateway):
    async with gateway.client() as client:
        ticket = await client.send(to_user=PEER, body="a")
        stream = await gateway.stream()
        _, (command,) = await stream.commands(1)
        assert not ticket.cancel()  # in flight
        with client.changes() as changes:
            await stream.send(outcomes=[retry(command, 1, seconds=60)])
            while not isinstance(await anext(changes), CommandHeld):
                pass
        assert ticket.cancel()
        batch = await stream.receive()
        assert batch is not None
        assert [(skip.number, skip.conversation_id) for skip in batch.skips] == [(1, DIRECT)]
        assert not client.pending()
        with pytest.raises(CommandCancelledError):
            await ticket.accepted()


@virtual
async def test_a_rejection_is_final_typed_and_told(gateway: Gateway):
    async with gateway.client() as client:
        with client.changes() as changes:
            ticket = await client.send(conversation=DIRECT, body="a")
            stream = await gateway.stream()
            _, (command,) = await stream.commands(1)
            status = build_status(grpc.StatusCode.PERMISSION_DENIED, "NOT_A_MEMBER", "you left")
            await stream.send(outcomes=[commands.Outcome(request_id=command.request_id, rejected=status)])
            with pytest.raises(RejectedError) as caught:
                await ticket.accepted()
            assert (caught.value.code, caught.value.reason) == (grpc.StatusCode.PERMISSION_DENIED, "NOT_A_MEMBER")
            while not isinstance(notice := await anext(changes), CommandRejected):
                pass
            assert notice.error is caught.value


@virtual
async def test_what_has_no_outcome_for_30_seconds_is_sent_again(gateway: Gateway):
    async with gateway.client() as client:
        await client.send(to_user=PEER, body="a")
        stream = await gateway.stream()
        _, (first,) = await stream.commands(1)
        sent_at = gateway.clock.monotonic()
        keep_alive = asyncio.create_task(answer_heartbeats(stream))
        await until(lambda: any(frame.batch.commands for frame in stream.frames[1:]))
        assert next(frame.batch.commands[0] for frame in stream.frames[1:] if frame.batch.commands) == first
        assert 30 <= gateway.clock.monotonic() - sent_at <= 32
        keep_alive.cancel()


async def answer_heartbeats(stream: object) -> None:
    while (batch := await stream.receive()) is not None:  # type: ignore[attr-defined]
        if batch.HasField("heartbeat"):
            await stream.send(heartbeat=api.Heartbeat())  # type: ignore[attr-defined]


@virtual
async def test_an_idle_client_says_that_it_lives_within_each_interval(gateway: Gateway):
    async with gateway.client():
        stream = await gateway.stream()
        last = gateway.clock.monotonic()
        for _ in range(20):
            batch = await stream.receive()
            assert batch is not None
            assert batch.HasField("heartbeat")
            assert gateway.clock.monotonic() - last < HEARTBEAT_SECONDS
            last = gateway.clock.monotonic()
            await stream.send(heartbeat=api.Heartbeat())


@virtual
async def test_a_server_that_is_silent_for_two_intervals_is_gone(gateway: Gateway):
    async with gateway.client():
        await gateway.stream()
        await gateway.stream()
        assert 2 * HEARTBEAT_SECONDS <= gateway.clock.monotonic() <= 2 * HEARTBEAT_SECONDS + 0.3


@virtual
async def test_a_server_that_never_says_welcome_is_gone_after_the_timeout(gateway: Gateway):
    gateway.is_silent = True
    async with gateway.client() as client:
        with client.changes() as changes:
            while not (isinstance(notice := await anext(changes), ConnectionChanged) and notice.state is ConnectionState.WAITING):
                pass
        assert gateway.clock.monotonic() == pytest.approx(10.0)
        gateway.is_silent = False
        await gateway.stream()


@virtual
async def test_overloaded_is_obeyed(gateway: Gateway):
    async with gateway.client():
        await (await gateway.stream()).go_away("OVERLOADED", delay_seconds=7)
        await gateway.stream()
        assert gateway.clock.monotonic() >= 7


@virtual
async def test_a_replaced_client_stays_away_and_everybody_who_waits_is_told(gateway: Gateway):
    store = MemoryStore()
    async with gateway.client(store) as client:
        ticket = await client.send(to_user=PEER, body="a")
        await (await gateway.stream()).go_away("REPLACED", reconnect=False)
        for waiting in (anext(client.events()), ticket.accepted()):
            with pytest.raises(SignedOffError) as caught:
                await waiting
            assert caught.value.reason == "REPLACED"
        with pytest.raises(SignedOffError):
            await client.caught_up()
        with pytest.raises(SignedOffError):
            await client.send(to_user=PEER, body="b")
        assert client.connection is ConnectionState.STOPPED
        await asyncio.sleep(3600)
        assert gateway.streams.empty()
    assert len(store.load().commands) == 1


@virtual
async def test_a_moved_client_goes_where_it_is_sent_and_home_when_nobody_is_there(gateway: Gateway):
    other, visited = Gateway(), list[str]()

    @asynccontextmanager
    async def open_channel(address: str) -> AsyncIterator[grpc.aio.Channel]:
        visited.append(address)
        yield gateway.channel if address == "home" else other.channel

    async with open_client(
        "home", token="t", device_id=DEVICE, store=MemoryStore(), open_channel=open_channel, clock=gateway.clock
    ):
        await (await gateway.stream()).go_away("MOVED", address="b")
        stream = await other.stream()
        assert gateway.clock.monotonic() == 0
        other.refusal = Unavailable("UNAVAILABLE", "gone")
        stream.end()
        await gateway.stream()
        assert visited == ["home", "b", "b", "home"]


@virtual
async def test_an_expired_token_is_renewed_at_once_and_only_then(gateway: Gateway):
    tokens: list[str] = []

    async def token() -> str:
        tokens.append(f"t{len(tokens)}")
        return tokens[-1]

    async with gateway.client(token=token):
        await (await gateway.stream()).go_away("OVERLOADED", delay_seconds=1)
        second = await gateway.stream()
        assert second.bearer == "Bearer t0"
        expired_at = gateway.clock.monotonic()
        await second.go_away("EXPIRED")
        third = await gateway.stream()
        assert third.bearer == "Bearer t1"
        assert gateway.clock.monotonic() == expired_at
        await third.go_away("EXPIRED")  # again: fresh tokens that expire at once must not become a storm
        await gateway.stream()
        assert gateway.clock.monotonic() > expired_at


@virtual
async def test_a_fixed_token_that_expired_ends_the_client(gateway: Gateway):
    gateway.refusal = Unauthenticated("TOKEN_EXPIRED", "over")
    async with gateway.client() as client:
        with pytest.raises(SignedOffError) as caught:
            await client.caught_up()
        assert caught.value.reason == "TOKEN_EXPIRED"


@virtual
async def test_a_token_service_that_is_away_is_asked_again(gateway: Gateway):
    calls = 0

    async def token() -> str:
        nonlocal calls
        calls += 1
        if calls < 4:
            raise TokenUnavailableError("later")
        return "t"

    async with gateway.client(token=token):
        assert (await gateway.stream()).bearer == "Bearer t"


@virtual
async def test_weather_is_waited_out_with_the_servers_delay_and_refusals_for_good_are_not(gateway: Gateway):
    gateway.refusal = ResourceExhausted("OVERLOADED", "many", retry_delay_seconds=5)
    async with gateway.client() as client:
        await asyncio.sleep(4)
        gateway.refusal = None
        await gateway.stream()
        assert gateway.clock.monotonic() >= 5
        gateway.refusal = PermissionDenied("DEVICE_MISMATCH", "another device")
    async with gateway.client() as client:
        with pytest.raises(SignedOffError) as caught:
            await client.caught_up()
        assert caught.value.reason == "DEVICE_MISMATCH"


@virtual
async def test_a_refused_frame_is_told_and_the_session_goes_on(gateway: Gateway):
    async with gateway.client() as client:
        stream = await gateway.stream()
        with client.changes() as changes:
            status = build_status(grpc.StatusCode.INVALID_ARGUMENT, "MALFORMED", "no")
            await stream.frame(api.ConnectResponse(frame_error=api.FrameError(status=status)))
            while not isinstance(notice := await anext(changes), FrameRefused):
                pass
            assert notice.error.reason == "MALFORMED"
        await stream.send(events=[message(1)])
        assert (await anext(client.events())).seq == 1


@virtual
async def test_a_store_of_another_user_or_device_is_refused(gateway: Gateway):
    store = MemoryStore()
    store.commit(Change(user_id="carol", device_id=DEVICE))
    async with gateway.client(store) as client:
        with pytest.raises(StoreMismatchError):
            await client.caught_up()
    with pytest.raises(StoreMismatchError):
        async with gateway.client(store, device_id="d2"):
            pass


@virtual
async def test_leaving_sends_the_last_acks_before_the_stream_ends(gateway: Gateway):
    async with gateway.client() as client:
        stream = await gateway.stream()
        await stream.send(events=[message(1)])
        event = await anext(client.events())
        assert await stream.acks() == [(1, 0)]
        await client.mark_read(event.conversation_id, event.seq)
        closed = asyncio.create_task(stream.acks())
    assert await closed == [(1, 1)]


@virtual
async def test_a_server_that_takes_nothing_does_not_keep_an_app_from_leaving(gateway: Gateway):
    async with gateway.client():
        await gateway.stream()
        left_at = gateway.clock.monotonic()
    assert gateway.clock.monotonic() - left_at <= 2.1


class FullDisk(MemoryStore):
    """Fails when told to."""

    is_full = False

    def commit(self, change: Change) -> None:
        if self.is_full:
            raise StoreError("disk full")
        super().commit(change)


def test_what_cannot_be_kept_is_neither_acknowledged_nor_shown():
    @virtual
    async def run(gateway: Gateway) -> None:
        store = FullDisk()
        async with gateway.client(store) as client:
            stream = await gateway.stream()
            await client.caught_up()
            store.is_full = True
            await stream.send(events=[message(1)])
            with pytest.raises(FailedError):
                await anext(client.events())
            assert await stream.receive() is None

    with pytest.raises(StoreError, match="disk full"):
        run()


@virtual
async def test_a_command_that_cannot_be_kept_is_not_sent(gateway: Gateway):
    store = FullDisk()
    async with gateway.client(store) as client:
        stream = await gateway.stream()
        await client.caught_up()
        store.is_full = True
        with pytest.raises(StoreError):
            await client.send(to_user=PEER, body="not kept")
        store.is_full = False
        assert client.pending() == []
        await client.send(to_user=PEER, body="kept")
        numbers, (command,) = await stream.commands(1)
        assert (numbers, command.send_message.body) == ([1], b"kept")
