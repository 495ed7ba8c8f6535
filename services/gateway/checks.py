"""Whether devices hold what they should: the net under everything that delivers.

A device is asked for all that it holds in one number; the store says what it should be. Something is always on its way, so only two
differences in a row mean anything: then the device is told to Sync.
"""

import asyncio
import random
from typing import Final

import grpc
import structlog

from chassis.clock import Clock
from parley.api.v1.messaging_service_pb2 import DigestCheck
from parley.store.v1.store_service_pb2 import GetDigestsRequest
from parley.store.v1.store_service_pb2_grpc import StoreServiceStub
from parley_protocol.frames import DIGEST_CHECK_TAG, field
from services.gateway.config import GatewaySettings
from services.gateway.metrics import Metrics
from services.gateway.session import Session
from services.gateway.slots import Slots

_SETTLED_SECONDS: Final = 10.0  # after a slot came: what routers sent elsewhere meanwhile is found missing then
_AGAIN_SECONDS: Final = 5.0  # after a difference: what was on its way has arrived by then
_BATCH: Final = 100
_JITTER: Final = 0.25
_ASK: Final = field(DIGEST_CHECK_TAG, DigestCheck().SerializeToString())
_DIFFERS: Final = field(DIGEST_CHECK_TAG, DigestCheck(differs=True).SerializeToString())

_log = structlog.get_logger()


class DigestChecks:
    """Asks, compares and tells. `session.check_at` is when a device is asked next."""

    def __init__(
        self,
        settings: GatewaySettings,
        slots: Slots,
        store_channel: grpc.aio.Channel,
        clock: Clock,
        metrics: Metrics,
        rng: random.Random,
    ) -> None:
        self._interval = settings.digest_check_seconds
        self._timeout = settings.read_seconds
        self._slots = slots
        self._store = StoreServiceStub(store_channel)
        self._clock = clock
        self._metrics = metrics
        self._rng = rng
        self._answers: dict[Session, int] = {}
        self._wake = asyncio.Event()

    def begin(self, session: Session, now: float) -> None:
        """Plan the first look at a device that is here now."""
        settled = self._slots.since.get(self._slots.slot_of(session.user_id), now) + _SETTLED_SECONDS
        session.check_at = settled + self._rng.uniform(0.0, 1.0) if settled > now else self._next(now)

    def ask(self, session: Session, now: float) -> None:
        """Ask a device what it holds. One that does not answer, because it knows that it is behind, is asked next time."""
        session.asked = True
        session.put(_ASK)
        session.check_at = self._next(now)

    def on_digest(self, session: Session, digest: int) -> None:
        """Take a device's answer. Nobody looks at one that was not asked for: a few bytes would cost the store a whole inbox."""
        if not session.asked:
            return
        session.asked = False
        self._answers[session] = digest
        self._wake.set()

    async def run(self) -> None:
        """Compare answers, many at once, until cancelled."""
        while True:
            self._wake.clear()
            while self._answers:
                batch = [(session, self._answers.pop(session)) for session in list(self._answers)[:_BATCH]]
                request = GetDigestsRequest(user_ids=[session.user_id for session, _ in batch])
                try:
                    response = await self._store.GetDigests(request, timeout=self._timeout)
                except grpc.aio.AioRpcError as error:
                    _log.warning("gateway.digests_not_compared", error=error.details())
                    continue
                for (session, digest), true in zip(batch, response.digests, strict=True):
                    self._judge(session, digest == true, self._clock.monotonic())
            await self._wake.wait()

    def _judge(self, session: Session, same: bool, now: float) -> None:
        if same:
            session.differed = False
        elif session.differed:
            session.differed = False
            session.put(_DIFFERS)
            self._metrics.digests_differed.inc()
        else:
            session.differed = True
            session.check_at = now + _AGAIN_SECONDS

    def _next(self, now: float) -> float:
        return now + self._interval * self._rng.uniform(1 - _JITTER, 1 + _JITTER)
