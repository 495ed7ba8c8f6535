import grpc
import grpc.aio
import pytest
from google.rpc import code_pb2, error_details_pb2, status_pb2

from chassis import errors
from chassis.eventlog import LogUnavailableError
from chassis.registry import RegistryUnavailableError
from chassis.timeline import TimelineUnavailableError

KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.ServiceError)]


def rpc_error(code, status=None, details=""):
    trailing = grpc.aio.Metadata()
    if status is not None:
        trailing.add(errors.STATUS_DETAILS_KEY, status.SerializeToString())
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), trailing, details)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind is not errors.ServiceError])
def test_every_kind_of_error_has_the_code_of_its_name(kind):
    name = "".join("_" + char if char.isupper() else char.upper() for char in kind.__name__).strip("_")
    assert kind.code is grpc.StatusCode[name]
    assert errors.status_of(kind("R", "d")).code == code_pb2.Code.Value(name)


def test_a_status_carries_reason_domain_and_delay():
    status = errors.status_of(errors.ResourceExhausted("RATE_LIMITED", "slower", retry_delay_seconds=0.25))
    assert status.message == "slower"
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    assert (info.reason, info.domain) == ("RATE_LIMITED", "parley")
    assert errors.reason_of(status) == "RATE_LIMITED"
    assert errors.retry_delay_of(status) == 0.25


def test_a_status_without_delay_or_reason_says_so():
    assert errors.retry_delay_of(errors.status_of(errors.NotFound("X", ""))) is None
    assert errors.reason_of(status_pb2.Status(code=5)) == ""


def test_a_reason_of_another_domain_is_not_ours():
    status = status_pb2.Status(code=5)
    status.details.add().Pack(error_details_pb2.ErrorInfo(reason="X", domain="elsewhere"))
    assert errors.reason_of(status) == ""


def test_a_long_text_is_cut():
    assert len(errors.status_of(errors.NotFound("X", "x" * 10_000)).SerializeToString()) < 1000


def test_an_expected_error_maps_to_its_status():
    error = errors.PermissionDenied("NOT_A_MEMBER", "no")
    assert errors.expected_status(error) == errors.status_of(error)


@pytest.mark.parametrize("kind", [LogUnavailableError, TimelineUnavailableError, RegistryUnavailableError])
def test_an_engine_that_is_away_is_unavailable_with_a_delay(kind):
    status = errors.expected_status(kind("disk on fire"))
    assert status.code == code_pb2.UNAVAILABLE
    assert errors.reason_of(status) == "UNAVAILABLE"
    assert errors.retry_delay_of(status) > 0
    assert "disk" not in status.message


@pytest.mark.parametrize("error", [ValueError("x"), AssertionError(), KeyError("k"), TimeoutError()])
def test_anything_else_is_our_bug(error):
    assert errors.expected_status(error) is None


def test_the_status_of_a_service_behind_is_passed_on():
    status = errors.status_of(errors.PermissionDenied("NOT_A_MEMBER", "no"))
    assert errors.expected_status(rpc_error(grpc.StatusCode.PERMISSION_DENIED, status)) == status


@pytest.mark.parametrize("code", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED])
def test_a_service_behind_that_is_away_is_unavailable(code):
    status = errors.expected_status(rpc_error(code, details="127.0.0.1:1 refused"))
    assert status.code == code_pb2.UNAVAILABLE
    assert "127" not in status.message


@pytest.mark.parametrize("code", [grpc.StatusCode.UNKNOWN, grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.RESOURCE_EXHAUSTED])
def test_a_service_behind_that_answers_strangely_is_our_bug(code):
    assert errors.expected_status(rpc_error(code)) is None


def test_a_status_that_contradicts_its_call_or_can_not_be_read_is_not_believed():
    status = errors.status_of(errors.PermissionDenied("NOT_A_MEMBER", "no"))
    assert errors.carried_status(rpc_error(grpc.StatusCode.NOT_FOUND, status)) is None
    broken = grpc.aio.AioRpcError(
        grpc.StatusCode.NOT_FOUND, grpc.aio.Metadata(), grpc.aio.Metadata((errors.STATUS_DETAILS_KEY, b"\xff\xff"))
    )
    assert errors.carried_status(broken) is None
    assert errors.carried_status(grpc.aio.AioRpcError(grpc.StatusCode.NOT_FOUND)) is None
