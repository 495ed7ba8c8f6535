"""Strangers, former members and members, over a real socket: each sees his stays and nothing else, whichever call he tries."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from gateway_world import Device, World, auth, batch, message, open_world, token

from chassis.errors import carried_status, reason_of
from parley.api.v1 import messaging_service_pb2 as api
from parley.api.v1.commands_pb2 import (
    AddMembers,
    ChangeRole,
    ChangeSettings,
    Command,
    CreateGroup,
    Leave,
    RemoveMember,
    SendMessage,
)
from parley.api.v1.events_pb2 import Ack, Conversation
from parley_protocol.ids import group_conversation_id
from services.store.page_tokens import encode_page_token

TEAM = group_conversation_id("alice", "bot", b"team" * 4)
NOWHERE = "g_" + "a" * 26


@pytest.fixture
async def world() -> AsyncIterator[World]:
    async with open_world() as opened:
        yield opened


async def submit(world: World, user: str, command: Command, **fields: Any) -> int:
    """Submit a command for the team, or with another target; return the seq that it took."""
    sent = message()
    sent.ClearField("send_message")
    sent.ClearField("to_user_id")
    if not command.HasField("create_group"):
        sent.conversation_id = TEAM
    sent.MergeFrom(command)
    request = api.SubmitRequest(device_id="bot", command=sent, **fields)
    return (await world.stub.Submit(request, metadata=auth(token(user)))).accepted.seq


async def refusal(call: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await call
    return error.value


async def reason(call: Any) -> str:
    status = carried_status(await refusal(call))
    assert status is not None
    return reason_of(status)


def say(text: str, **fields: Any) -> Command:
    return Command(send_message=SendMessage(body=text.encode(), **fields))


ADD_BOB = Command(add_members=AddMembers(user_ids=["bob"]))
REMOVE_BOB = Command(remove_member=RemoveMember(user_id="bob"))
CREATE = Command(request_id=b"team" * 4, create_group=CreateGroup(title="Team", member_user_ids=["bob", "carol"]))


def rename(title: str) -> Command:
    return Command(change_settings=ChangeSettings(title=title))


async def tell(world: World) -> None:
    """Let bob be a member from 1 to 3, and again from 6 to 8 of 10."""
    first, second = [CREATE, say("two"), REMOVE_BOB, say("four"), rename("Secret")], [ADD_BOB, say("seven"), REMOVE_BOB]
    steps = [*first, *second, say("nine"), rename("More")]
    for seq, step in enumerate(steps, 1):
        assert await submit(world, "alice", step) == seq


READS: dict[str, Any] = {
    "ListEvents": api.ListEventsRequest(),
    "ListEvents backwards": api.ListEventsRequest(before_seq=3, page_size=1),
    "GetConversation": api.GetConversationRequest(),
    "ListMembers": api.ListMembersRequest(),
}


def read(world: World, user: str, name: str, conversation: str) -> Any:
    request = type(READS[name])()
    request.CopyFrom(READS[name])
    request.conversation_id = conversation
    return getattr(world.stub, name.split()[0])(request, metadata=auth(token(user)))


ACTIONS = [
    say("x"),
    Command(add_members=AddMembers(user_ids=["eve"])),
    Command(remove_member=RemoveMember(user_id="carol")),
    Command(leave=Leave()),
    Command(change_role=ChangeRole(user_id="carol", role=2)),  # type: ignore[arg-type]
    rename("mine"),
]


async def test_a_stranger_can_not_tell_a_conversation_of_others_from_none(world: World):
    await tell(world)
    for name in READS:
        theirs, none = [await refusal(read(world, "eve", name, conversation)) for conversation in (TEAM, NOWHERE)]
        assert theirs.code() is grpc.StatusCode.NOT_FOUND
        assert (theirs.details(), theirs.trailing_metadata()) == (none.details(), none.trailing_metadata())
    for action in ACTIONS:
        theirs, none = [
            await refusal(submit(world, "eve", Command.FromString(action.SerializeToString() + conversation)))
            for conversation in (b"", Command(conversation_id=NOWHERE).SerializeToString())
        ]
        assert theirs.code() is grpc.StatusCode.NOT_FOUND, action
        assert (theirs.details(), theirs.trailing_metadata()) == (none.details(), none.trailing_metadata())
    assert not (await world.stub.Sync(api.SyncRequest(), metadata=auth(token("eve")))).conversations
    eve = await world.device("eve")
    await eve.send(batch(*(with_target(action, number) for number, action in enumerate(ACTIONS))))
    for _ in ACTIONS:
        assert reason_of((await eve.outcome()).rejected) == "CONVERSATION_NOT_FOUND"


def with_target(action: Command, number: int) -> Command:
    command = Command(request_id=b"%016d" % number, conversation_id=TEAM)
    command.MergeFrom(action)
    return command


async def test_who_left_sees_all_as_of_his_leave(world: World):
    await tell(world)
    metadata = auth(token("bob"))
    row = (await world.stub.GetConversation(api.GetConversationRequest(conversation_id=TEAM), metadata=metadata)).conversation
    assert (row.head_seq, row.message_count, row.unread_count, row.version) == (8, 3, 1, 8)
    assert (row.title, row.member_count, row.role) == ("Secret", 2, 0), "not what became of it later"
    assert [(stay.first_seq, stay.last_seq) for stay in row.visible_intervals] == [(1, 3), (6, 8)]
    synced = await world.stub.Sync(api.SyncRequest(last_events_count=50), metadata=metadata)
    assert [event.seq for event in synced.conversations[0].last_events] == [1, 2, 3, 6, 7, 8]
    synced.conversations[0].ClearField("last_events")
    assert synced.conversations == [row]
    assert await reason(read(world, "bob", "ListMembers", TEAM)) == "NOT_A_MEMBER"
    bob = await world.device("bob")
    for number, action in enumerate(ACTIONS):
        assert await reason(submit(world, "bob", action)) == "NOT_A_MEMBER"
        await bob.send(batch(with_target(action, number), first=number + 1))
        assert reason_of((await bob.outcome()).rejected) == "NOT_A_MEMBER"


@pytest.mark.parametrize("size", [1, 2, 5])
async def test_pages_lead_through_several_stays_both_ways(world: World, size: int):
    await tell(world)
    for backwards in (False, True):
        seqs: list[int] = []
        request = api.ListEventsRequest(conversation_id=TEAM, page_size=size, after_seq=0)
        if backwards:
            request.before_seq = 0
        while True:
            page = await world.stub.ListEvents(request, metadata=auth(token("bob")))
            found = [event.seq for event in page.events]
            assert 0 < len(found) <= size
            assert (page.head_seq, page.first_available_seq) == (8, 1)
            assert [(stay.first_seq, stay.last_seq) for stay in page.visible_intervals] == [(1, 3), (6, 8)]
            seqs = found + seqs if backwards else seqs + found
            if not page.more:
                break
            if backwards:
                request.before_seq = found[0]
            else:
                request.after_seq = found[-1]
        assert seqs == [1, 2, 3, 6, 7, 8]


async def seqs_until(device: Device, last: int) -> list[int]:
    """Return the seqs of the team's events that come to a device, up to one."""
    seqs: list[int] = []
    while not seqs or seqs[-1] != last:
        seqs.append((await device.event()).seq)
    return seqs


