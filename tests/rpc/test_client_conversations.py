"""Devices talk through real sockets and the real services: what they end up with is the same, and is what the store holds."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from gateway_world import World, auth, open_world, token

from chassis.certificates import TlsFiles
from parley.api.v1 import messaging_service_pb2 as api
from parley.api.v1.commands_pb2 import ROLE_ADMIN, ROLE_OWNER
from parley_client import Client, MemoryStore, RejectedError, SignedOffError, SqliteStore, StatusError, TimelineEvent, open_client

WAIT_SECONDS = 20.0  # only a failing test waits for it


@pytest.fixture
async def world() -> AsyncIterator[World]:
    async with open_world() as opened:
        yield opened


@asynccontextmanager
async def device(world: World, user: str, name: str = "d1", store: Any = None) -> AsyncIterator[Client]:
    """Open a caught-up device."""
    store = store or MemoryStore()
    async with open_client(world.address, token=token(user), device_id=name, store=store) as client:
        await client.caught_up()
        yield client


async def events(client: Client, count: int) -> list[TimelineEvent]:
    """Return the next events."""
    async with asyncio.timeout(WAIT_SECONDS):
        reader = client.events()
        return [await anext(reader) for _ in range(count)]


async def until_seq(client: Client, conversation: str, seq: int) -> list[TimelineEvent]:
    """Return the conversation's events until the one at seq came."""
    got: list[TimelineEvent] = []
    async with asyncio.timeout(WAIT_SECONDS):
        async for event in client.events():
            if event.conversation_id == conversation:
                got.append(event)
                if event.seq >= seq:
                    return got
    raise AssertionError("the events ended")


async def assert_in_sync(world: World, *clients: Client) -> None:
    """Assert that the store's digests of each user come to equal the device's: nothing is missing, nothing is invented."""
    for client in clients:
        for _ in range(200):  # no event tells when the last ack was applied
            differing = await rows_that_differ(world, client)
            if not differing:
                break
            await asyncio.sleep(0.05)
        else:
            raise AssertionError(f"{client.user_id}/{client.device_id} differs: {differing}, {client.conversations()}")


async def rows_that_differ(world: World, client: Client) -> list[Any]:
    request = api.SyncRequest(digests=client._device.state.digests())
    response = await world.stub.Sync(request, metadata=auth(token(client.user_id)), timeout=WAIT_SECONDS)
    return list(response.conversations)


async def test_four_devices_of_two_users_hold_the_same_history_in_the_same_order(world: World):
    async with AsyncExitStack() as stack:
        names = [("alice", "d1"), ("alice", "d2"), ("bob", "d1"), ("bob", "d2")]
        clients = [await stack.enter_async_context(device(world, *name)) for name in names]
        peers = ["bob", "bob", "alice", "alice"]
        tickets = [
            await client.send(to_user=peer, body=f"{name} {number}")
            for number in range(25)
            for client, peer, name in zip(clients, peers, names, strict=True)
        ]
        places = [await ticket.accepted() for ticket in tickets]
        conversation = places[0].conversation_id
        assert sorted(place.seq for place in places) == list(range(1, 101))
        timelines = [await events(client, 100) for client in clients]
        for timeline, name in zip(timelines, names, strict=True):
            assert [event.seq for event in timeline] == list(range(1, 101))
            assert [event.event for event in timeline] == [event.event for event in timelines[0]]
            assert sum(event.own for event in timeline) == 25
            own = [event.text for event in timeline if event.own]
            assert own == [f"{name} {number}" for number in range(25)]
        await clients[0].mark_read(conversation, 100)
        await clients[2].mark_read(conversation, 90)
        await assert_in_sync(world, *clients)
        assert clients[1].conversation(conversation).unread_count == 0
        assert clients[3].conversation(conversation).unread_count == sum(
            event.actor == "alice" for event in timelines[0] if event.seq > 90
        )
        assert clients[1].conversation(conversation).peer_read_seq == 90


async def test_a_device_that_was_away_catches_up_with_what_it_missed(world: World, tmp_path: Path):
    path = tmp_path / "bob.db"
    async with device(world, "alice") as alice:
        async with device(world, "bob", store=SqliteStore(path)) as bob:
            place = await (await alice.send(to_user="bob", body="0")).accepted()
            await events(bob, 1)
            waiting = asyncio.create_task(events(bob, 1))
            await (await alice.send(to_user="bob", body="1")).accepted()
            await waiting
        for number in range(2, 302):
            await alice.send(to_user="bob", body=str(number))
        await until_seq(alice, place.conversation_id, 302)
        async with device(world, "bob", store=SqliteStore(path)) as bob:
            assert [event.text for event in await until_seq(bob, place.conversation_id, 302)] == [str(n) for n in range(1, 302)]
            await assert_in_sync(world, alice, bob)
        async with device(world, "bob", "new") as phone:
            assert [event.seq for event in await events(phone, 20)] == list(range(283, 303))
            history = await phone.history(place.conversation_id, limit=1000)
            assert [event.text for event in history] == [str(number) for number in range(302)]


