"""SIGKILL under load, five times: the delivery contract judged from what devices and tables hold."""

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path

import grpc
from parley_process import run

from chassis.tasks import open_tasks
from parley.api.v1.messaging_service_pb2_grpc import MessagingServiceStub
from parley_chaos.recorded_device import RecordedDevice, open_recorded_device
from parley_checker.history import Device, History, entry_of
from parley_checker.judge import judge
from parley_cli.bench_reads import read_timeline
from parley_cli.connection import local_token
from parley_cli.server_process import open_server_process
from parley_cli.table_files import read_timelines
from parley_client import SqliteStore
from parley_client.recording import open_record_file
from parley_protocol.ids import direct_conversation_id

KILLS = 5
ACCEPTED_BETWEEN_KILLS = 60
PACE_SECONDS = 0.003  # a user types on without waiting for the server
DEADLINE_SECONDS = 120
DEVICES = [Device("alice", "a1"), Device("alice", "a2"), Device("bob", "b1"), Device("carol", "c1")]


async def chatter(device: RecordedDevice, peer: str, group_id: str, stop: asyncio.Event) -> None:
    """Write to a user and into the group, on and on."""
    number = 0
    while not stop.is_set():
        number += 1
        await device.say(f"{device.device} {number}\0\xff".encode(), to_user=peer)
        await device.say_in(group_id, f"{device.device} to all {number}".encode())
        await asyncio.sleep(PACE_SECONDS)


async def test_what_was_acked_survives_five_kills_under_load(tmp_path: Path) -> None:
    history, data = History(), tmp_path / "data"
    address, unanswered_at_kills = "127.0.0.1:0", []
    async with asyncio.timeout(DEADLINE_SECONDS), AsyncExitStack() as stack, AsyncExitStack() as devices_stack:
        file = stack.enter_context(open_record_file(tmp_path / "kills.jsonl"))
        server, address = await stack.enter_async_context(open_server_process(data, listen=address))
        opened = [
            open_recorded_device(
                address,
                local_token(data, device.user_id, ""),
                device,
                SqliteStore(tmp_path / f"{device.device_id}.db"),
                history,
                file=file,
            )
            for device in DEVICES
        ]
        devices = [await devices_stack.enter_async_context(device) for device in opened]
        alice, _, bob, carol = devices
        group_id = await alice.create_group("all", ["bob", "carol"])
        for device in devices:
            await device.wait_until(lambda device=device: device.shown(group_id) > 0)

        stop = asyncio.Event()
        async with open_tasks("users") as tasks:
            pairs = [(alice, "bob"), (bob, "carol"), (carol, "alice")]
            writing = [tasks.spawn(chatter(device, peer, group_id, stop), name=peer) for device, peer in pairs]
            for _ in range(KILLS):
                enough = len(history.devices[DEVICES[0]].answered) + ACCEPTED_BETWEEN_KILLS
                await alice.wait_until(lambda enough=enough: len(history.devices[DEVICES[0]].answered) >= enough)
                await server.kill()
                unanswered_at_kills.append(sum(device.unanswered for device in devices))
                server, _ = await stack.enter_async_context(open_server_process(data, listen=address))
            stop.set()
            await asyncio.gather(*writing)

        for device in devices:
            await device.wait_until(lambda device=device: not device.unanswered)
        heads: dict[str, int] = {}
        for own in history.devices.values():
            for answer in own.answered:
                heads[answer.conversation_id] = max(heads.get(answer.conversation_id, 0), answer.seq)
        for device in devices:
            for conversation_id in conversations_of(device.device.user_id, group_id):
                head = heads[conversation_id]
                await device.wait_until(lambda d=device, c=conversation_id, head=head: d.shown(c) >= head)
            device.settle()

        async with grpc.aio.insecure_channel(address) as channel:
            stub = MessagingServiceStub(channel)
            history.readings["ListEvents"] = {
                conversation_id: [
                    entry_of(event) async for event in read_timeline(stub, local_token(data, user, ""), conversation_id)
                ]
                for user in ("alice", "bob")
                for conversation_id in conversations_of(user, group_id)
            }
        await devices_stack.aclose()
        await server.stop()
    history.readings["files"] = read_timelines(data)

    verdict = judge(history)
    assert verdict.stories == []
    assert verdict.kept
    assert (verdict.unanswered, verdict.rejected) == (0, 0)
    assert verdict.acked == verdict.stored > KILLS * ACCEPTED_BETWEEN_KILLS
    code, out, err = await asyncio.to_thread(run, "check", str(tmp_path / "kills.jsonl"), "--data", str(data), home=tmp_path)
    assert (code, err) == (0, "")
    assert out.splitlines()[-1] == verdict.line()
    assert len(unanswered_at_kills) == KILLS
    assert all(unanswered_at_kills), "a kill that interrupted nothing proves nothing"


def conversations_of(user_id: str, group_id: str) -> list[str]:
    """Return the conversations that a user takes part in: the group, and with each of the others."""
    return [group_id, *(direct_conversation_id(user_id, peer) for peer in ("alice", "bob", "carol") if peer != user_id)]
