"""Calls that are no stream, over a real socket, TLS and reflection included."""

import asyncio
import datetime
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from gateway_world import World, auth, batch, message, open_world, token, until
from google.protobuf import json_format
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha import reflection_pb2
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from grpc_reflection.v1alpha.reflection_pb2_grpc import ServerReflectionStub

from chassis.certificates import TlsFiles
from chassis.errors import carried_status, reason_of, retry_delay_of
from parley.api.v1 import messaging_service_pb2 as api
from parley.api.v1.commands_pb2 import Command
from parley.api.v1.messaging_service_pb2_grpc import MessagingServiceStub
from parley.log.v1.records_pb2 import OfflineBatch
from parley_protocol.topics import OFFLINE

METADATA = auth(token("alice"))


@pytest.fixture
async def world() -> AsyncIterator[World]:
    async with open_world() as opened:
        yield opened


async def submit(world: World, command: Command, device: str = "bot") -> api.SubmitResponse:
    return await world.stub.Submit(api.SubmitRequest(device_id=device, command=command), metadata=METADATA)


async def test_submit_answers_once_stored_and_all_devices_get_the_event(world: World):
    """Also the stream of the device that the call speaks for: it did not see the outcome."""
    phone, bob = await world.device("alice", "phone"), await world.device("bob")
    accepted = (await submit(world, message("bob", b"hi"), "phone")).accepted
    assert (accepted.seq, accepted.duplicate) == (1, False)
    assert (await phone.event()).message.body == b"hi"
    assert (await bob.event()).message.body == b"hi"


async def test_submit_again_is_a_duplicate(world: World):
    command = message()
    first = (await submit(world, command)).accepted
    again = (await submit(world, command)).accepted
    assert (again.seq, again.duplicate) == (first.seq, True)


async def test_what_was_submitted_is_read_by_sync_and_pages(world: World):
    for number in range(5):
        conversation = (await submit(world, message("bob", b"%d" % number))).accepted.conversation_id
    synced = await world.stub.Sync(api.SyncRequest(), metadata=METADATA)
    assert [(row.conversation_id, row.head_seq) for row in synced.conversations] == [(conversation, 5)]
    page = await world.stub.ListEvents(
        api.ListEventsRequest(conversation_id=conversation, after_seq=1, page_size=2), metadata=METADATA
    )
    assert ([event.seq for event in page.events], page.more) == ([2, 3], True)
    row = await world.stub.GetConversation(api.GetConversationRequest(conversation_id=conversation), metadata=METADATA)
    assert row.conversation.peer_user_id == "bob"
    members = await world.stub.ListMembers(api.ListMembersRequest(conversation_id=conversation), metadata=METADATA)
    assert [member.user_id for member in members.members] == ["alice", "bob"]


async def test_presence_is_answered_in_the_order_of_the_question(world: World):
    await world.device("bob")
    answer = await world.stub.GetPresence(api.GetPresenceRequest(user_ids=["zoe", "bob", "zoe"]), metadata=METADATA)
    assert [(presence.user_id, api.PresenceState.Name(presence.state)) for presence in answer.presences] == [
        ("zoe", "PRESENCE_STATE_OFFLINE"),
        ("bob", "PRESENCE_STATE_ONLINE"),
        ("zoe", "PRESENCE_STATE_OFFLINE"),
    ]


async def test_recipients_without_a_session_are_counted_and_named():
    async with open_world(offline_grace_seconds=0) as world:
        await named_to_the_offline_topic(world)


async def named_to_the_offline_topic(world: World):
    alice = await world.device("alice")
    await alice.send(batch(message("bob")))
    accepted = (await alice.outcome()).accepted
    assert world.value("parley_gateway_unreached_total") == 1
    async with world.engines.log.open_consumer(OFFLINE, "test") as consumer:
        (record,) = (await consumer.poll(10)).records
    (named,) = OfflineBatch.FromString(record.value).users
    assert (named.user_id, named.conversation_id, named.seq) == ("bob", accepted.conversation_id, 1)
    await until(lambda: world.value("parley_router_offline_total") == 1)


async def test_reflection_names_the_service_and_describes_its_frames(world: World):
    stub = ServerReflectionStub(world.channel)  # type: ignore[no-untyped-call]
    asked = [
        reflection_pb2.ServerReflectionRequest(list_services=""),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol="parley.api.v1.MessagingService"),
    ]
    call = stub.ServerReflectionInfo(iter(asked))
    answers = [answer async for answer in call]
    assert "parley.api.v1.MessagingService" in {service.name for service in answers[0].list_services_response.service}
    file = FileDescriptorProto.FromString(answers[1].file_descriptor_response.file_descriptor_proto[0])
    assert "Connect" in {method.name for method in file.service[0].method}


async def test_a_generic_client_that_knows_only_what_reflection_tells_sends_and_reads(world: World):
    """As grpcurl and its like do it: JSON in, JSON out."""

    def talk() -> None:
        with grpc.insecure_channel(world.address) as channel:
            pool = DescriptorPool(ProtoReflectionDescriptorDatabase(channel))  # type: ignore[no-untyped-call]
            service = pool.FindServiceByName("parley.api.v1.MessagingService")

            def call(name: str, document: dict[str, Any]) -> Any:
                method = service.FindMethodByName(name)
                question, answer = GetMessageClass(method.input_type), GetMessageClass(method.output_type)
                rpc = channel.unary_unary(f"/{service.full_name}/{name}", question.SerializeToString, answer.FromString)
                return json_format.MessageToDict(rpc(json_format.ParseDict(document, question()), metadata=METADATA))

            command = {"requestId": "A" * 22 + "==", "toUserId": "bob", "sendMessage": {"body": "aGk="}}
            accepted = call("Submit", {"deviceId": "bot", "command": command})["accepted"]
            assert accepted["seq"] == "1"
            row = call("Sync", {"lastEventsCount": 1})["conversations"][0]
            assert (row["peerUserId"], row["lastEvents"][0]["message"]) == ("bob", {"body": "aGk="})
            page = call("ListEvents", {"conversationId": accepted["conversationId"], "pageSize": 1})
            assert page["events"] == row["lastEvents"]

    await asyncio.to_thread(talk)


def write_certificate(folder: Path) -> TlsFiles:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    (folder / "cert.pem").write_bytes(certificate.public_bytes(Encoding.PEM))
    (folder / "key.pem").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return TlsFiles(folder / "cert.pem", folder / "key.pem")


async def test_tls_serves_those_who_trust_its_certificate_and_no_plaintext(tmp_path: Path):
    files = write_certificate(tmp_path)
    async with open_world(server={"tls": files}) as world:
        port = world.address.rpartition(":")[2]
        credentials = grpc.ssl_channel_credentials((tmp_path / "cert.pem").read_bytes())
        async with grpc.aio.secure_channel(f"localhost:{port}", credentials) as channel:
            answer = await MessagingServiceStub(channel).Sync(api.SyncRequest(), metadata=METADATA)
            assert not answer.conversations
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await world.stub.Sync(api.SyncRequest(), metadata=METADATA, timeout=2)
        assert error.value.code() in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED}


async def test_a_service_behind_that_is_away_makes_calls_unavailable(world: World):
    await world.internal.stop(None)
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await world.stub.Sync(api.SyncRequest(), metadata=METADATA)
    status = carried_status(error.value)
    assert status is not None
    assert (status.code, reason_of(status)) == (grpc.StatusCode.UNAVAILABLE.value[0], "UNAVAILABLE")
    assert retry_delay_of(status)
