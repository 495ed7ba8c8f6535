"""One stream to each gateway: frames in order, each answered when it lies in the devices' outboxes."""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from collections.abc import Set as AbstractSet
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from typing import Any, TypeVar

import grpc
import structlog

from chassis.clock import Clock
from chassis.errors import Unavailable
from chassis.registry import Instance, Registry
from chassis.tasks import Tasks, open_tasks
from parley.gateway.v1.gateway_service_pb2 import DeliverRequest, DeliverResponse, ListSessionsRequest, NoteOwnersRequest, SlotMove
from parley.gateway.v1.gateway_service_pb2_grpc import GatewayServiceStub
from parley_protocol.slots import GATEWAYS, SLOT_PREFIX
from services.router.config import RouterSettings
from services.router.metrics import RouterMetrics
from services.router.slots import Move, SlotTable

T = TypeVar("T")
OpenChannel = Callable[[Instance], AbstractAsyncContextManager[grpc.aio.Channel]]
_MOVES_A_NOTE = 1000

_log = structlog.get_logger()


class LinkBrokenError(Exception):
    """The stream ended before the frame was answered: it may or may not have arrived."""


class SlotsMovedError(Exception):
    """Users of the frame are another gateway's now: it may or may not have arrived."""


class GatewayLink:
    """The stream to one gateway, opened again whenever it breaks."""

    def __init__(self, instance: Instance, stub: GatewayServiceStub, settings: RouterSettings, clock: Clock) -> None:
        self.instance = instance
        self._stub = stub
        self._settings = settings
        self._clock = clock
        self._call: Any = None
        self._number = 0
        self._waiting: dict[int, asyncio.Future[DeliverResponse]] = {}
        self._frames: dict[asyncio.Future[Any], AbstractSet[int]] = {}  # whatever is waited for, with the slots of its frame
        self._opening: dict[asyncio.Future[None], None] = {}
        self._open = False  # the gateway answers on the stream
        self._silent_since = clock.monotonic()  # while it does not
        self._gone = False  # for good
        self._writing = asyncio.Lock()

    async def run(self, metrics: RouterMetrics, rng: random.Random) -> None:
        """Keep the stream open until cancelled. It counts as open once the gateway has answered on it."""
        failures = 0
        try:
            while True:
                self._call = self._stub.Deliver()
                try:
                    await self._call.write(DeliverRequest(slot_count=self._settings.slot_count))
                    while (response := await self._call.read()) is not grpc.aio.EOF:
                        failures = 0
                        self._answer(response)
                except (asyncio.InvalidStateError, grpc.aio.UsageError, grpc.aio.AioRpcError) as error:
                    details = error.details() if isinstance(error, grpc.aio.AioRpcError) else "it ended"
                    _log.warning("router.link_broken", gateway=self.instance.instance_id, error=details)
                except asyncio.CancelledError:
                    task = asyncio.current_task()
                    if task is None or task.cancelling():
                        raise
                    # The call was cancelled, not we: that is what a timeout does that strikes during a write.
                    _log.warning("router.link_broken", gateway=self.instance.instance_id, error="a frame took too long")
                finally:
                    self._call.cancel()
                    self._break()
                metrics.link_failures.inc()
                failures += 1
                most = min(self._settings.retry_max_seconds, self._settings.retry_min_seconds * 2.0**failures)
                await asyncio.sleep(rng.uniform(0, most))
        finally:
            self._gone = True
            _raise_in(self._frames, SlotsMovedError)  # whoever waits asks who comes after it

    def _answer(self, response: DeliverResponse) -> None:
        if not self._open:
            self._open = True
            for future in self._opening:
                if not future.done():
                    future.set_result(None)
        waiting = self._waiting.pop(response.number, None)
        if waiting is not None and not waiting.done():
            waiting.set_result(response)

    def _break(self) -> None:
        if self._open:
            self._open = False
            self._silent_since = self._clock.monotonic()
        _raise_in(self._waiting.values(), LinkBrokenError)
        self._waiting.clear()

    def give_up(self, slots: AbstractSet[int]) -> None:
        """Let go of the frames that hold users of slots which are another gateway's now."""
        _raise_in((future for future, held in self._frames.items() if not held.isdisjoint(slots)), SlotsMovedError)

    async def deliver(self, request: DeliverRequest, slots: AbstractSet[int] = frozenset()) -> DeliverResponse | None:
        """Send a frame with users of slots; return the answer, None once the gateway was not reached for `unreachable_seconds`.

        After a broken stream the frame is sent again: devices drop what they have. Raises SlotsMovedError.
        """
        patience = self._settings.unreachable_seconds
        started = self._clock.monotonic()
        while (left := (started if self._open else min(started, self._silent_since)) + patience - self._clock.monotonic()) > 0:
            if self._gone:
                raise SlotsMovedError
            try:
                async with asyncio.timeout(left):
                    if not self._open:
                        await self._wait_open(slots)
                    return await self._send(request, slots)
            except (LinkBrokenError, TimeoutError):
                continue
        if self._open:  # it takes frames and answers none: as good as gone, until it answers on a new stream
            self._silent_since = started
            self._open = False
            self._call.cancel()
        return None

    async def _wait_open(self, slots: AbstractSet[int]) -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._opening[future] = None
        self._frames[future] = slots
        try:
            await future
        finally:
            del self._opening[future], self._frames[future]

    async def _send(self, request: DeliverRequest, slots: AbstractSet[int]) -> DeliverResponse:
        async with self._writing:
            call = self._call
            self._number = number = self._number + 1
            waiting = self._waiting[number] = asyncio.get_running_loop().create_future()
            try:
                request.number = number
                await call.write(request)
            except (asyncio.InvalidStateError, asyncio.CancelledError, grpc.aio.UsageError, grpc.aio.AioRpcError) as error:
                self._waiting.pop(number, None)
                if waiting.done():  # the stream broke meanwhile, which we say ourselves
                    waiting.exception()
                task = asyncio.current_task()
                if isinstance(error, asyncio.CancelledError) and (task is None or task.cancelling()):
                    raise  # we are cancelled, not the call
                if self._call is call:
                    self._break()  # it has ended: wait for the next one, `run` may not know yet
                raise LinkBrokenError from error
        self._frames[waiting] = slots
        try:
            answer: DeliverResponse = await waiting
            return answer
        finally:
            del self._frames[waiting]
            self._waiting.pop(number, None)

    async def online(self, user_ids: Sequence[str]) -> Sequence[str]:
        """Return which of the users have a session there; raises grpc.aio.AioRpcError, Unavailable."""
        request = ListSessionsRequest(user_ids=user_ids)
        return (await _answer(self._stub.ListSessions(request, timeout=self._settings.question_seconds))).user_ids

    async def note_owners(self, moves: Sequence[SlotMove]) -> None:
        """Tell the gateway what is not its own any more; one that does not listen will find out from frames and the registry."""
        try:
            for first in range(0, len(moves), _MOVES_A_NOTE):
                request = NoteOwnersRequest(moves=moves[first : first + _MOVES_A_NOTE])
                await _answer(self._stub.NoteOwners(request, timeout=self._settings.question_seconds))
        except (grpc.aio.AioRpcError, Unavailable) as error:
            _log.warning("router.note_failed", gateway=self.instance.instance_id, error=str(error))


