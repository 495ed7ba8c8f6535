"""Bad input over a real socket: each is answered with a reason, and costs nobody else anything."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from gateway_world import KEY, World, auth, batch, message, open_world, token, until

from chassis.errors import carried_status, reason_of
from parley.api.v1 import messaging_service_pb2 as api
from parley.api.v1.commands_pb2 import ChangeRole, Command, CreateGroup, Leave, SendMessage
from parley.api.v1.events_pb2 import Ack
from parley.gateway.v1.frames_pb2 import RawConnectRequest, RawDeviceBatch
from parley.log.v1.records_pb2 import RawCommand
from parley_protocol.ids import direct_conversation_id
from services.gateway.inbound import Inbound

UNKNOWN_FIELD = b"\xa2\x06\x02hi"  # number 100, 2 bytes
GROUP = "g_" + "a" * 26


@pytest.fixture
async def world() -> AsyncIterator[World]:
    async with open_world() as opened:
        yield opened
        await opened.alive()


def claims(**changes: Any) -> dict[str, Any]:
    return {"sub": "alice", "exp": time.time() + 60, **changes}


BAD_TOKENS: dict[str, tuple[str | None, str]] = {
    "none": (None, "TOKEN_MISSING"),
    "expired": (token("alice", ttl_seconds=-60), "TOKEN_EXPIRED"),
    "wrong signature": (jwt.encode(claims(), Ed25519PrivateKey.generate(), algorithm="EdDSA"), "TOKEN_INVALID"),
    "alg none": (jwt.encode(claims(), None, algorithm="none"), "TOKEN_INVALID"),
    "no subject": (jwt.encode({"exp": time.time() + 60}, KEY, algorithm="EdDSA"), "TOKEN_INVALID"),
    "no end": (jwt.encode({"sub": "alice"}, KEY, algorithm="EdDSA"), "TOKEN_INVALID"),
    "subject with a space": (jwt.encode(claims(sub="a b"), KEY, algorithm="EdDSA"), "TOKEN_INVALID"),
    "garbage": ("garbage", "TOKEN_INVALID"),
}


@pytest.mark.parametrize("bearer", BAD_TOKENS)
async def test_stream_without_a_good_token_gets_goaway_and_a_status(world: World, bearer: str):
    sent, reason = BAD_TOKENS[bearer]
    stream = world.stream(sent)
    frame = await stream.frame()
    assert frame is not None
    expired = reason == "TOKEN_EXPIRED"
    assert frame.go_away.reason == (api.GO_AWAY_REASON_EXPIRED if expired else api.GO_AWAY_REASON_UNAUTHENTICATED)
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await stream.frame()
    assert error.value.code() is grpc.StatusCode.UNAUTHENTICATED
    status = carried_status(error.value)
    assert status is not None
    assert reason_of(status) == reason


CALLS: list[tuple[str, Any]] = [
    ("Submit", api.SubmitRequest(device_id="d", command=message())),
    ("Sync", api.SyncRequest()),
    ("ListEvents", api.ListEventsRequest(conversation_id=GROUP)),
    ("GetConversation", api.GetConversationRequest(conversation_id=GROUP)),
    ("ListMembers", api.ListMembersRequest(conversation_id=GROUP)),
    ("GetPresence", api.GetPresenceRequest(user_ids=["bob"])),
]


async def refused(call: Any) -> tuple[str, str]:
    """Return code and reason of a call that must fail."""
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await call
    status = carried_status(error.value)
    assert status is not None, error.value
    return error.value.code().name, reason_of(status)


@pytest.mark.parametrize("bearer", BAD_TOKENS)
async def test_no_call_is_served_without_a_good_token(world: World, bearer: str):
    sent, reason = BAD_TOKENS[bearer]
    metadata = auth(sent) if sent is not None else None
    for name, request in CALLS:
        assert await refused(getattr(world.stub, name)(request, metadata=metadata)) == ("UNAUTHENTICATED", reason), name


async def test_frame_before_hello_and_second_hello_are_refused_and_the_stream_goes_on(world: World):
    alice = world.stream(token("alice"))
    await alice.send(batch(message()))
    assert reason_of(await alice.refusal()) == "HELLO_EXPECTED"
    await alice.hello()
    await alice.send(api.ConnectRequest(hello=api.Hello(device_id="d1")))
    assert reason_of(await alice.refusal()) == "HELLO_REPEATED"
    await alice.send(batch(message()))
    assert (await alice.outcome()).accepted.seq == 1


@pytest.mark.parametrize("device", ["", "a b", "x" * 129, "x" * 10_000, "a\x00", "é", "a\n"])
async def test_hello_with_a_malformed_device_is_refused_and_may_be_mended(world: World, device: str):
    alice = world.stream(token("alice"))
    await alice.send(api.ConnectRequest(hello=api.Hello(device_id=device)))
    assert reason_of(await alice.refusal()) == ("FIELD_INVALID" if device else "FIELD_MISSING")
    await alice.hello()


@pytest.mark.parametrize(
    "frame", [b"\xff", b"\x12\xff\xff", b"\x0a\x02\xc3\x28", b"garbage", b"\x12\x05" + b"\xff" * 5, bytes(100)]
)
async def test_frame_that_can_not_be_parsed_is_refused_and_the_stream_goes_on(world: World, frame: bytes):
    alice = await world.device("alice")
    await alice.raw(frame)
    assert reason_of(await alice.refusal()) == "MALFORMED"
    await alice.send(batch(message()))
    assert (await alice.outcome()).accepted.seq == 1


@pytest.mark.parametrize("frame", [b"", UNKNOWN_FIELD])
async def test_frame_that_holds_nothing_known_is_refused(world: World, frame: bytes):
    alice = await world.device("alice")
    await alice.raw(frame)
    assert reason_of(await alice.refusal()) == "FIELD_MISSING"


async def test_client_that_mends_nothing_is_sent_away(world: World):
    alice = await world.device("alice")
    for _ in range(16):
        await alice.raw(b"\xff")
    goodbye = await alice.goodbye()
    assert (goodbye.reason, goodbye.reconnect) == (api.GO_AWAY_REASON_PROTOCOL_ERROR, False)


async def test_frame_over_the_limit_ends_the_stream_and_no_other(world: World):
    bob = await world.device("bob")
    alice = await world.device("alice")
    await alice.raw(bytes(5 * 1024 * 1024))
    assert await alice.call.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    await bob.send(batch(message("bob")))
    assert (await bob.outcome()).accepted.seq == 1


async def test_too_many_commands_in_a_frame_are_refused_as_a_whole(world: World):
    alice = await world.device("alice")
    await alice.send(batch(*(Command(request_id=b"%016d" % number, to_user_id="bob") for number in range(10_000))))
    assert reason_of(await alice.refusal()) == "TOO_MANY_COMMANDS"
    await alice.send(batch(message()))
    assert (await alice.outcome()).accepted.seq == 1


BAD_COMMANDS: dict[str, tuple[Command, str]] = {
    "empty body": (Command(to_user_id="bob", send_message=SendMessage()), "FIELD_MISSING"),
    "body over the limit": (Command(to_user_id="bob", send_message=SendMessage(body=bytes(16 * 1024 + 1))), "BODY_TOO_LARGE"),
    "no action": (Command(to_user_id="bob"), "FIELD_MISSING"),
    "no target": (Command(send_message=SendMessage(body=b"x")), "FIELD_MISSING"),
    "user id with control characters": (Command(to_user_id="b\x07b", send_message=SendMessage(body=b"x")), "FIELD_INVALID"),
    "user id of 10 kB": (Command(to_user_id="b" * 10_000, send_message=SendMessage(body=b"x")), "FIELD_INVALID"),
    "conversation id of 10 kB": (Command(conversation_id="g_" * 5000, leave=Leave()), "FIELD_INVALID"),
    "negative seen_seq": (Command(to_user_id="bob", seen_seq=-1, send_message=SendMessage(body=b"x")), "FIELD_INVALID"),
    "future role": (Command(conversation_id=GROUP, change_role=ChangeRole(user_id="bob", role=77)), "FIELD_INVALID"),  # type: ignore[arg-type]
    "title with control characters": (Command(create_group=CreateGroup(title="a\nb")), "FIELD_INVALID"),
    "unknown conversation": (Command(conversation_id=GROUP, send_message=SendMessage(body=b"x")), "CONVERSATION_NOT_FOUND"),
    "unknown action": (Command.FromString(Command(to_user_id="bob").SerializeToString() + UNKNOWN_FIELD), "ACTION_UNSUPPORTED"),
}


@pytest.mark.parametrize("name", BAD_COMMANDS)
async def test_command_that_can_never_be_valid_is_rejected_on_a_stream_and_in_a_call(world: World, name: str):
    sent, reason = BAD_COMMANDS[name]
    command = Command(request_id=b"r" * 16)
    command.MergeFrom(sent)
    alice = await world.device("alice")
    await alice.send(batch(command, message()))
    outcomes = {outcome.request_id: outcome for outcome in [await alice.outcome(), await alice.outcome()]}
    assert reason_of(outcomes.pop(command.request_id).rejected) == reason
    assert outcomes.popitem()[1].accepted.seq == 1
    call = world.stub.Submit(api.SubmitRequest(device_id="d2", command=command), metadata=auth(token("alice")))
    assert (await refused(call))[1] == reason


@pytest.mark.parametrize("request_id", [b"", b"short", b"x" * 17, b"x" * 10_000])
async def test_request_id_of_another_size_can_not_be_answered_so_its_frame_is_refused(world: World, request_id: bytes):
    alice = await world.device("alice")
    await alice.send(batch(message(), message(request_id=request_id)))
    assert reason_of(await alice.refusal()) == "FIELD_INVALID"
    await alice.send(batch(message(), first=3))
    assert (await alice.outcome()).accepted.seq == 1, "nothing of the refused frame was done"


FRAMES: dict[str, Callable[[], api.ConnectRequest]] = {
    "number 0": lambda: batch(message(), first=0),
    "negative number": lambda: batch(message(), first=-5),
    "negative delivered": lambda: batch(acks=[Ack(conversation_id=direct_conversation_id("alice", "bob"), delivered_seq=-1)]),
    "negative read": lambda: batch(acks=[Ack(conversation_id=direct_conversation_id("alice", "bob"), read_seq=-(2**63))]),
    "ack without conversation": lambda: batch(acks=[Ack(delivered_seq=1)]),
    "ack of a malformed conversation": lambda: batch(acks=[Ack(conversation_id="x" * 10_000, delivered_seq=1)]),
    "too many acks": lambda: batch(acks=[Ack(conversation_id=GROUP, delivered_seq=1)] * 2001),
    "too many skips": lambda: batch(skips=[api.Skip(number=1)] * 2001),
}


@pytest.mark.parametrize("name", FRAMES)
async def test_frame_with_impossible_numbers_is_refused(world: World, name: str):
    alice = await world.device("alice")
    await alice.send(FRAMES[name]())
    assert reason_of(await alice.refusal()) == "FIELD_INVALID"


async def test_future_watermarks_and_those_of_strangers_change_nothing(world: World):
    alice, bob = await world.device("alice"), await world.device("bob")
    await alice.send(batch(message("bob")))
    conversation = (await alice.outcome()).accepted.conversation_id
    ahead = Ack(conversation_id=conversation, delivered_seq=2**62, read_seq=2**62)
    await (await world.device("carol")).send(batch(acks=[ahead]))
    await bob.send(batch(acks=[ahead, Ack(conversation_id=GROUP, delivered_seq=5)]))
    while (frame := await alice.frame()) is not None and not frame.batch.receipts:
        pass
    assert frame is not None
    assert [(receipt.user_id, receipt.delivered_seq, receipt.read_seq) for receipt in frame.batch.receipts] == [("bob", 1, 1)]


async def test_skip_of_what_was_never_held_changes_nothing(world: World):
    alice = await world.device("alice")
    skips = [api.Skip(number=-1, conversation_id="x" * 1000), api.Skip()]
    await alice.send(batch(message(), skips=skips))
    assert (await alice.outcome()).accepted.seq == 1


async def test_unknown_fields_pass_through_to_every_device(world: World):
    """A newer client's message keeps what this server does not know."""
    alice, bob = await world.device("alice"), await world.device("bob")
    content = SendMessage.FromString(SendMessage(body=b"new").SerializeToString() + UNKNOWN_FIELD)
    command = Command(request_id=b"u" * 16, to_user_id="bob", send_message=content)
    await alice.raw(batch(Command.FromString(command.SerializeToString() + UNKNOWN_FIELD)).SerializeToString() + UNKNOWN_FIELD)
    assert (await alice.outcome()).accepted.seq == 1
    event = await bob.event()
    assert UNKNOWN_FIELD in event.message.SerializeToString()


