"""Catching up on one connection: Sync, then a fetch for each gap, a bounded number at a time.

The stream is open already, so live events come meanwhile: what happens after the server read its rows is seen there, what happened
before is in the rows. Nothing falls in between.
"""

import asyncio
import random
from collections.abc import Callable
from typing import Final

import grpc

from chassis.clock import Clock
from parley.api.v1 import messaging_service_pb2 as api
from parley_client.backoff import Backoff
from parley_client.calls import Calls
from parley_client.device import Device
from parley_client.errors import CallError, ClientError

SHORT_PAGES_MAX: Final = 6  # how often a page may end below the announced head before we settle for it: ~8 s, then Sync repairs
LOOK_MARGIN_MS: Final = 24 * 3_600_000  # how much earlier than a command its event may seem to be: a device's clock may be wrong
_GONE = (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.PERMISSION_DENIED)


class CatchUp:
    """One connection's catching up. `fail` is called with what makes going on pointless."""

    def __init__(
        self,
        device: Device,
        calls: Calls,
        *,
        tasks: asyncio.TaskGroup,
        fail: Callable[[ClientError], None],
        limits: api.Limits,
        clock: Clock,
        rng: random.Random,
    ) -> None:
        self._device = device
        self._calls = calls
        self._tasks = tasks
        self._fail = fail
        self._clock = clock
        self._rng = rng
        options = device.options
        self._page_events = min(options.page_events, limits.page_events or options.page_events)
        self._page_conversations = min(
            options.sync_page_conversations, limits.page_conversations or options.sync_page_conversations
        )
        self._fetching: dict[str, asyncio.Task[None]] = {}
        self._new_device = not device.state.synced
        self._syncing: asyncio.Task[None] | None = None
        self._synced = False
        self._looked = False  # whether what is pending for long was looked for
        self._announced = False
        self._stopped = False

    def again(self) -> None:
        """Sync, at first and whenever the server says that something is missing, unless that is under way."""
        if self._syncing is None or self._syncing.done():
            self._synced = False
            self._syncing = self._tasks.create_task(self._run(), name="parley.catch_up")

    async def _run(self) -> None:
        """Sync, then fill gaps; later ones are filled as live events show them."""
        try:
            await self._sync()
        except ClientError as error:
            self._fail(error)
            return
        self._synced = True
        self._device.on_behind = self.fetch
        self.fetch()

    def stop(self) -> None:
        """Cancel what runs; the task group awaits it."""
        self._stopped = True
        self._device.on_behind = None
        if self._syncing is not None:
            self._syncing.cancel()
        for task in self._fetching.values():
            task.cancel()

    def fetch(self) -> None:
        """Start fetches for conversations that are behind, as many as may run; say so when there are none."""
        if self._stopped:
            return
        behind = self._device.state.timelines.behind
        for conversation_id in behind:
            if len(self._fetching) >= self._device.options.parallel_fetches:
                return
            if conversation_id not in self._fetching:
                fetch = self._fetch_one(conversation_id)
                self._fetching[conversation_id] = self._tasks.create_task(fetch, name=f"parley.fetch.{conversation_id}")
        if self._synced and not behind and not self._fetching and not self._looked:
            self._looked = True
            for conversation_id, created_ms in self._device.state.outbox.looked_for().items():
                look = self._look_back(conversation_id, created_ms - LOOK_MARGIN_MS)
                self._fetching[conversation_id] = self._tasks.create_task(look, name=f"parley.look.{conversation_id}")
        if self._synced and not behind and not self._fetching and not self._announced:
            self._announced = True
            if self._new_device:
                self._device.keep(self._device.state.on_synced())
            self._device.set_caught_up()

    async def _sync(self) -> None:
        """Page through what differs. A page token that the server knows no more means: begin again."""
        device = self._device
        request = api.SyncRequest(
            digests=device.state.digests(),
            page_size=self._page_conversations,
            last_events_count=device.options.first_sync_events if self._new_device else device.options.sync_events,
        )
        backoff = Backoff(self._rng)
        while True:
            try:
                response = await self._calls.sync(request)
            except CallError as error:
                if error.reason == "PAGE_TOKEN_INVALID" and request.page_token:
                    request.page_token = ""
                elif not error.passes:
                    raise
                await asyncio.sleep(backoff.next_delay(error.retry_delay_seconds or 0.0))
                continue
            backoff.reset()
            device.keep(device.state.on_rows(response.conversations, self._clock.monotonic()))
            if not response.next_page_token:
                return
            request.page_token = response.next_page_token

    async def _fetch_one(self, conversation_id: str) -> None:
        try:
            await self._fill(conversation_id)
        except ClientError as error:
            self._fail(error)
            return
        finally:
            del self._fetching[conversation_id]
        self.fetch()

    async def _fill(self, conversation_id: str) -> None:
        """Fetch until nothing is missing, or the server has no more."""
        device, timelines = self._device, self._device.state.timelines
        backoff = Backoff(self._rng)
        short_pages = 0
        while conversation_id in timelines.behind:
            try:
                page = await self._next_page(conversation_id)
            except CallError as error:
                if error.code in _GONE:  # never ours, or not any more
                    break
                if not error.passes:
                    raise
                await asyncio.sleep(backoff.next_delay(error.retry_delay_seconds or 0.0))
                continue
            if page is None:
                continue
            device.keep(device.state.on_page(conversation_id, page, self._clock.monotonic()))
            if page.events:
                backoff.reset()
                short_pages = 0
            if page.more or conversation_id not in timelines.behind:
                continue
            if short_pages == SHORT_PAGES_MAX:
                break
            short_pages += 1  # below what was announced: written in a moment, or announced to a member who left
            await asyncio.sleep(backoff.next_delay())
        if conversation_id in timelines.behind:
            device.keep(device.state.end_fetch(conversation_id))

    async def _look_back(self, conversation_id: str, until_ms: int) -> None:
        """Fetch older events until those that may be old commands' are held: a new device holds the newest ones only."""
        try:
            await self._fetch_history(conversation_id, until_ms)
        except ClientError as error:
            self._fail(error)
            return
        finally:
            del self._fetching[conversation_id]
        self.fetch()

    async def _fetch_history(self, conversation_id: str, until_ms: int) -> None:
        device, backoff = self._device, Backoff(self._rng)
        while conversation_id in device.state.outbox.looked_for():
            state = device.state.timelines.conversations.get(conversation_id)
            if state is None or not state.is_placed or state.previous_visible(state.first_held_seq) is None:
                return
            before_seq = state.first_held_seq
            request = api.ListEventsRequest(conversation_id=conversation_id, before_seq=before_seq, page_size=self._page_events)
            try:
                page = await self._calls.list_events(request)
            except CallError as error:
                if error.code in _GONE:
                    return
                if not error.passes:
                    raise
                await asyncio.sleep(backoff.next_delay(error.retry_delay_seconds or 0.0))
                continue
            backoff.reset()
            device.keep(device.state.on_history(conversation_id, before_seq, page))
            if not page.events or page.events[0].time.ToMilliseconds() < until_ms:
                return

    async def _next_page(self, conversation_id: str) -> api.ListEventsResponse | None:
        """Get the events after those held; of a conversation that is new to this device, first what it is. None: that was all."""
        device = self._device
        state = device.state.timelines.conversations[conversation_id]
        if state.kind == 0 or not state.is_placed:
            response = await self._calls.get_conversation(api.GetConversationRequest(conversation_id=conversation_id))
            device.keep(device.state.on_rows([response.conversation], self._clock.monotonic()))
            if not state.is_behind:
                return None
        request = api.ListEventsRequest(conversation_id=conversation_id, page_size=self._page_events)
        if state.is_placed:
            request.after_seq = state.held_seq
        else:  # a new device begins with the newest
            request.before_seq = 0
            request.page_size = device.options.first_sync_events
        return await self._calls.list_events(request)
