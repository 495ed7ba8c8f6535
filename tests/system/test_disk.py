"""What a server does when its disk is full, read-only, or not the one that it was: one clear line, or Retry until there is room."""

import asyncio
import re
import resource
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
from parley_process import Server, run

from chassis.errors import carried_status, reason_of, retry_delay_of
from parley.api.v1 import messaging_service_pb2 as api
from parley.api.v1.commands_pb2 import Command, Outcome, SendMessage
from parley.api.v1.messaging_service_pb2_grpc import MessagingServiceStub
from parley_protocol.ids import direct_conversation_id
from services.gateway.keys import KEY_FILE_NAME, load_or_create_key, mint_token

WAIT_SECONDS = 20.0  # only a failing test waits for it


@contextmanager
def no_room(server: Server) -> Iterator[None]:
    """Let the running server's files take no more, as on a full disk: the kernel refuses each write to them."""
    soft, hard = resource.prlimit(server.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (1, hard))
    try:
        yield
    finally:
        resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (soft, hard))


def message(number: int) -> Command:
    return Command(request_id=number.to_bytes(16, "big"), to_user_id="bob", send_message=SendMessage(body=b"%d" % number))


async def outcomes_of(call: "grpc.aio.StreamStreamCall[api.ConnectRequest, api.ConnectResponse]", *numbers: int) -> list[Outcome]:
    """Send the commands of these numbers, which count from 1 on this stream, as messages 3 greater; return their outcomes."""
    frame = api.DeviceBatch(first_command_number=numbers[0], commands=[message(number + 3) for number in numbers])
    await call.write(api.ConnectRequest(batch=frame))
    found: dict[bytes, Outcome] = {}
    while len(found) < len(numbers):
        response = await call.read()
        assert isinstance(response, api.ConnectResponse)
        found.update({outcome.request_id: outcome for outcome in response.batch.outcomes})
    return [found[command.request_id] for command in frame.commands]


async def fill_and_empty(server: Server) -> None:
    key = load_or_create_key(server.data / KEY_FILE_NAME)
    metadata = (("authorization", f"Bearer {mint_token(key, 'alice', '', 600, time.time())}"),)
    page = api.ListEventsRequest(conversation_id=direct_conversation_id("alice", "bob"))
    async with grpc.aio.insecure_channel(server.address) as channel, asyncio.timeout(WAIT_SECONDS):
        stub = MessagingServiceStub(channel)

        def submit(number: int) -> "grpc.aio.UnaryUnaryCall[api.SubmitRequest, api.SubmitResponse]":
            return stub.Submit(api.SubmitRequest(device_id="bot", command=message(number)), metadata=metadata)

        call = stub.Connect(metadata=metadata)
        await call.write(api.ConnectRequest(hello=api.Hello(device_id="phone")))
        await call.read()
        assert (await submit(1)).accepted.seq == 1
        with no_room(server):
            with pytest.raises(grpc.aio.AioRpcError) as unknown:
                await submit(2)  # taken before the disk was known to be full
            assert unknown.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await submit(3)
            status = carried_status(refused.value)
            assert status is not None
            assert reason_of(status) == "OVERLOADED"
            assert retry_delay_of(status)
            for outcome in await outcomes_of(call, 1, 2):
                assert (outcome.retry.number, reason_of(outcome.retry.reason)) == (1, "OVERLOADED")
                assert outcome.retry.delay.ToMilliseconds() > 0
            assert len((await stub.ListEvents(page, metadata=metadata)).events) == 1, "reads go on"
        while (answer := (await outcomes_of(call, 1, 2)))[0].HasField("retry"):  # noqa: ASYNC110
            await asyncio.sleep(answer[0].retry.delay.ToMilliseconds() / 1000)
        assert [outcome.accepted.seq for outcome in answer] == [3, 4], "what was taken came first"
        again = (await submit(2)).accepted
        assert (again.seq, again.duplicate) == (2, True)
        events = (await stub.ListEvents(page, metadata=metadata)).events
        assert [event.message.body for event in events] == [b"1", b"2", b"4", b"5"]


def test_on_a_full_disk_nothing_is_promised_and_with_room_all_goes_on(tmp_path: Path) -> None:
    with Server(tmp_path / "data", env={"PARLEY_GATEWAY_SUBMIT_SECONDS": "1"}) as server:
        asyncio.run(fill_and_empty(server))
        server.signal(signal.SIGTERM)
        assert server.wait(5) == 0
        assert "gateway.append_failed" in server.stderr.rest()


def refused_start(data: Path, **env: str) -> str:
    """Start a server that can't begin; return its one line."""
    code, out, err = run("up", "--listen", "127.0.0.1:0", "--data", str(data), home=data.parent, env=env)
    assert (code, out) == (2, "")
    assert re.fullmatch(r"Error: .*\.\n", err), err
    return err


def test_a_server_that_can_not_begin_says_why_in_one_line(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with Server(data) as server:
        assert server.run("send", "--as", "alice", "--to", "bob", "kept")[0] == 0
        server.signal(signal.SIGTERM)
        assert server.wait(5) == 0
    assert "missing.json can't be read" in refused_start(data, PARLEY_GATEWAY_TOKEN_KEYS_FILE=str(tmp_path / "missing.json"))
    assert "/sys/parley can't be used" in refused_start(Path("/sys/parley"))

    def broken(name: str) -> Path:
        return Path(shutil.copytree(data, tmp_path / name))

    for file in broken("older").glob("commands.db*"):
        file.unlink()
    assert "the log's file is older than the tables'" in refused_start(tmp_path / "older")
    (broken("garbage") / "tables.db").write_bytes(b"garbage")
    assert "not a database" in refused_start(tmp_path / "garbage")
    (broken("no key") / KEY_FILE_NAME).unlink()
    (tmp_path / "no key" / KEY_FILE_NAME).mkdir()
    assert "can't be used: Is a directory" in refused_start(tmp_path / "no key")
