"""The error table around gRPC handlers, the same over sockets and in process: servicers raise and need no `try`.

Handlers are wrapped once, when they are registered, not by an interceptor a call: it costs less, and the table covers what an
interceptor can't, the decoding of the request.
"""

import asyncio
import inspect
import secrets
from collections.abc import Awaitable, Callable, Mapping
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias

import grpc
import grpc.aio
import structlog
from google.protobuf.message import DecodeError
from grpc_status import rpc_status

from chassis.call_tasks import begin_handler
from chassis.errors import InvalidArgument, Unimplemented, build_status, expected_status

if TYPE_CHECKING:
    Handler: TypeAlias = grpc.RpcMethodHandler[Any, Any]
else:
    Handler = grpc.RpcMethodHandler  # generic for type checkers only
_Behavior = Callable[[Any, Any], Awaitable[Any]]
Admit = Callable[[str, Any], None]  # raises what a method's caller is refused with; gets the method and the call's context
log = structlog.get_logger()


def guard(method: str, handler: Handler, admit: Admit | None = None) -> Handler:
    """Wrap a handler: what it raises becomes a google.rpc.Status, what it can't decode INVALID_ARGUMENT.

    An unexpected exception is logged once, with its traceback and a reference that the client gets. Cancellation passes through,
    unless nobody cancelled the call: gRPC would leave its client waiting. A handler that is not async (as those that generated base
    classes bring) answers UNIMPLEMENTED. `admit` is asked before anything is decoded.
    """
    decode, encode = _decoder(handler.request_deserializer), handler.response_serializer
    if handler.request_streaming and handler.response_streaming:
        streams = _guarded(method, admit, _writing(_async(method, handler.stream_stream)))
        return grpc.stream_stream_rpc_method_handler(streams, decode, encode)
    if handler.request_streaming:
        gathers = _guarded(method, admit, _encoding(_async(method, handler.stream_unary), encode))
        return grpc.stream_unary_rpc_method_handler(gathers, decode, None)
    if handler.response_streaming:
        spreads = _guarded(method, admit, _decoding(_writing(_async(method, handler.unary_stream)), decode))
        return grpc.unary_stream_rpc_method_handler(spreads, None, encode)
    answers = _guarded(method, admit, _decoding(_encoding(_async(method, handler.unary_unary), encode), decode))
    return grpc.unary_unary_rpc_method_handler(answers, None, None)


def guard_methods(service: str, handlers: Mapping[str, Handler], admit: Admit | None = None) -> dict[str, Handler]:
    """Wrap a service's handlers, by method name."""
    return {name: guard(f"/{service}/{name}", handler, admit) for name, handler in handlers.items()}


class GuardedGenericHandler(grpc.GenericRpcHandler):
    """Wraps what a generic handler finds, once for each method."""

    def __init__(self, inner: grpc.GenericRpcHandler, admit: Admit | None = None) -> None:
        self._inner = inner
        self._admit = admit
        self._known: dict[str, tuple[Handler, Handler]] = {}  # by method: wrapping costs more than a call

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Handler | None:
        handler = self._inner.service(handler_call_details)
        if handler is None:
            return None
        method = str(handler_call_details.method)
        known = self._known.get(method)
        if known is None or known[0] is not handler:
            known = self._known[method] = (handler, guard(method, handler, self._admit))
        return known[1]


def _guarded(method: str, admit: Admit | None, behavior: _Behavior) -> _Behavior:
    async def guarded(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        begin_handler()
        try:
            if admit is not None:
                admit(method, context)
            return await behavior(request, context)
        except grpc.aio.BaseError as error:
            if isinstance(error, grpc.aio.UsageError):
                await _answer(method, context, error)
            raise  # answered, or a call whose client is gone, or a server that stops: nobody to answer, and no bug
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            await _answer(method, context, RuntimeError("something that the handler waited for was cancelled"), error)
        except Exception as error:
            await _answer(method, context, error)

    return guarded


async def _answer(
    method: str, context: grpc.aio.ServicerContext[Any, Any], error: Exception, cause: BaseException | None = None
) -> NoReturn:
    status = expected_status(error)
    if status is None:
        reference = secrets.token_hex(8)  # to be found in a log: no simulation depends on it
        log.error("handler failed", method=method, reference=reference, exc_info=cause or error)
        status = build_status(grpc.StatusCode.INTERNAL, "INTERNAL", f"internal error, in the server's log as {reference}")
    await context.abort_with_status(rpc_status.to_status(status))


def _async(method: str, behavior: Any) -> Any:
    if inspect.iscoroutinefunction(behavior) or inspect.isasyncgenfunction(behavior):
        return behavior

    async def unimplemented(_request: Any, _context: Any) -> NoReturn:
        raise Unimplemented("ACTION_UNSUPPORTED", f"{method} is not implemented here")

    return unimplemented


def _writing(behavior: Any) -> _Behavior:
    """Make one kind of the two kinds of streaming handlers: one that writes."""
    if not inspect.isasyncgenfunction(behavior):
        return behavior  # type: ignore[no-any-return]

    async def write_all(request: Any, context: Any) -> None:
        async with aclosing(behavior(request, context)) as responses:
            async for response in responses:
                await context.write(response)

    return write_all


def _decoder(decode: Callable[[bytes], Any] | None) -> Callable[[bytes], Any] | None:
    if decode is None:
        return None

    def decode_or_refuse(message: bytes) -> Any:
        try:
            return decode(message)
        except DecodeError as error:
            raise InvalidArgument("MALFORMED", f"the request is not a valid message: {error}") from error

    return decode_or_refuse


def _decoding(behavior: _Behavior, decode: Callable[[bytes], Any] | None) -> _Behavior:
    if decode is None:
        return behavior

    async def decoding(request: bytes, context: Any) -> Any:
        return await behavior(decode(request), context)

    return decoding


def _encoding(behavior: _Behavior, encode: Callable[[Any], bytes] | None) -> _Behavior:
    if encode is None:
        return behavior

    async def encoding(request: Any, context: Any) -> bytes:
        return encode(await behavior(request, context))

    return encoding
