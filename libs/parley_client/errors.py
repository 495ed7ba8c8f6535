"""What can go wrong, typed: everything that this package raises on purpose is a ClientError."""

import asyncio

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

_STATUS_DETAILS_KEY = "grpc-status-details-bin"


class ClientError(Exception):
    """The root of this package's errors."""


class ClosedError(ClientError):
    """The client was closed. Commands without an outcome stay in the outbox and go on when the same store is opened again."""


class FailedError(ClientError):
    """The client stopped over a failure on its own side: the store (StoreError), or a bug. Leaving `open_client` raises that.

    What was not kept was neither acknowledged nor shown; a new client on the same store goes on from what was.
    """


class SignedOffError(ClientError):
    """The server wants no reconnect (`reason` says why: REPLACED, UNAUTHENTICATED, EXPIRED, PROTOCOL_ERROR, or an error reason).

    The outbox keeps its commands; a new client on the same store, once the cause is mended, goes on with them.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail


class ProtocolError(ClientError):
    """The server broke the protocol; nothing of what it sent was stored."""


class StoreMismatchError(ClientError):
    """The local store belongs to another user or device."""


class StoreError(ClientError):
    """The local store can't be read or written: a full disk, a file that is no store. What was asked for is not kept."""


class StoreInUseError(ClientError):
    """Another process has the local store open."""


class OutboxFullError(ClientError):
    """Too many commands wait for their outcome; nothing was queued."""


class InvalidCommandError(ClientError, ValueError):
    """The command can never be valid; nothing was queued."""


class CommandCancelledError(ClientError):
    """The app gave the command up before the server had it."""


class UnknownConversationError(ClientError, LookupError):
    """The device knows no conversation of this id."""


class StatusError(ClientError):
    """A google.rpc.Status: its code, the published reason without ERROR_REASON_, text, and how long to wait where that helps."""

    def __init__(self, code: grpc.StatusCode, reason: str, detail: str, retry_delay_seconds: float | None = None) -> None:
        super().__init__(f"{reason or code.name}: {detail}")
        self.code = code
        self.reason = reason
        self.detail = detail
        self.retry_delay_seconds = retry_delay_seconds

    @property
    def passes(self) -> bool:
        """Whether the same call may succeed later, unchanged."""
        return self.retry_delay_seconds is not None or self.code in _PASSING_CODES


class RejectedError(StatusError):
    """The store refused the command, for good: the same request_id will be refused again."""

    def __init__(self, request_id: bytes, status: status_pb2.Status) -> None:
        code, reason, detail, delay = read_status(status)
        super().__init__(code, reason, detail, delay)
        self.request_id = request_id


class CallError(StatusError):
    """A call (Sync, ListEvents, ...) failed."""


_PASSING_CODES = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.CANCELLED,  # by the server's side: ours would be asyncio.CancelledError
        grpc.StatusCode.INTERNAL,  # a bug, or a proxy's broken stream: trying again, slowly, is all that a client can do
        grpc.StatusCode.UNKNOWN,
    }
)
_CODES = {code.value[0]: code for code in grpc.StatusCode}


def read_status(status: status_pb2.Status) -> tuple[grpc.StatusCode, str, str, float | None]:
    """Return (code, ErrorInfo.reason or "", message, RetryInfo in seconds or None). A code from the future counts as UNKNOWN."""
    reason, delay = "", None
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    for detail in status.details:
        if detail.Is(info.DESCRIPTOR) and detail.Unpack(info):
            reason = info.reason
        elif detail.Is(retry.DESCRIPTOR) and detail.Unpack(retry):
            delay = retry.retry_delay.ToNanoseconds() / 1e9
    return _CODES.get(status.code, grpc.StatusCode.UNKNOWN), reason, status.message, delay


def call_error(error: grpc.aio.AioRpcError) -> CallError:
    """Return the typed form of what a stub raised."""
    for key, value in error.trailing_metadata() or ():
        if key == _STATUS_DETAILS_KEY:
            try:
                status = status_pb2.Status.FromString(value if isinstance(value, bytes) else value.encode())
            except DecodeError:
                break  # a proxy's own trailer: the plain code is still true
            return CallError(*read_status(status))
    return CallError(error.code(), "", error.details() or "")


def cancelled_from_outside() -> bool:
    """Tell, on CancelledError, whether this task was cancelled; grpc.aio raises it also where only the call was."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
