"""Expected errors, and the one table that maps them to google.rpc.Status.

A ServiceError is somebody else's fault or the weather: it has a code and a published reason, and is not logged as an error.
Everything else that a handler raises is our bug: INTERNAL, logged once with its traceback.
"""

from typing import ClassVar

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2

ERROR_DOMAIN = "parley"


class ServiceError(Exception):
    """An expected error. `reason` is a name of the published enum without its prefix; `detail` is for a person."""

    code: ClassVar[grpc.StatusCode] = grpc.StatusCode.UNKNOWN

    def __init__(self, reason: str, detail: str, *, retry_delay_seconds: float | None = None) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail
        self.retry_delay_seconds = retry_delay_seconds


class InvalidArgument(ServiceError):
    code = grpc.StatusCode.INVALID_ARGUMENT


class FailedPrecondition(ServiceError):
    code = grpc.StatusCode.FAILED_PRECONDITION


class NotFound(ServiceError):
    code = grpc.StatusCode.NOT_FOUND


class AlreadyExists(ServiceError):
    code = grpc.StatusCode.ALREADY_EXISTS


class PermissionDenied(ServiceError):
    code = grpc.StatusCode.PERMISSION_DENIED


class Unauthenticated(ServiceError):
    code = grpc.StatusCode.UNAUTHENTICATED


class ResourceExhausted(ServiceError):
    code = grpc.StatusCode.RESOURCE_EXHAUSTED


class Unavailable(ServiceError):
    code = grpc.StatusCode.UNAVAILABLE


class DeadlineExceeded(ServiceError):
    code = grpc.StatusCode.DEADLINE_EXCEEDED


class Unimplemented(ServiceError):
    code = grpc.StatusCode.UNIMPLEMENTED


class Internal(ServiceError):
    code = grpc.StatusCode.INTERNAL


def status_of(error: ServiceError) -> status_pb2.Status:
    """Return the error as a google.rpc.Status with ErrorInfo, and RetryInfo where waiting helps."""
    return build_status(error.code, error.reason, error.detail, error.retry_delay_seconds)


def build_status(
    code: grpc.StatusCode, reason: str, detail: str, retry_delay_seconds: float | None = None
) -> status_pb2.Status:
    """Build a google.rpc.Status with ErrorInfo(reason, domain), and RetryInfo if a delay is given."""
    number: int = code.value[0]
    status = status_pb2.Status(code=number, message=detail)
    _attach(status.details.add(), error_details_pb2.ErrorInfo(reason=reason, domain=ERROR_DOMAIN))
    if retry_delay_seconds is not None:
        delay = duration_pb2.Duration()
        delay.FromNanoseconds(int(retry_delay_seconds * 1e9))
        _attach(status.details.add(), error_details_pb2.RetryInfo(retry_delay=delay))
    return status


def _attach(slot: any_pb2.Any, detail: error_details_pb2.ErrorInfo | error_details_pb2.RetryInfo) -> None:
    slot.Pack(detail)


def reason_of(status: status_pb2.Status) -> str:
    """Return a status's ErrorInfo.reason, or an empty string."""
    info = error_details_pb2.ErrorInfo()
    for detail in status.details:
        if detail.Is(info.DESCRIPTOR) and detail.Unpack(info):
            return info.reason
    return ""


def retry_delay_of(status: status_pb2.Status) -> float | None:
    """Return a status's RetryInfo.retry_delay in seconds, or None."""
    info = error_details_pb2.RetryInfo()
    for detail in status.details:
        if detail.Is(info.DESCRIPTOR) and detail.Unpack(info):
            return info.retry_delay.ToNanoseconds() / 1e9
    return None
