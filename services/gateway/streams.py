"""All open streams: how many and how fast, who is silent, stuck or over their token's time, and the goodbye to all of them."""

import asyncio
from collections.abc import Callable
from typing import Any, Final

import grpc

from chassis.rate import TokenBucket
from parley.api.v1.messaging_service_pb2 import GoAwayReason
from services.gateway.config import GatewaySettings
from services.gateway.metrics import Metrics
from services.gateway.session import Session

_SLICE: Final = 2000  # sessions looked at before others get their turn: ~1 ms


class Streams:
    """The streams' sessions, those before Hello included."""

    def __init__(self, settings: GatewaySettings, metrics: Metrics) -> None:
        self._settings = settings
        self._metrics = metrics
        self._sessions: dict[Session, None] = {}  # a dict keeps the order of arrival: simulation needs it
        self._abandoned = 0
        self._bucket = TokenBucket(settings.streams_per_second, settings.streams_burst)
        self._empty = asyncio.Event()
        self._empty.set()
        self.draining = False

    def refusal(self, now: float) -> tuple[GoAwayReason.ValueType, str] | None:
        """Return why no further stream may begin now, or None."""
        if self.draining:
            return GoAwayReason.GO_AWAY_REASON_DRAINING, "the server stops"
        if len(self._sessions) + self._abandoned >= self._settings.max_streams:
            return GoAwayReason.GO_AWAY_REASON_OVERLOADED, "the server has no room for another device"
        if self._bucket.take(now):
            return GoAwayReason.GO_AWAY_REASON_OVERLOADED, "too many devices come at once"
        return None

    def add(self, session: Session) -> None:
        """Count a stream in."""
        self._sessions[session] = None
        self._metrics.streams.set(len(self._sessions))
        self._empty.clear()

    def remove(self, session: Session) -> None:
        """Count a stream out."""
        del self._sessions[session]
        self._metrics.streams.set(len(self._sessions))
        if not self._sessions:
            self._empty.set()

    def abandon(self) -> Callable[[grpc.aio.ServicerContext[Any, Any]], None]:
        """Count a call that ended here while its client does not take the end; call what comes back once it is gone."""
        self._abandoned += 1
        self._metrics.abandoned_calls.set(self._abandoned)

        def gone(_context: grpc.aio.ServicerContext[Any, Any]) -> None:
            self._abandoned -= 1
            self._metrics.abandoned_calls.set(self._abandoned)

        return gone

    async def sweep(self, now: float, wall_ms: int, ask: Callable[[Session, float], None]) -> None:
        """Look once at every stream: one timer for all is cheaper than one each. `ask` those whose digest is due."""
        settings = self._settings
        waiting_bytes = 0
        for index, session in enumerate(list(self._sessions), 1):
            waiting_bytes += session.outbox_bytes
            if now - session.writing_since > settings.write_seconds:
                self._metrics.cut_streams.inc()
                session.stuck = True
                session.close()
            elif session.ending:
                pass
            elif now - session.heard_at > (2 * settings.heartbeat_seconds if session.device_id else settings.hello_seconds):
                session.say_goodbye(GoAwayReason.GO_AWAY_REASON_IDLE, "nothing was heard for too long")
            elif session.expires_ms <= wall_ms:
                session.say_goodbye(GoAwayReason.GO_AWAY_REASON_EXPIRED, "the token's time is over")
            elif session.check_at <= now:
                ask(session, now)
            if index % _SLICE == 0:
                await asyncio.sleep(0)
        self._metrics.outbox_bytes.set(waiting_bytes)

    async def drain(self) -> None:
        """Say goodbye to all, wait until they are gone, and end those that don't take the goodbye."""
        self.draining = True
        for session in list(self._sessions):
            session.say_goodbye(GoAwayReason.GO_AWAY_REASON_DRAINING, "the server stops")
        try:
            async with asyncio.timeout(self._settings.drain_seconds):
                await self._empty.wait()
        except TimeoutError:
            for session in list(self._sessions):
                session.close()
