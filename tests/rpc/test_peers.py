"""A channel to several instances of a service: turns, the next one when one is away or hangs, and instances that come and go."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import grpc
import pytest

from chassis.channels import open_channel
from chassis.clock import SystemClock
from chassis.errors import NotFound, Unavailable
from chassis.peers import Peers, open_peers
from chassis.readiness import NotReadyError
from chassis.registry import Instance
from chassis.registry_memory import MemoryRegistry
from chassis.server import open_server
from parley.router.v1.router_service_pb2 import ListOnlineRequest, ListOnlineResponse
from parley.router.v1.router_service_pb2_grpc import RouterServiceServicer, RouterServiceStub, add_RouterServiceServicer_to_server

SERVICE = "router"


class Named(RouterServiceServicer):
    """Answers with its name, after what it was told to do."""

    def __init__(self, name: str, before: Callable[[], Any] | None = None) -> None:
        self.name = name
        self.before = before
        self.calls = 0

    async def ListOnline(self, request: ListOnlineRequest, context: grpc.aio.ServicerContext[Any, Any]) -> ListOnlineResponse:
        self.calls += 1
        if self.before is not None:
            await self.before()
        return ListOnlineResponse(user_ids=[self.name])


@asynccontextmanager
async def running(registry: MemoryRegistry, servicer: Named) -> AsyncIterator[None]:
    """Serve and be known."""
    async with (
        open_server(
            bind="127.0.0.1:0", register=lambda server: add_RouterServiceServicer_to_server(servicer, server), stop_grace_seconds=0
        ) as server,
        registry.open_session(Instance(SERVICE, servicer.name, server.address)),
    ):
        yield


@asynccontextmanager
async def peers_of(registry: MemoryRegistry, **options: float) -> AsyncIterator[Peers]:
    opened = open_peers(registry, SERVICE, lambda instance: open_channel(instance.address), SystemClock(), **options)
    async with opened as peers:
        yield peers


async def ask(peers: Peers, seconds: float = 5.0) -> str:
    return (await RouterServiceStub(peers).ListOnline(ListOnlineRequest(), timeout=seconds)).user_ids[0]


async def refuse_for_now() -> None:
    raise Unavailable("UNAVAILABLE", "the engine is away")


async def test_calls_take_turns() -> None:
    registry = MemoryRegistry()
    async with running(registry, Named("a")), running(registry, Named("b")), peers_of(registry) as peers:
        assert sorted([await ask(peers) for _ in range(4)]) == ["a", "a", "b", "b"]


async def test_one_that_is_away_is_passed_over_and_then_spared() -> None:
    registry, away = MemoryRegistry(), Named("away", refuse_for_now)
    async with running(registry, away), running(registry, Named("b")), peers_of(registry) as peers:
        assert [await ask(peers) for _ in range(6)] == ["b"] * 6
        assert away.calls == 1


async def test_one_that_hangs_costs_a_try_and_no_more() -> None:
    registry, stuck = MemoryRegistry(), Named("stuck", asyncio.Event().wait)
    async with running(registry, stuck), running(registry, Named("b")), peers_of(registry, try_seconds=0.2) as peers:
        assert [await ask(peers) for _ in range(6)] == ["b"] * 6
        assert stuck.calls == 1


async def test_a_refusal_is_an_answer() -> None:
    registry, other = MemoryRegistry(), Named("other")

    async def refuse() -> None:
        raise NotFound("NOT_FOUND", "there is none")

    async with running(registry, Named("a", refuse)), running(registry, other), peers_of(registry) as peers:
        codes = []
        for _ in range(2):
            try:
                await ask(peers)
            except grpc.aio.AioRpcError as error:
                codes.append(error.code())
        assert codes == [grpc.StatusCode.NOT_FOUND]
        assert other.calls == 1


async def test_a_call_waits_for_the_first_instance() -> None:
    registry = MemoryRegistry()
    async with peers_of(registry) as peers:
        answer = asyncio.ensure_future(ask(peers))
        await asyncio.sleep(0)
        async with running(registry, Named("late")):
            assert await answer == "late"


async def test_a_service_that_is_started_anew_elsewhere_is_found() -> None:
    registry = MemoryRegistry()
    async with AsyncExitStack() as stack, peers_of(registry) as peers:
        async with running(registry, Named("a")):
            assert await ask(peers) == "a"
        answer = asyncio.ensure_future(ask(peers))
        await asyncio.sleep(0.05)
        await stack.enter_async_context(running(registry, Named("a")))
        assert await answer == "a"


@pytest.mark.parametrize("present", [False, True])
async def test_at_the_deadline_the_call_is_unavailable(present: bool) -> None:
    registry = MemoryRegistry()
    async with AsyncExitStack() as stack:
        if present:
            await stack.enter_async_context(running(registry, Named("away", refuse_for_now)))
        peers = await stack.enter_async_context(peers_of(registry))
        with pytest.raises(grpc.aio.AioRpcError) as failure:
            await ask(peers, 0.3)
        assert failure.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_caller_that_is_cancelled_ends_at_once() -> None:
    registry = MemoryRegistry()
    async with running(registry, Named("stuck", asyncio.Event().wait)), peers_of(registry) as peers:
        call = asyncio.ensure_future(ask(peers))
        await asyncio.sleep(0.1)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call


async def test_a_sign_of_life_comes_from_any_instance(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chassis.peers._PING_SECONDS", 0.3)
    registry = MemoryRegistry()
    async with peers_of(registry, try_seconds=0.1) as peers:
        with pytest.raises(NotReadyError, match="no router answers: no router is known"):
            await peers.ping()
        async with registry.open_session(Instance(SERVICE, "gone", "127.0.0.1:1")):
            await peers.wait_any()
            with pytest.raises(NotReadyError, match="no router answers: "):
                await peers.ping()
            async with running(registry, Named("b")):
                monkeypatch.undo()
                await peers.ping()
