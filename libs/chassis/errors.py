"""Expected errors, and the one table that maps them to google.rpc.Status.

A ServiceError is somebody else's fault or the weather: it has a code and a published reason, and is not logged as an error. So are
an engine and a service behind this one that can't be reached. Everything else that a handler raises is our bug: INTERNAL, logged
once with its traceback (`handlers`).
"""

from typing import ClassVar, Final

import grpc
import grpc.aio
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from chassis.eventlog import LogUnavailableError
from chassis.registry import RegistryUnavailableError
from chassis.timeline import TimelineUnavailableError

ERROR_DOMAIN: Final = "parley"
STATUS_DETAILS_KEY: Final = "grpc-status-details-bin"  # where gRPC's trailing metadata carries a google.rpc.Status
_ENGINE_ERRORS: Final = (LogUnavailableError, TimelineUnavailableError, RegistryUnavailableError)
_UNREACHED_CODES: Final = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED)
_MAX_DETAIL_CHARS: Final = 500  # a status travels twice in trailing metadata, of which clients take 8 KiB
_UNAVAILABLE_RETRY_SECONDS: Final = 1.0  # engines take seconds to come back: sooner is load without hope, later is felt


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


def expected_status(error: Exception) -> status_pb2.Status | None:
    """Map what a handler raised to the status for its client, or None if it is our bug.

    A status that a service behind this one gave is passed on as it is: it speaks of the client's request.
    """
    if isinstance(error, ServiceError):
        return status_of(error)
    if isinstance(error, _ENGINE_ERRORS):
        return _unavailable("an engine behind this service can't be reached")
    if isinstance(error, grpc.aio.AioRpcError):
        status = carried_status(error)
        if status is None and error.code() in _UNREACHED_CODES:
            return _unavailable("a service behind this one can't be reached")
        return status
    return None


def carried_status(error: grpc.aio.AioRpcError) -> status_pb2.Status | None:
    """Return the google.rpc.Status with one of our reasons that came with a failed call, or None."""
    for key, value in error.trailing_metadata() or ():
        if key == STATUS_DETAILS_KEY and isinstance(value, bytes):
            try:
                status = status_pb2.Status.FromString(value)
            except DecodeError:  # a peer's fault, and there is nothing to read in it
                return None
            if status.code == error.code().value[0] and reason_of(status):
                return status
    return None


def _unavailable(detail: str) -> status_pb2.Status:
    return build_status(grpc.StatusCode.UNAVAILABLE, "UNAVAILABLE", detail, _UNAVAILABLE_RETRY_SECONDS)


def build_status(code: grpc.StatusCode, reason: str, detail: str, retry_delay_seconds: float | None = None) -> status_pb2.Status:
    """Build a google.rpc.Status with ErrorInfo(reason, domain), and RetryInfo if a delay is given."""
    status = status_pb2.Status(code=code.value[0], message=detail[:_MAX_DETAIL_CHARS])
    _attach(status, error_details_pb2.ErrorInfo(reason=reason, domain=ERROR_DOMAIN))
    if retry_delay_seconds is not None:
        delay = duration_pb2.Duration()
        delay.FromNanoseconds(int(retry_delay_seconds * 1e9))
        _attach(status, error_details_pb2.RetryInfo(retry_delay=delay))
    return status


def _attach(status: status_pb2.Status, detail: error_details_pb2.ErrorInfo | error_details_pb2.RetryInfo) -> None:
    packed = any_pb2.Any()
    packed.Pack(detail)
    status.details.append(packed)


def reason_of(status: status_pb2.Status) -> str:
    """Return a status's ErrorInfo.reason if it is one of ours, or an empty string."""
    info = error_details_pb2.ErrorInfo()
    for detail in status.details:
        if _unpack(detail, info) and info.domain == ERROR_DOMAIN:
            return str(info.reason)
    return ""


def retry_delay_of(status: status_pb2.Status) -> float | None:
    """Return a status's RetryInfo.retry_delay in seconds, or None."""
    info = error_details_pb2.RetryInfo()
    for detail in status.details:
        if _unpack(detail, info):
            return float(info.retry_delay.ToNanoseconds()) / 1e9
    return None


def _unpack(detail: any_pb2.Any, into: error_details_pb2.ErrorInfo | error_details_pb2.RetryInfo) -> bool:
    return bool(detail.Is(into.DESCRIPTOR)) and detail.Unpack(into)
