"""What to do when a stream has ended: one table, pure."""

from typing import Final, NamedTuple

import grpc

from parley.api.v1.messaging_service_pb2 import GoAway, GoAwayReason
from parley_client.errors import CallError


class Verdict(NamedTuple):
    """How to go on after a stream's end."""

    again: bool
    reason: str  # for SignedOffError and the notice
    detail: str
    delay_seconds: float = 0.0  # at least; jittered backoff comes on top
    at_once: bool = False  # without backoff, if the stream had been up or an address is known, and the end before was another
    fresh_token: bool = False  # needed; where the token can't be renewed, there is no again
    address: str = ""  # where to; empty: the same


class _Rule(NamedTuple):
    again: bool
    at_once: bool = False
    fresh_token: bool = False


_RULES: Final[dict[int, _Rule]] = {
    GoAwayReason.GO_AWAY_REASON_MOVED: _Rule(again=True, at_once=True),
    GoAwayReason.GO_AWAY_REASON_DRAINING: _Rule(again=True),
    GoAwayReason.GO_AWAY_REASON_SLOW: _Rule(again=True),
    GoAwayReason.GO_AWAY_REASON_IDLE: _Rule(again=True),
    GoAwayReason.GO_AWAY_REASON_REPLACED: _Rule(again=False),  # two clients with one device id would throw each other out for ever
    GoAwayReason.GO_AWAY_REASON_UNAUTHENTICATED: _Rule(again=True, fresh_token=True),
    GoAwayReason.GO_AWAY_REASON_EXPIRED: _Rule(again=True, at_once=True, fresh_token=True),
    GoAwayReason.GO_AWAY_REASON_OVERLOADED: _Rule(again=True),
    GoAwayReason.GO_AWAY_REASON_PROTOCOL_ERROR: _Rule(again=False),  # it would happen again
}
_NAME_PREFIX = "GO_AWAY_REASON_"
DRAINING: Final = "DRAINING"
LOST: Final = "LOST"  # the reason of an end without a word


def after_go_away(go_away: GoAway) -> Verdict:
    """Follow the reason's rule; a reason from the future is followed by its `reconnect` flag."""
    try:
        reason = GoAwayReason.Name(go_away.reason).removeprefix(_NAME_PREFIX)
    except ValueError:
        reason = f"UNKNOWN_{go_away.reason}"
    rule = _RULES.get(go_away.reason, _Rule(again=go_away.reconnect))
    return Verdict(
        again=rule.again,
        reason=reason,
        detail=go_away.detail,
        delay_seconds=go_away.reconnect_delay.ToNanoseconds() / 1e9,
        at_once=rule.at_once,
        fresh_token=rule.fresh_token,
        address=go_away.address,
    )


def after_error(error: CallError) -> Verdict:
    """Go on after what passes (weather, RetryInfo) and after a refused token; stop after what would be refused again."""
    unauthenticated = error.code is grpc.StatusCode.UNAUTHENTICATED
    return Verdict(
        again=error.passes or unauthenticated,
        reason=error.reason or error.code.name,
        detail=error.detail,
        delay_seconds=error.retry_delay_seconds or 0.0,
        at_once=error.reason == "TOKEN_EXPIRED",
        fresh_token=unauthenticated,
    )


def after_loss(detail: str) -> Verdict:
    """Go on after a stream that ended without a word: a killed server, a cut line, silence."""
    return Verdict(again=True, reason=LOST, detail=detail)
