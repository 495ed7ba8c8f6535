"""What a client does when its stream ends, and how long it waits."""

from random import Random

import grpc
import pytest

from parley.api.v1.messaging_service_pb2 import GoAway, GoAwayReason
from parley_client.backoff import CAP_SECONDS, Backoff
from parley_client.errors import CallError
from parley_client.reconnect import DRAINING, LOST, Verdict, after_error, after_go_away, after_loss

STAYS_AWAY = {"REPLACED", "PROTOCOL_ERROR"}
NEEDS_TOKEN = {"UNAUTHENTICATED", "EXPIRED"}
AT_ONCE = {"MOVED", "EXPIRED"}


@pytest.mark.parametrize("name", [name.removeprefix("GO_AWAY_REASON_") for name in GoAwayReason.keys()[1:]])
def test_every_reason_has_its_rule(name: str):
    """A reason that is added to the proto must be decided here."""
    reason = GoAwayReason.Value(f"GO_AWAY_REASON_{name}")
    for reconnect in (True, False):  # a rule is followed whatever the flag says
        again = name not in STAYS_AWAY
        assert after_go_away(GoAway(reason=reason, reconnect=reconnect, detail="why")) == Verdict(
            again=again, reason=name, detail="why", at_once=name in AT_ONCE, fresh_token=name in NEEDS_TOKEN
        )
    assert DRAINING in [each.removeprefix("GO_AWAY_REASON_") for each in GoAwayReason.keys()]  # noqa: SIM118 — an enum of protobuf


def test_the_server_says_how_long_and_where():
    go_away = GoAway(reason=GoAwayReason.GO_AWAY_REASON_MOVED, reconnect=True, address="b:1")
    go_away.reconnect_delay.FromMilliseconds(1500)
    verdict = after_go_away(go_away)
    assert (verdict.delay_seconds, verdict.address) == (1.5, "b:1")


def test_a_reason_from_the_future_is_followed_by_its_flag():
    for reconnect in (True, False):
        verdict = after_go_away(GoAway(reason=99, reconnect=reconnect))  # type: ignore[arg-type]
        assert verdict == Verdict(again=reconnect, reason="UNKNOWN_99", detail="")


@pytest.mark.parametrize(
    ("code", "again"),
    [
        (grpc.StatusCode.UNAVAILABLE, True),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, True),
        (grpc.StatusCode.INTERNAL, True),
        (grpc.StatusCode.UNAUTHENTICATED, True),
        (grpc.StatusCode.PERMISSION_DENIED, False),
        (grpc.StatusCode.INVALID_ARGUMENT, False),
        (grpc.StatusCode.UNIMPLEMENTED, False),
    ],
)
def test_a_status_ends_the_attempts_where_it_would_come_again(code: grpc.StatusCode, again: bool):
    verdict = after_error(CallError(code, "", "told"))
    refused = code is grpc.StatusCode.UNAUTHENTICATED
    assert verdict == Verdict(again=again, reason=code.name, detail="told", fresh_token=refused)


def test_a_token_that_ran_out_is_renewed_at_once():
    verdict = after_error(CallError(grpc.StatusCode.UNAUTHENTICATED, "TOKEN_EXPIRED", "told"))
    assert verdict == Verdict(again=True, reason="TOKEN_EXPIRED", detail="told", at_once=True, fresh_token=True)


def test_a_retry_delay_means_again_whatever_the_code():
    verdict = after_error(CallError(grpc.StatusCode.FAILED_PRECONDITION, "", "", 2.0))
    assert verdict.again
    assert verdict.delay_seconds == 2.0


def test_a_silent_end_is_weather():
    assert after_loss("cut") == Verdict(again=True, reason=LOST, detail="cut")
    assert LOST == "LOST"


def test_waits_are_jittered_over_the_whole_range_and_grow_to_the_cap():
    backoff = Backoff(Random(1))
    first = [Backoff(Random(seed)).next_delay() for seed in range(200)]
    assert max(first) <= 0.25
    assert min(first) < 0.05
    waits = [backoff.next_delay() for _ in range(60)]
    assert max(waits) <= CAP_SECONDS
    assert max(waits) > CAP_SECONDS / 2
    backoff.reset()
    assert backoff.next_delay() <= 0.25


def test_what_the_server_asked_for_comes_on_top():
    assert Backoff(Random(1)).next_delay(7.0) >= 7.0


def test_a_wait_is_no_longer_than_all_before_it():
    """So who drew many short ones while a gateway's users were nobody's is back soon after they are somebody's."""
    for seed in range(300):
        backoff, waited = Backoff(Random(seed)), 0.0
        while waited < 20.0:
            delay = backoff.next_delay()
            assert delay <= 0.25 + waited
            waited += delay
        backoff.reset()
        assert backoff.next_delay() <= 0.25
