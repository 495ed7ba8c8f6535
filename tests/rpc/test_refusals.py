"""What the store refuses, over a real socket: its reason and code, by call and by stream, the same for ever."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from gateway_world import World, auth, batch, message, open_world, token

from chassis.errors import carried_status, reason_of, retry_delay_of
from chassis.eventlog import LogEntry
from parley.api.v1 import messaging_service_pb2 as api
from parley.api.v1.commands_pb2 import (
    ROLE_ADMIN,
    ROLE_MEMBER,
    ROLE_OWNER,
    AddMembers,
    ChangeRole,
    ChangeSettings,
    Command,
    CreateGroup,
    Leave,
    RemoveMember,
    SendMessage,
)
from parley.log.v1.records_pb2 import CommandRecord, DeadLetter
from parley_protocol.ids import direct_conversation_id, group_conversation_id
from parley_protocol.topics import COMMANDS, DEAD_LETTERS
from services.gateway.log_writer import Lane

TEAM = group_conversation_id("alice", "bot", b"team" * 4)
WITH_BOB = direct_conversation_id("alice", "bob")
CREATE = Command(request_id=b"team" * 4, create_group=CreateGroup(title="Team", member_user_ids=["bob", "carol"]))


@pytest.fixture
async def world() -> AsyncIterator[World]:
    async with open_world() as opened:
        yield opened


def command(action: Command, conversation: str = TEAM) -> Command:
    """Complete an action with a new request id and a target."""
    whole = Command(request_id=message().request_id, conversation_id=conversation)
    whole.MergeFrom(action)
    return whole


async def submit(world: World, user: str, sent: Command) -> int:
    request = api.SubmitRequest(device_id="bot", command=sent)
    return (await world.stub.Submit(request, metadata=auth(token(user)))).accepted.seq


async def refusal(call: Any) -> tuple[str, str]:
    """Return code and reason."""
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await call
    status = carried_status(error.value)
    assert status is not None, error.value
    return error.value.code().name, reason_of(status)


def add(*users: str) -> Command:
    return Command(add_members=AddMembers(user_ids=users))


def remove(user: str) -> Command:
    return Command(remove_member=RemoveMember(user_id=user))


def role(user: str, role: int) -> Command:
    return Command(change_role=ChangeRole(user_id=user, role=role))  # type: ignore[arg-type]


def rename(title: str) -> Command:
    return Command(change_settings=ChangeSettings(title=title))


REFUSED: list[tuple[str, Command, str, str]] = [
    ("carol", add("dave"), "PERMISSION_DENIED", "ROLE_TOO_LOW"),
    ("carol", remove("bob"), "PERMISSION_DENIED", "ROLE_TOO_LOW"),
    ("carol", rename("mine"), "PERMISSION_DENIED", "ROLE_TOO_LOW"),
    ("bob", remove("alice"), "PERMISSION_DENIED", "ROLE_TOO_LOW"),
    ("bob", role("bob", ROLE_OWNER), "PERMISSION_DENIED", "ROLE_TOO_LOW"),
    ("alice", remove("dave"), "NOT_FOUND", "TARGET_NOT_A_MEMBER"),
    ("alice", role("dave", ROLE_ADMIN), "NOT_FOUND", "TARGET_NOT_A_MEMBER"),
    ("alice", add("bob", "carol"), "ALREADY_EXISTS", "ALREADY_A_MEMBER"),
    ("alice", add("dave", "erin"), "FAILED_PRECONDITION", "GROUP_FULL"),
    ("alice", rename("Team"), "FAILED_PRECONDITION", "NO_CHANGE"),
    ("alice", role("bob", ROLE_ADMIN), "FAILED_PRECONDITION", "NO_CHANGE"),
    ("alice", role("alice", ROLE_MEMBER), "FAILED_PRECONDITION", "NO_CHANGE"),
    ("alice", Command(send_message=SendMessage(body=b"x", reply_to_seq=99)), "INVALID_ARGUMENT", "REPLY_TARGET_INVALID"),
    ("alice", Command(conversation_id=WITH_BOB, leave=Leave()), "FAILED_PRECONDITION", "WRONG_CONVERSATION_KIND"),
    ("alice", Command(conversation_id=WITH_BOB, add_members=AddMembers(user_ids=["dave"])), "FAILED_PRECONDITION",
     "WRONG_CONVERSATION_KIND"),
    ("alice", Command(request_id=b"team" * 4, send_message=SendMessage(body=b"x")), "ALREADY_EXISTS", "REQUEST_ID_REUSED"),
]  # fmt: skip


async def test_each_refusal_has_its_code_and_reason_and_takes_no_place():
    """By call, by stream, and by both again: one request_id has one fate."""
    async with open_world(group_members=4) as world:
        await submit(world, "alice", CREATE)
        await submit(world, "alice", message("bob"))
        await submit(world, "alice", command(role("bob", ROLE_ADMIN)))
        for user, action, code, reason in REFUSED:
            refused = command(action)
            for _ in range(2):
                assert await refusal(submit(world, user, refused)) == (code, reason), (user, action)
            device = await world.device(user, "bot")
            await device.send(batch(refused, command(action)))
            outcomes = [await device.outcome(), await device.outcome()]
            assert [reason_of(outcome.rejected) for outcome in outcomes] == [reason, reason], (user, action)
            assert {grpc.StatusCode[code].value[0]} == {outcome.rejected.code for outcome in outcomes}
        assert await submit(world, "alice", command(rename("Other"))) == 3
        assert await submit(world, "bob", command(add("dave"))) == 4
        assert await submit(world, "bob", command(remove("carol"))) == 5
        assert await submit(world, "alice", command(role("bob", ROLE_OWNER))) == 6
        assert await refusal(submit(world, "alice", command(role("bob", ROLE_MEMBER)))) == ("PERMISSION_DENIED", "ROLE_TOO_LOW")


async def test_what_was_refused_once_is_refused_for_ever_also_where_it_would_be_allowed_now(world: World):
    await submit(world, "alice", CREATE)
    early = command(Command(send_message=SendMessage(body=b"let me in")))
    dave = await world.device("dave", "bot")
    await dave.send(batch(early))
    assert reason_of((await dave.outcome()).rejected) == "CONVERSATION_NOT_FOUND"
    await submit(world, "alice", command(add("dave")))
    await dave.send(batch(early, first=2))
    assert reason_of((await dave.outcome()).rejected) == "CONVERSATION_NOT_FOUND"
    assert await refusal(submit(world, "dave", early)) == ("NOT_FOUND", "CONVERSATION_NOT_FOUND")
    assert await submit(world, "dave", command(Command(send_message=SendMessage(body=b"let me in")))) == 3


async def test_a_request_id_is_one_devices_in_one_conversation_and_stands_for_one_payload(world: World):
    first = message("bob", b"one", b"r" * 16)
    other = message("bob", b"two", b"r" * 16)
    assert await submit(world, "alice", first) == 1
    assert await refusal(submit(world, "alice", other)) == ("ALREADY_EXISTS", "REQUEST_ID_REUSED")
    device = await world.device("alice", "bot")
    by_id = Command(request_id=b"r" * 16, conversation_id=WITH_BOB, send_message=first.send_message)
    await device.send(batch(other, first, by_id))
    reused, same, resolved = [await device.outcome() for _ in range(3)]
    assert reason_of(reused.rejected) == "REQUEST_ID_REUSED"
    assert (same.accepted.seq, same.accepted.duplicate) == (1, True)
    assert (resolved.accepted.seq, resolved.accepted.duplicate) == (1, True), "another way to name the same conversation"
    assert await submit(world, "bob", message("alice", b"two", b"r" * 16)) == 2
    phone = await world.device("alice", "phone")
    await phone.send(batch(other))
    assert (await phone.outcome()).accepted.seq == 3


async def test_what_can_not_be_decided_is_told_and_lies_in_the_dead_letters(world: World):
    """As from a gateway that is broken or newer: its device learns of it, the partition goes on."""
    alice = await world.device("alice")
    record = CommandRecord(
        rules_version=1, conversation_id=WITH_BOB, user_id="alice", device_id="d1", session_id="s", member_cap=500
    )
    record.command.request_id = b"d" * 16
    record.command.to_user_id = "bob"
    record.command.send_message = SendMessage(body=bytes(20_000)).SerializeToString()
    await world.engines.log.append(COMMANDS, 0, [LogEntry(WITH_BOB.encode(), record.SerializeToString()), LogEntry(b"x", b"\xff")])
    outcome = await alice.outcome()
    assert (outcome.request_id, reason_of(outcome.rejected)) == (b"d" * 16, "DEAD_LETTERED")
    assert outcome.rejected.code == grpc.StatusCode.INTERNAL.value[0]
    await alice.send(batch(message("bob")))
    assert (await alice.outcome()).accepted.seq == 1
    async with world.engines.log.open_consumer(DEAD_LETTERS, "test") as consumer:
        letters = [DeadLetter.FromString(raw.value) for raw in (await consumer.poll(10)).records]
    assert sorted((letter.key, letter.value) for letter in letters) == [
        (WITH_BOB.encode(), record.SerializeToString()),
        (b"x", b"\xff"),
    ]
    assert all(letter.reason for letter in letters)


async def test_a_record_that_is_as_large_as_the_log_takes_is_cut_and_the_partition_goes_on(world: World):
    large = 7 * 1024 * 1024
    await world.engines.log.append(COMMANDS, 0, [LogEntry(b"x", bytes(large)), LogEntry(bytes(large), b"x")])
    assert await submit(world, "alice", message("bob")) == 1
    letters = [raw async for raw in world.engines.log.records(DEAD_LETTERS, 0)]
    assert [len(raw.key) + len(raw.value) < 5 * 1024 * 1024 for raw in letters] == [True, True]
    assert [f"{large} bytes, cut here" in DeadLetter.FromString(raw.value).reason for raw in letters] == [True, True]


async def test_a_group_has_500_members_and_not_one_more(world: World):
    users = [f"u{number:03}" for number in range(499)]
    full = Command(request_id=b"full" * 4, create_group=CreateGroup(title="Full", member_user_ids=users))
    assert await submit(world, "alice", full) == 1
    group = group_conversation_id("alice", "bot", b"full" * 4)
    assert await refusal(submit(world, "alice", command(add("one-more"), group))) == ("FAILED_PRECONDITION", "GROUP_FULL")
    over = Command(request_id=b"over" * 4, create_group=CreateGroup(member_user_ids=[*users, "one-more"]))
    assert await refusal(submit(world, "alice", over)) == ("FAILED_PRECONDITION", "GROUP_FULL")
    named = Command(request_id=b"many" * 4, create_group=CreateGroup(member_user_ids=[f"v{number}" for number in range(1001)]))
    assert await refusal(submit(world, "alice", named)) == ("INVALID_ARGUMENT", "FIELD_INVALID")
    last, stranger = await world.device("u498"), await world.device("one-more")
    assert await submit(world, "u000", command(Command(send_message=SendMessage(body=b"hello, all")), group)) == 2
    assert (await last.event()).message.body == b"hello, all"
    await submit(world, "u001", command(Command(leave=Leave()), group))
    assert await submit(world, "alice", command(add("one-more"), group)) == 4
    assert (await stranger.event()).seq == 4, "the first that he sees is his own joining"
    members: list[str] = []
    request = api.ListMembersRequest(conversation_id=group, page_size=200)
    while True:
        page = await world.stub.ListMembers(request, metadata=auth(token("one-more")))
        members += [member.user_id for member in page.members]
        if not page.next_page_token:
            break
        request.page_token = page.next_page_token
    assert members == sorted({"alice", "one-more", *users} - {"u001"})
    assert (await api_row(world, "u000")).unread_count == 0
    assert (await api_row(world, "u498")).unread_count == 1
    assert (await api_row(world, "one-more")).unread_count == 0


async def api_row(world: World, user: str) -> Any:
    return (await world.stub.Sync(api.SyncRequest(), metadata=auth(token(user)))).conversations[0]


async def test_every_call_that_comes_too_fast_is_told_when_to_come_again():
    async with open_world(commands_per_second=1, commands_burst=1, commands_per_frame=1) as world:
        calls = {
            "Submit": api.SubmitRequest(device_id="d", command=message()),
            "Sync": api.SyncRequest(),
            "ListEvents": api.ListEventsRequest(conversation_id=TEAM),
            "GetConversation": api.GetConversationRequest(conversation_id=TEAM),
            "ListMembers": api.ListMembersRequest(conversation_id=TEAM),
            "GetPresence": api.GetPresenceRequest(user_ids=["bob"]),
        }
        for name, request in calls.items():
            metadata = auth(token(f"user-of-{name}", "d"))
            call = getattr(world.stub, name)
            first, second = await asyncio.gather(
                call(request, metadata=metadata), call(request, metadata=metadata), return_exceptions=True
            )
            limited = [error for error in (first, second) if is_limited(error)]
            assert len(limited) == 1, name
            status = carried_status(limited[0])
            assert status is not None
            assert 0 < (retry_delay_of(status) or 0) <= 1


async def test_large_submits_count_more():
    """A message of 250 kB costs as many turns as eight small ones, and passes however few there are at once."""
    large = message()
    large.send_message.MergeFromString(b"\xa2\x06\x80\xb0\x0f" + bytes(251_904))
    for burst, passes in ((100, 12), (4, 1)):
        async with open_world(commands_per_second=1, commands_burst=burst, commands_per_frame=1) as world:
            for _ in range(passes):
                await submit(world, "alice", large)
            assert await refusal(submit(world, "alice", large)) == ("RESOURCE_EXHAUSTED", "RATE_LIMITED")


def is_limited(answer: Any) -> bool:
    return isinstance(answer, grpc.aio.AioRpcError) and "RATE_LIMITED" in str(answer.trailing_metadata())


async def test_what_waits_for_room_is_refused_with_a_delay(world: World, monkeypatch: pytest.MonkeyPatch):
    with monkeypatch.context() as crowded:
        crowded.setattr(Lane, "offer", lambda *_: 0.5)
        call = world.stub.Submit(api.SubmitRequest(device_id="d", command=message()), metadata=auth(token("alice")))
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await call
        status = carried_status(error.value)
        assert status is not None
        assert (reason_of(status), retry_delay_of(status)) == ("OVERLOADED", 0.5)
