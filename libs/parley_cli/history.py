"""`parley history`: what was said in a conversation."""

import asyncio
from typing import Any

import click
import grpc

from parley.api.v1 import events_pb2, messaging_service_pb2
from parley_cli.calls import open_stub, refusal
from parley_cli.connection import Connection, connection_options, examples, user_id
from parley_cli.rendering import json_line, line_of
from parley_client.errors import call_error
from parley_protocol.ids import direct_conversation_id, is_conversation_id
from parley_protocol.limits import PAGE_EVENTS

_CALL_SECONDS = 10.0


@click.command(
    short_help="Print a conversation's last events.",
    epilog=examples(
        "parley history --as alice --with bob",
        "parley history --as alice --with bob --limit 1000 --json | jq -r .text",
        "parley history --as alice --conversation g_abcdefghijklmnopqrstuvwxyz --before 100",
    ),
)
@click.option("--as", "user", required=True, type=user_id, metavar="USER", help="Who reads.")
@click.option("--with", "peer", type=user_id, metavar="USER", help="The other one of a 1-1 conversation.")
@click.option("--conversation", metavar="ID", help="Or any conversation.")
@click.option("--limit", type=click.IntRange(1), default=50, show_default=True, metavar="N", help="How many events.")
@click.option("--before", type=click.IntRange(1), metavar="SEQ", help="Only events before this place.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON lines; bodies are `text`, or `body_base64` if no UTF-8.")
@connection_options
def history(
    user: str, peer: str | None, conversation: str | None, limit: int, before: int | None, as_json: bool, **options: Any
) -> None:
    """Print a conversation's last events, oldest first. Needs a server that runs."""
    if (peer is None) == (conversation is None):
        raise click.UsageError("name either a user (--with) or a conversation (--conversation)")
    if conversation is not None and not is_conversation_id(conversation):
        raise click.UsageError(f"{conversation!r} is no conversation id")
    conversation_id = conversation or direct_conversation_id(user, peer or "")
    for event in asyncio.run(_read(Connection.from_options(options), user, conversation_id, limit, before or 0)):
        click.echo(json_line(event) if as_json else line_of(event))


async def _read(connection: Connection, user: str, conversation_id: str, limit: int, before: int) -> list[events_pb2.Event]:
    """Return the last `limit` events before a seq (0: the newest), by seq. Raises CommandError."""
    pages: list[list[events_pb2.Event]] = []
    async with open_stub(connection, user, "") as (stub, metadata):
        while limit:
            request = messaging_service_pb2.ListEventsRequest(
                conversation_id=conversation_id, before_seq=before, page_size=min(limit, PAGE_EVENTS)
            )
            try:
                page = await stub.ListEvents(request, metadata=metadata, timeout=_CALL_SECONDS)
            except grpc.aio.AioRpcError as error:
                raise refusal(call_error(error)) from error
            pages.append(list(page.events))
            if not page.more or not page.events:
                break
            limit -= len(page.events)
            before = page.events[0].seq
    return [event for events in reversed(pages) for event in events]