def _raise_in(futures: Iterable[asyncio.Future[Any]], error: type[Exception]) -> None:
    for future in list(futures):
        if not future.done():
            future.set_exception(error())


class Links:
    """The links to all gateways that the registry names, and the table of who owns what."""

    def __init__(
        self,
        settings: RouterSettings,
        registry: Registry,
        open_channel: OpenChannel,
        clock: Clock,
        metrics: RouterMetrics,
        rng: random.Random,
    ) -> None:
        self.table = SlotTable(settings.slot_count)
        self._settings = settings
        self._registry = registry
        self._open_channel = open_channel
        self._clock = clock
        self._metrics = metrics
        self._rng = rng
        self._links: dict[str, tuple[GatewayLink, asyncio.Task[None]]] = {}
        self._waiting: dict[asyncio.Future[None], None] = {}
        self.version = 0  # of gateways and owners: a higher one, and what could not be delivered may have a place

    def link(self, instance_id: str) -> GatewayLink | None:
        """Return the link to a gateway, None if the registry does not name it."""
        entry = self._links.get(instance_id)
        return entry[0] if entry is not None else None

    async def wait_changed(self, version: int, seconds: float) -> None:
        """Wait until gateways or owners are others than at that version, for that long at most."""
        if version != self.version:
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[future] = None
        try:
            async with asyncio.timeout(seconds):
                await future
        except TimeoutError:
            return
        finally:
            del self._waiting[future]

    def on_refused(self, instance_id: str, answer: DeliverResponse) -> None:
        """Learn from a gateway that it does not own what it was believed to own."""
        if self.table.on_refused(instance_id, answer.refused_slots, answer.owners):
            self._tell_changed()

    def _tell_changed(self) -> None:
        self.version += 1
        for future in self._waiting:
            if not future.done():
                future.set_result(None)

    async def follow_gateways(self, tasks: Tasks) -> None:
        """Open and close links as gateways come and go, until cancelled."""
        async with aclosing(self._registry.watch_instances(GATEWAYS)) as watch:
            async for instances in watch:
                now = {instance.instance_id: instance for instance in instances}
                for gone in [name for name, (link, _) in self._links.items() if link.instance != now.get(name)]:
                    self._links.pop(gone)[1].cancel()
                for name, instance in now.items():
                    if name not in self._links:
                        ready: asyncio.Future[GatewayLink] = asyncio.get_running_loop().create_future()
                        task = tasks.spawn(self._keep(instance, ready), name=f"link.{name}")
                        self._links[name] = (await ready, task)
                self._tell_changed()

    async def follow_owners(self, tasks: Tasks) -> None:
        """Keep the table, and tell whoever lost slots, until cancelled."""
        async with aclosing(self._registry.watch_holders(SLOT_PREFIX)) as watch:
            async for view in watch:
                moves = self.table.on_holders(view)
                by_loser: dict[str, list[Move]] = {}
                for move in moves:
                    by_loser.setdefault(move.old.instance_id, []).append(move)
                for name, lost in by_loser.items():
                    link = self.link(name)
                    if link is not None:
                        link.give_up(frozenset(move.slot for move in lost))
                        tasks.spawn(link.note_owners([self._note(move) for move in lost]), name=f"note.{name}")
                self._tell_changed()

    def _note(self, move: Move) -> SlotMove:
        link = self.link(move.new.instance_id)
        return SlotMove(
            slot=move.slot,
            session_id=move.old.epoch.session_id,
            lock_index=move.old.epoch.lock_index,
            owner_id=move.new.instance_id,
            owner_session_id=move.new.epoch.session_id,
            owner_lock_index=move.new.epoch.lock_index,
            owner_address=link.instance.public_address if link is not None else "",
        )

    async def _keep(self, instance: Instance, ready: asyncio.Future[GatewayLink]) -> None:
        async with self._open_channel(instance) as channel:
            link = GatewayLink(instance, GatewayServiceStub(channel), self._settings, self._clock)
            ready.set_result(link)
            await link.run(self._metrics, self._rng)


@asynccontextmanager
async def open_links(
    settings: RouterSettings,
    registry: Registry,
    open_channel: OpenChannel,
    clock: Clock,
    metrics: RouterMetrics,
    rng: random.Random,
) -> AsyncIterator[Links]:
    """Keep links to all gateways until the block is left."""
    links = Links(settings, registry, open_channel, clock, metrics, rng)
    async with open_tasks("router.links") as tasks:
        tasks.spawn(links.follow_gateways(tasks), name="gateways")
        tasks.spawn(links.follow_owners(tasks), name="owners")
        yield links


async def _answer(call: Awaitable[T]) -> T:
    """Wait for a call's answer. One that ends because its channel is closed looks cancelled, which whoever asks is not."""
    try:
        return await call
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        raise Unavailable("UNAVAILABLE", "the connection to a gateway was closed") from error