async def test_what_is_taken_can_be_parsed_wherever_it_goes(world: World):
    """Fields nested almost as deeply as a parser goes down lie deeper in the frames and pages of those who get them."""
    alice, bob = await world.device("alice"), await world.device("bob")
    reasons, seq = [], 0
    for number, depth in enumerate(range(90, 104), 1):
        nested = SendMessage(body=b"x").SerializeToString() + b"\xa3\x06" * depth + b"\xa4\x06" * depth
        command = RawCommand(request_id=b"%016d" % number, to_user_id="bob", send_message=nested).SerializeToString()
        raw = RawDeviceBatch(first_command_number=number, commands=[RawCommand.FromString(command)])
        await alice.raw(RawConnectRequest(batch=raw).SerializeToString())
        outcome = await alice.outcome()
        reasons.append(reason_of(outcome.rejected))
        seq += outcome.HasField("accepted")
    assert set(reasons) == {"", "MALFORMED"}
    assert [(await bob.event()).seq for _ in range(seq)] == list(range(1, seq + 1))
    metadata = auth(token("bob"))
    (row,) = (await world.stub.Sync(api.SyncRequest(last_events_count=50), metadata=metadata)).conversations
    assert len(row.last_events) == seq
    page = await world.stub.ListEvents(api.ListEventsRequest(conversation_id=row.conversation_id), metadata=metadata)
    assert len(page.events) == seq


