"""Every goodbye of a gateway, and what a client makes of it: it comes back with all that it owes, or stays away and says why."""

import asyncio

import pytest
from scripted_gateway import PEER, Gateway, virtual

from parley.api.v1.messaging_service_pb2 import GoAwayReason
from parley_client import ConnectionState, MemoryStore, SignedOffError
from parley_client.backoff import CAP_SECONDS
from services.gateway.goodbyes import RULES

REASONS = {name.removeprefix("GO_AWAY_REASON_"): RULES.get(number) for name, number in GoAwayReason.items() if number}
NEEDS_TOKEN = {"UNAUTHENTICATED", "EXPIRED"}


def test_every_reason_is_said():
    assert [name for name, rule in REASONS.items() if rule is None] == []


@pytest.mark.parametrize("name", REASONS)
def test_goodbye(name: str):
    rule = REASONS[name]
    delay_seconds = int(rule.delay_seconds) if rule is not None else 0
    tokens: list[str] = []

    async def token() -> str:
        tokens.append(f"t{len(tokens)}")
        return tokens[-1]

    @virtual
    async def scene(gateway: Gateway) -> None:
        store = MemoryStore()
        async with gateway.client(store, token=token) as client:
            stream = await gateway.stream()
            ticket = await client.send(to_user=PEER, body="a")
            _, (command,) = await stream.commands(1)
            left_at = gateway.clock.monotonic()
            await stream.go_away(name, delay_seconds=delay_seconds, reconnect=rule is None or rule.reconnect)
            if name in {"REPLACED", "PROTOCOL_ERROR"}:
                with pytest.raises(SignedOffError) as caught:
                    await ticket.accepted()
                assert caught.value.reason == name
                assert client.connection is ConnectionState.STOPPED
                await asyncio.sleep(3600)
                assert gateway.streams.empty()
                assert len(store.load().commands) == 1, "kept for the next start"
                return
            again = await gateway.stream()
            assert left_at + delay_seconds <= gateway.clock.monotonic() <= left_at + delay_seconds + CAP_SECONDS
            assert again.bearer == ("Bearer t1" if name in NEEDS_TOKEN else "Bearer t0")
            numbers, (resent,) = await again.commands(1)
            assert (numbers, resent.SerializeToString()) == ([1], command.SerializeToString())
            await client.caught_up()
            assert len(gateway.syncs) == 2, "what was missed meanwhile is asked for"

    scene()
