"""Every way to lose a device has a name and a rule: the one table of GoAway."""

from typing import Final, NamedTuple

from google.protobuf.duration_pb2 import Duration

from parley.api.v1.messaging_service_pb2 import ConnectResponse, GoAway, GoAwayReason


class Rule(NamedTuple):
    """What a client does after a goodbye."""

    reconnect: bool
    delay_seconds: float = 0.0


RULES: Final[dict[GoAwayReason.ValueType, Rule]] = {
    GoAwayReason.GO_AWAY_REASON_MOVED: Rule(reconnect=True),
    GoAwayReason.GO_AWAY_REASON_DRAINING: Rule(reconnect=True, delay_seconds=1.0),  # time for another process to be there
    GoAwayReason.GO_AWAY_REASON_SLOW: Rule(reconnect=True, delay_seconds=1.0),  # what made it slow is seldom over at once
    GoAwayReason.GO_AWAY_REASON_IDLE: Rule(reconnect=True),
    GoAwayReason.GO_AWAY_REASON_REPLACED: Rule(reconnect=False),
    GoAwayReason.GO_AWAY_REASON_UNAUTHENTICATED: Rule(reconnect=False),
    GoAwayReason.GO_AWAY_REASON_EXPIRED: Rule(reconnect=True),
    GoAwayReason.GO_AWAY_REASON_OVERLOADED: Rule(reconnect=True, delay_seconds=5.0),  # a storm of 1,000 a second is over then
    GoAwayReason.GO_AWAY_REASON_PROTOCOL_ERROR: Rule(reconnect=False),
}


class Goodbye(NamedTuple):
    """What a device is told. Without a delay of its own it gets the rule's, or none if it has an address: somebody is there."""

    reason: GoAwayReason.ValueType
    detail: str
    address: str = ""
    delay_seconds: float | None = None


def go_away(reason: GoAwayReason.ValueType, detail: str, address: str = "", delay_seconds: float | None = None) -> bytes:
    """Return an encoded frame that says goodbye."""
    rule = RULES[reason]
    message = GoAway(reason=reason, reconnect=rule.reconnect, detail=detail, address=address)
    if delay_seconds is None:
        delay_seconds = 0.0 if address else rule.delay_seconds
    if delay_seconds:
        delay = Duration()
        delay.FromNanoseconds(int(delay_seconds * 1e9))
        message.reconnect_delay.CopyFrom(delay)
    return ConnectResponse(go_away=message).SerializeToString()