async def test_foreign_conversation_is_as_unknown_as_none(world: World):
    alice = await world.device("alice")
    await alice.send(batch(message("bob")))
    conversation = (await alice.outcome()).accepted.conversation_id
    stub, metadata = world.stub, auth(token("carol"))
    for call in (
        stub.ListEvents(api.ListEventsRequest(conversation_id=conversation), metadata=metadata),
        stub.GetConversation(api.GetConversationRequest(conversation_id=conversation), metadata=metadata),
        stub.ListMembers(api.ListMembersRequest(conversation_id=conversation), metadata=metadata),
        stub.Submit(
            api.SubmitRequest(
                device_id="d",
                command=Command(request_id=b"c" * 16, conversation_id=conversation, send_message=SendMessage(body=b"x")),
            ),
            metadata=metadata,
        ),
    ):
        assert await refused(call) == ("NOT_FOUND", "CONVERSATION_NOT_FOUND")


READS: list[tuple[str, Any]] = [
    ("Sync", api.SyncRequest(digests=[1, 2, 3])),
    ("Sync", api.SyncRequest(page_size=-1)),
    ("Sync", api.SyncRequest(page_token="from elsewhere")),
    ("ListEvents", api.ListEventsRequest()),
    ("ListEvents", api.ListEventsRequest(conversation_id="x" * 10_000)),
    ("ListMembers", api.ListMembersRequest(conversation_id=direct_conversation_id("alice", "bob"), page_token="\x00elsewhere")),
    ("GetPresence", api.GetPresenceRequest()),
    ("GetPresence", api.GetPresenceRequest(user_ids=["u"] * 101)),
    ("GetPresence", api.GetPresenceRequest(user_ids=["a\x00"])),
]


