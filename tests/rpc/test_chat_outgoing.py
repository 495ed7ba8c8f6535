"""What is typed faster than the server takes it."""

import asyncio
from functools import partial

import pytest
from scripted_gateway import PEER, Gateway, accepted, until, virtual

from parley_cli.chat_outgoing import Outgoing
from parley_client import ClientOptions, OutboxFullError


@virtual
async def test_a_long_file_goes_out_as_fast_as_it_is_taken(gateway: Gateway) -> None:
    async with gateway.client(options=ClientOptions(pending_commands=2)) as client:
        outgoing = Outgoing(client, asyncio.Event())

        async def send_all() -> None:
            for text in ("one", "two", "three"):
                await outgoing.send(text, partial(client.send, to_user=PEER, body=text))

        sending = asyncio.create_task(send_all())
        stream = await gateway.stream()
        _, (first, second) = await stream.commands(2)
        assert outgoing.texts() == ["one", "two"]
        await stream.send(outcomes=[accepted(first, 1)])
        await sending
        assert outgoing.settle(first.request_id) == "one"
        _, (third,) = await stream.commands(1)
        waiting = asyncio.create_task(outgoing.wait())
        await stream.send(outcomes=[accepted(second, 2), accepted(third, 3)])
        await until(lambda: not client.pending())
        assert not waiting.done(), "stored, and not shown yet"
        outgoing.settle(second.request_id)
        outgoing.settle(third.request_id)
        assert await waiting == 0
        assert outgoing.settle(third.request_id) is None


@virtual
async def test_without_a_connection_nothing_is_waited_for(gateway: Gateway) -> None:
    lost = asyncio.Event()
    async with gateway.client(options=ClientOptions(pending_commands=1)) as client:
        outgoing = Outgoing(client, lost)
        await outgoing.send("one", partial(client.send, to_user=PEER, body="one"))
        (await gateway.stream()).end()
        lost.set()
        with pytest.raises(OutboxFullError):
            await outgoing.send("two", partial(client.send, to_user=PEER, body="two"))
        assert await outgoing.wait() == 1