async def test_a_group_lives_and_every_member_holds_exactly_his_stays(world: World):
    async with device(world, "alice") as alice, device(world, "bob") as bob, device(world, "carol") as carol:
        group = (await (await alice.create_group("Team", ["bob"])).accepted()).conversation_id
        await (await alice.send(conversation=group, body="two")).accepted()
        await (await alice.add_members(group, ["carol"])).accepted()
        await (await alice.change_role(group, "bob", ROLE_ADMIN)).accepted()
        await until_seq(bob, group, 4)
        assert bob.conversation(group).role == ROLE_ADMIN
        await (await bob.remove_member(group, "carol")).accepted()
        assert [event.seq for event in await until_seq(carol, group, 5)] == [3, 4, 5]
        await (await bob.send(conversation=group, body="six")).accepted()
        await (await bob.add_members(group, ["carol"])).accepted()
        await (await bob.rename(group, "Crew")).accepted()
        assert [event.seq for event in await until_seq(carol, group, 8)] == [7, 8]
        assert [event.content for event in await carol.history(group)] == [
            "members_added", "role_changed", "member_removed", "members_added", "settings_changed",
        ]  # fmt: skip
        await (await alice.leave(group)).accepted()
        await until_seq(bob, group, 9)
        for client in (bob, carol):
            await until_caught(client, group, 9)
            assert client.conversation(group).title == "Crew"
            assert client.conversation(group).member_count == 2
        assert bob.conversation(group).role == ROLE_OWNER
        await until_caught(alice, group, 9)
        assert alice.conversation(group).role == 0
        with pytest.raises(RejectedError) as caught:
            await (await alice.send(conversation=group, body="ten")).accepted()
        assert caught.value.reason == "NOT_A_MEMBER"
        assert [member.user_id for member in await carol.list_members(group)] == ["bob", "carol"]
        await assert_in_sync(world, alice, bob, carol)


async def until_caught(client: Client, conversation: str, seq: int) -> None:
    """Wait until a device holds a seq."""
    async with asyncio.timeout(WAIT_SECONDS):
        with client.changes() as changes:
            while client.conversation(conversation).held_seq < seq:
                await anext(changes)


async def test_a_device_that_sends_too_much_is_slowed_and_loses_neither_messages_nor_their_order():
    async with (
        open_world(commands_per_second=50, commands_burst=10, commands_per_frame=10) as world,
        device(world, "alice") as alice,
    ):
        tickets = [await alice.send(to_user="bob", body=str(number)) for number in range(60)]
        async with asyncio.timeout(WAIT_SECONDS):
            places = [await ticket.accepted() for ticket in tickets]
        assert [place.seq for place in places] == list(range(1, 61))


async def test_bodies_come_back_as_they_were_sent(world: World):
    bodies = [b"\x00", b"\xff\xfe invalid", "\u202eright to left".encode(), "\U0001f980".encode(), bytes(range(256)) * 64]
    async with device(world, "alice") as alice, device(world, "bob") as bob:
        for body in bodies:
            await alice.send(to_user="bob", body=body, content_type="application/octet-stream")
        assert [event.body for event in await events(bob, len(bodies))] == bodies
        assert [event.body for event in await events(alice, len(bodies))] == bodies


async def test_what_can_never_be_valid_is_rejected_with_its_reason(world: World):
    async with device(world, "alice") as alice:
        for ticket, reason in (
            (await alice.send(to_user="bob"), "FIELD_MISSING"),
            (await alice.send(to_user="bob", body=b"x" * (16 * 1024 + 1)), "BODY_TOO_LARGE"),
            (await alice.send(conversation="g_" + "a" * 26, body="x"), "CONVERSATION_NOT_FOUND"),
        ):
            with pytest.raises(RejectedError) as caught:
                await ticket.accepted()
            assert caught.value.reason == reason
        with pytest.raises(StatusError):
            await alice.get_conversation("g_" + "a" * 26)


async def test_a_device_id_that_no_server_takes_ends_the_client_with_the_reason(world: World):
    async with open_client(world.address, token=token("alice"), device_id="no id", store=MemoryStore()) as client:
        with pytest.raises(SignedOffError) as caught:
            await client.caught_up()
        assert caught.value.reason == "FIELD_INVALID"


async def test_over_tls_by_the_roots_that_the_app_names(tmp_path: Path):
    files = self_signed(tmp_path)
    async with open_world(server={"tls": files}) as world:
        roots = files.certificate.read_bytes()
        async with open_client(world.address, token=token("alice"), device_id="d1", store=MemoryStore(), tls=roots) as client:
            await client.caught_up()
            assert (await (await client.send(to_user="bob", body="hi")).accepted()).seq == 1


def self_signed(folder: Path) -> TlsFiles:
    """Make a certificate for 127.0.0.1."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    names = x509.SubjectAlternativeName([x509.IPAddress(IPv4Address("127.0.0.1"))])
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(now - timedelta(hours=1)).not_valid_after(now + timedelta(hours=1))
    certificate = builder.add_extension(names, critical=False).sign(key, hashes.SHA256())
    pem = serialization.Encoding.PEM
    files = TlsFiles(folder / "certificate.pem", folder / "key.pem")
    files.certificate.write_bytes(certificate.public_bytes(pem))
    files.key.write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
    return files


async def test_presence_is_asked_for(world: World):
    async with device(world, "alice") as alice, device(world, "bob"):
        assert await alice.get_presence(["bob", "carol"]) == {"bob": True, "carol": False}