@pytest.mark.parametrize(("name", "request_"), READS)
async def test_reads_with_impossible_questions_are_refused(world: World, name: str, request_: Any):
    alice = await world.device("alice")
    await alice.send(batch(message("bob")))
    await alice.outcome()
    code, reason = await refused(getattr(world.stub, name)(request_, metadata=auth(token("alice"))))
    assert code in {"INVALID_ARGUMENT", "NOT_FOUND"}
    assert reason


@pytest.mark.parametrize("name", [name for name, _ in CALLS])
async def test_call_that_can_not_be_parsed_is_malformed(world: World, name: str):
    method = world.channel.unary_unary(f"/parley.api.v1.MessagingService/{name}")
    assert await refused(method(b"\xff\xff\xff", metadata=auth(token("alice")))) == ("INVALID_ARGUMENT", "MALFORMED")


async def test_submit_names_a_device_and_a_command(world: World):
    def submit(user_token: str, **fields: Any) -> Any:
        return world.stub.Submit(api.SubmitRequest(**fields), metadata=auth(user_token))

    assert await refused(submit(token("alice"), command=message())) == ("INVALID_ARGUMENT", "FIELD_MISSING")
    assert await refused(submit(token("alice"), device_id="d")) == ("INVALID_ARGUMENT", "FIELD_MISSING")
    assert await refused(submit(token("alice"), device_id="a b", command=message())) == ("INVALID_ARGUMENT", "FIELD_INVALID")
    assert await refused(submit(token("alice", "p"), device_id="d", command=message())) == ("PERMISSION_DENIED", "DEVICE_MISMATCH")
    bad_id = Command(request_id=b"x", to_user_id="bob", send_message=SendMessage(body=b"x"))
    assert await refused(submit(token("alice"), device_id="d", command=bad_id)) == ("INVALID_ARGUMENT", "FIELD_INVALID")


