"""`parley send`: one message, for scripts."""

import asyncio
import json
import random
import sys
import time
from typing import Any

import click
import grpc

from parley.api.v1 import commands_pb2, messaging_service_pb2
from parley_cli.calls import open_stub, refusal
from parley_cli.connection import Connection, connection_options, device_option, examples, user_id
from parley_cli.durations import duration
from parley_cli.failures import CommandError, SetupError
from parley_client import CallError, InvalidCommandError
from parley_client.commands import new_request_id, with_target
from parley_client.errors import call_error
from parley_protocol.ids import REQUEST_ID_BYTES

_RETRY_SECONDS = 0.5  # where the server does not say how long to wait


@click.command(
    short_help="Send a message and wait until it is stored.",
    epilog=examples(
        'parley send --as alice --to bob "the build is green"',
        "parley send --as alice --conversation g_abcdefghijklmnopqrstuvwxyz hello",
        "git log -1 | parley send --as builds --to bob -",
    ),
)
@click.argument("text")
@click.option("--as", "user", required=True, type=user_id, metavar="USER", help="Who sends.")
@click.option("--to", "to_user", type=user_id, metavar="USER", help="Who gets it.")
@click.option("--conversation", metavar="ID", help="Or the conversation that gets it.")
@click.option("--content-type", default="", metavar="TYPE", help="The body's media type.  [default: text/plain]")
@click.option("--request-id", metavar="HEX", help="Repeat an earlier send (16 bytes in hex): it is stored once all the same.")
@click.option(
    "--timeout", "timeout_seconds", type=duration, default="30s", show_default=True, metavar="DURATION", help="Then give up."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@device_option
@connection_options
def send(
    text: str,
    user: str,
    to_user: str | None,
    conversation: str | None,
    content_type: str,
    request_id: str | None,
    timeout_seconds: float,
    as_json: bool,
    device: str,
    **options: Any,
) -> None:
    """Send TEXT (- is stdin: any bytes) and print its place in the conversation once it is stored."""
    connection = Connection.from_options(options)
    command = commands_pb2.Command(request_id=_request_id(request_id))
    command.send_message.body = sys.stdin.buffer.read() if text == "-" else text.encode(errors="surrogateescape")
    command.send_message.content_type = content_type
    try:
        with_target(command, to_user, conversation)
    except InvalidCommandError as error:
        raise click.UsageError(f"{error} (--to or --conversation)") from error
    accepted = asyncio.run(_submit(connection, user, device, command, timeout_seconds))
    if as_json:
        click.echo(
            json.dumps(
                {
                    "conversation_id": accepted.conversation_id,
                    "seq": accepted.seq,
                    "message_count": accepted.message_count,
                    "time": accepted.time.ToJsonString(),
                    "duplicate": accepted.duplicate,
                    "request_id": command.request_id.hex(),
                }
            )
        )
    else:
        click.echo(f"#{accepted.seq} in {accepted.conversation_id}" + (" (it was there already)" if accepted.duplicate else ""))


async def _submit(
    connection: Connection, user: str, device: str, command: commands_pb2.Command, timeout_seconds: float
) -> commands_pb2.Accepted:
    """Submit until there is an outcome: the request id makes that safe. Raises CommandError."""
    deadline = asyncio.get_running_loop().time() + timeout_seconds
    request = messaging_service_pb2.SubmitRequest(device_id=device, command=command)
    async with open_stub(connection, user, device) as (stub, metadata):
        while True:
            left = deadline - asyncio.get_running_loop().time()
            try:
                return (await stub.Submit(request, metadata=metadata, timeout=max(left, 0.0))).accepted
            except grpc.aio.AioRpcError as rpc_error:
                error = call_error(rpc_error)
            delay = error.retry_delay_seconds or _RETRY_SECONDS
            if not error.passes:
                raise refusal(error)
            if delay >= deadline - asyncio.get_running_loop().time():
                raise _unknown(error, command, timeout_seconds)
            await asyncio.sleep(delay)


def _unknown(error: CallError, command: commands_pb2.Command, timeout_seconds: float) -> CommandError:
    return CommandError(
        f"no outcome within {timeout_seconds:g} s ({error.detail or error.code.name}). It may be stored or not; to repeat it "
        f"safely add --request-id {command.request_id.hex()}"
    )


def _request_id(text: str | None) -> bytes:
    if text is None:
        return new_request_id(int(time.time() * 1000), random.SystemRandom())
    try:
        request_id = bytes.fromhex(text)
    except ValueError:
        request_id = b""
    if len(request_id) != REQUEST_ID_BYTES:
        raise SetupError(f"--request-id takes {REQUEST_ID_BYTES} bytes in hex, as an earlier send named them.")
    return request_id