async def send_all(device: Device, frames: list[api.ConnectRequest]) -> None:
    for frame in frames:
        await device.send(frame)


async def test_a_removal_in_the_midst_of_messages_ends_what_is_delivered_at_its_place(world: World):
    await submit(world, "alice", CREATE)
    removals: list[int] = []
    alice, bob, carol = [await world.device(user) for user in ("alice", "bob", "carol")]
    for round_number in range(5):
        talk = [with_target(say(f"{number}"), 100 * round_number + number) for number in range(40)]
        frames = [batch(*talk[start : start + 2], first=1 + 40 * round_number + start) for start in range(0, 40, 2)]
        removed, _ = await asyncio.gather(submit(world, "alice", REMOVE_BOB), send_all(alice, frames))
        removals.append(removed - 42 * round_number)
        for _ in talk:
            await alice.outcome()
        back = await submit(world, "alice", ADD_BOB)
        first = 42 * round_number + 2
        assert back == first + 41
        assert await seqs_until(carol, back) == list(range(first, back + 1))
        assert await seqs_until(bob, back) == [*range(first, removed + 1), back]
    assert any(2 < place < 42 for place in removals), "none came in the midst"


async def test_page_tokens_serve_the_list_the_user_and_the_question_that_they_were_given_for(world: World):
    for peer in ("u1", "u2", "u3"):
        await submit(world, "alice", Command(to_user_id=peer, send_message=SendMessage(body=b"x")))
        await submit(world, "bob" * 40, Command(to_user_id=peer, send_message=SendMessage(body=b"x")))
    await submit(world, "alice", CREATE)
    digests = [1] * 64

    async def sync(user: str, page_token: str = "", **fields: Any) -> str:
        request = api.SyncRequest(page_size=1, page_token=page_token, **fields)
        return (await world.stub.Sync(request, metadata=auth(token(user)))).next_page_token

    async def members(conversation: str, page_token: str = "") -> str:
        request = api.ListMembersRequest(conversation_id=conversation, page_size=1, page_token=page_token)
        return (await world.stub.ListMembers(request, metadata=auth(token("alice")))).next_page_token

    everything, changes, people = await sync("alice"), await sync("alice", digests=digests), await members(TEAM)
    long_name = await sync("bob" * 40)
    assert await sync("alice", everything)
    assert await sync("alice", changes, digests=digests)
    assert await members(TEAM, people)
    forged = [encode_page_token("sync all alice", cursor) for cursor in ("", "x", " 1 d_", "x 1", " 0", f" {1 << 64:x}", " -1")]
    for call in (
        *(
            sync("alice", page_token)
            for page_token in (changes, people, long_name, everything[:-1], everything[:9], "é", "\0", *forged)
        ),
        sync("alice", everything, digests=digests),
        sync("bob", everything),
        sync("bob" * 40 + "x", long_name),
        members(TEAM, everything),
        members((await api_rows(world, "alice"))[0].conversation_id, people),
        members(NOWHERE, people),
        members(TEAM, "x" * 10_000),
    ):
        assert await reason(call) == "PAGE_TOKEN_INVALID"