async def test_calls_over_the_rate_get_a_delay():
    async with open_world(commands_per_second=1, commands_burst=3, commands_per_frame=3) as world:
        metadata = auth(token("alice"))
        for _ in range(3):
            await world.stub.Sync(api.SyncRequest(), metadata=metadata)
        assert await refused(world.stub.Sync(api.SyncRequest(), metadata=metadata)) == ("RESOURCE_EXHAUSTED", "RATE_LIMITED")
        await world.stub.Sync(api.SyncRequest(), metadata=auth(token("bob")))


async def test_commands_in_flood_are_slowed_and_answered():
    """A device that ignores every Retry gets one for each command, and its stream is read more slowly."""
    async with open_world(commands_per_second=100, commands_burst=20, commands_per_frame=20) as world:
        alice = await world.device("alice")
        for number in range(5):
            await alice.send(batch(*(message("bob") for _ in range(20)), first=1 + 20 * number))
        outcomes = [await alice.outcome() for _ in range(100)]
        results = [outcome.WhichOneof("result") for outcome in outcomes]
        assert 20 <= results.count("accepted") <= 80
        assert results.count("accepted") + results.count("retry") == 100
        await world.alive()


async def test_abandoned_submits_leave_nothing_waiting(world: World):
    calls = [
        world.stub.Submit(api.SubmitRequest(device_id="d", command=message()), metadata=auth(token("alice"))) for _ in range(20)
    ]
    await asyncio.sleep(0)
    for call in calls:
        call.cancel()
    await until(lambda: not world.value("parley_gateway_waiting_submits"))


async def test_our_own_bug_ends_one_stream_with_internal_and_nothing_else(world: World, monkeypatch: pytest.MonkeyPatch):
    alice, bob = await world.device("alice"), await world.device("bob")
    with monkeypatch.context() as patched:

        def fail(*_arguments: object) -> None:
            raise RuntimeError("a bug")

        patched.setattr(Inbound, "take", fail)
        await alice.send(batch(message()))
        assert await alice.call.code() is grpc.StatusCode.INTERNAL
        assert "a bug" not in await alice.call.details()
    await bob.send(batch(message("bob")))
    assert (await bob.outcome()).accepted.seq == 1
