"""G17, G18: a device that floods all its streams fills little memory of a server, which serves others meanwhile."""

import asyncio
import logging
import re
from pathlib import Path

import grpc
from parley_process import Server, run

from chassis.call_tasks import CallTasks, noting_tasks
from parley.api.v1.commands_pb2 import Command, SendMessage
from parley.api.v1.messaging_service_pb2 import ConnectRequest, ConnectResponse, DeviceBatch, Heartbeat, Hello, SubmitRequest
from parley.api.v1.messaging_service_pb2_grpc import MessagingServiceStub
from parley_protocol.frames import field

STREAMS = 32  # all that one user may have
UNKNOWN_TAG = b"\x82\x7d"  # of field 2000
# A sign of life that is as large as a frame may be: it asks for nothing, and a gateway reads one a second.
FRAME = ConnectRequest(batch=DeviceBatch(heartbeat=Heartbeat())).SerializeToString() + field(UNKNOWN_TAG, bytes(900_000))
FRAMES = 20  # on each stream: 576 MB together
HELD_FRAMES = 6  # of each stream, at most: what comes in, what was taken, copies of both, and what the allocator keeps
ANSWERS = 400  # that somebody else gets meanwhile: all that he may ask for at once

log = logging.getLogger(__name__)
Metadata = tuple[tuple[str, str], ...]


def bearer(server: Server, user: str) -> Metadata:
    code, token, error = run("token", user, "--data", str(server.data), home=server.home)
    assert code == 0, error
    return (("authorization", f"Bearer {token.strip()}"),)


def memory_bytes(server: Server, what: str) -> int:
    """Return what the process takes (VmRSS), or took at most (VmHWM)."""
    status = Path(f"/proc/{server.pid}/status").read_text()
    found = re.search(rf"^{what}:\s+(\d+) kB$", status, re.MULTILINE)
    assert found
    return int(found[1]) * 1024


async def flood(channel: grpc.aio.Channel, metadata: Metadata, device: str, call_tasks: CallTasks) -> None:
    """Send frames as fast as they are taken, then wait for the stream's end."""
    with noting_tasks(call_tasks):
        call = channel.stream_stream("/parley.api.v1.MessagingService/Connect")(metadata=metadata)
    try:
        await call.write(ConnectRequest(hello=Hello(device_id=device)).SerializeToString())
        assert ConnectResponse.FromString(await call.read()).HasField("welcome")
        for _ in range(FRAMES):
            await call.write(FRAME)
        await call.code()
    finally:
        call.cancel()


async def chat(channel: grpc.aio.Channel, metadata: Metadata) -> None:
    stub = MessagingServiceStub(channel)
    for number in range(ANSWERS):
        command = Command(request_id=number.to_bytes(16, "big"), to_user_id="bob", send_message=SendMessage(body=b"hello"))
        answer = await stub.Submit(SubmitRequest(device_id="a", command=command), metadata=metadata)
        assert answer.accepted.seq == 1 + number


async def test_a_device_that_floods_all_its_streams_fills_little_memory(tmp_path: Path) -> None:
    with Server(tmp_path / "data") as server:
        mallory, alice = bearer(server, "mallory"), bearer(server, "alice")
        async with grpc.aio.insecure_channel(server.address) as own, grpc.aio.insecure_channel(server.address) as channel:
            before = memory_bytes(server, "VmRSS")
            call_tasks: CallTasks = {}
            async with asyncio.TaskGroup() as group:
                floods = [group.create_task(flood(channel, mallory, f"d{number}", call_tasks)) for number in range(STREAMS)]
                await chat(own, alice)
                for task in floods:
                    task.cancel()
            while call_tasks:  # gRPC's own, which end a moment after a call was cancelled
                await asyncio.wait(list(call_tasks))
        grown = memory_bytes(server, "VmHWM") - before
        log.info("%d MB more than before", grown >> 20)
        assert grown < STREAMS * HELD_FRAMES * len(FRAME)