async def api_rows(world: World, user: str) -> list[Conversation]:
    return [
        row
        for row in (await world.stub.Sync(api.SyncRequest(), metadata=auth(token(user)))).conversations
        if row.conversation_id != TEAM
    ]


async def test_unread_is_exact_after_reads_elsewhere(world: World):
    """Phone reads, a bot of the same user answers having seen some: the laptop is told each time, and reads say the same."""
    await submit(world, "alice", CREATE)
    phone, laptop = await world.device("bob", "phone"), await world.device("bob", "laptop")
    for number in range(6):
        await submit(world, "alice" if number % 3 else "carol", say(f"{number}"))
    await submit(world, "alice", rename("Other"))

    async def unread(read_seq: int) -> int:
        """Return what the laptop is told of a read, which must be what the store says."""
        while True:
            frame = await laptop.frame()
            assert frame is not None
            for change in frame.batch.inbox_changes:
                if change.read_seq == read_seq:
                    (row,) = (await world.stub.Sync(api.SyncRequest(), metadata=auth(token("bob")))).conversations
                    assert (row.unread_count, row.read_seq) == (change.unread_count, read_seq)
                    return change.unread_count

    await phone.send(batch(acks=[Ack(conversation_id=TEAM, read_seq=3)]))
    assert await unread(3) == 4
    await submit(world, "bob", Command(seen_seq=5, send_message=SendMessage(body=b"seen up to five")))
    assert await unread(5) == 2
    await submit(world, "bob", say("an old one, flushed late: nothing was seen"))
    await submit(world, "alice", say("ten"))
    await phone.send(batch(acks=[Ack(conversation_id=TEAM, read_seq=6)]))
    assert await unread(6) == 2
    await phone.send(batch(acks=[Ack(conversation_id=TEAM, read_seq=2**62)]))
    assert await unread(11) == 0
