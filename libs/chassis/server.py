"""A gRPC server on a socket: bound, guarded, with health and reflection, stopped in bounded time."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final

import grpc
import grpc.aio
import structlog
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc

from chassis.call_tasks import CallTasks, noting_tasks
from chassis.callers import admitting
from chassis.certificates import Certificates, TlsFiles, dynamic_server_credentials
from chassis.handlers import Admit, GuardedGenericHandler, Handler, guard_methods
from chassis.readiness import Readiness
from chassis.tasks import open_tasks
from chassis.transport import SERVER_MAX_RECEIVE_BYTES, Callers, server_options

Register = Callable[[grpc.aio.Server], None]
STOP_GRACE_SECONDS: Final = 1.0  # for unary calls under way; streams were ended before, those that were not are cancelled after it
_STOP_LIMIT_SECONDS: Final = 5.0  # for handlers to end once cancelled; a process that exits must not hang on one that does not
log = structlog.get_logger()


class BindError(Exception):
    """The server can't listen on its address."""


class RunningServer:
    """A server that listens at `address` (host:port); made by `open_server`."""

    def __init__(self, address: str, services: Iterable[str], health_servicer: health.aio.HealthServicer) -> None:
        self.address = address
        self.services = tuple(services)
        self._health = health_servicer

    async def follow(self, readiness: Readiness) -> None:
        """Tell health checks what readiness says, until cancelled."""
        while True:
            ready = readiness.ready
            await self.set_serving(ready)
            await readiness.wait_until(not ready)

    async def set_serving(self, serving: bool) -> None:
        """Tell health checks whether new calls are welcome, for the server ("") and each service. Calls are served either way."""
        status = health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
        for service in ("", *self.services):
            await self._health.set(service, status)


@asynccontextmanager
async def open_server(
    *,
    bind: str,
    register: Register,
    tls: TlsFiles | Callers | None = None,
    readiness: Readiness | None = None,
    max_receive_bytes: int = SERVER_MAX_RECEIVE_BYTES,
    stop_grace_seconds: float = STOP_GRACE_SECONDS,
) -> AsyncIterator[RunningServer]:
    """Serve what `register` adds, plus health and reflection, on `bind` (host:port, port 0: a free one).

    Leaving refuses new calls, gives running ones `stop_grace_seconds`, then cancels them. Raises BindError, TlsError.
    TLS files are read again when they change. Health follows `readiness`; without it, it says SERVING until told otherwise.
    """
    host, port = split_bind(bind)
    inner = grpc.aio.server(options=server_options(max_receive_bytes))
    server = _GuardedServer(inner, admitting(tls.roles) if isinstance(tls, Callers) else None)
    register(server)
    health_servicer = health.aio.HealthServicer()
    for service in server.services:
        await health_servicer.set(service, health_pb2.HealthCheckResponse.SERVING)
    running_services = tuple(server.services)
    health_pb2_grpc.add_HealthServicer_to_server(health_servicer, server)
    names = (*server.services, reflection.SERVICE_NAME)
    servicer = reflection.aio.ReflectionServicer(names)
    reflection_pb2_grpc.add_ServerReflectionServicer_to_server(servicer, server)  # type: ignore[no-untyped-call]  # has no stubs
    calls: CallTasks = {}
    try:
        port = _bind(inner, bind, tls)
        with noting_tasks(calls):
            await inner.start()
        running = RunningServer(f"{host}:{port}", running_services, health_servicer)
        async with open_tasks("health") as tasks:
            if readiness is not None:
                await running.set_serving(readiness.ready)
                tasks.spawn(running.follow(readiness), name="follow")
            yield running
    finally:
        await health_servicer.enter_graceful_shutdown()
        await _stop(inner, calls, stop_grace_seconds)


class _GuardedServer(grpc.aio.Server):
    """A server that wraps the handlers which are added to it and remembers their services' names."""

    def __init__(self, inner: grpc.aio.Server, admit: Admit | None) -> None:
        self._inner = inner
        self._admit = admit
        self.services: list[str] = []

    def add_generic_rpc_handlers(self, generic_rpc_handlers: Iterable[grpc.GenericRpcHandler]) -> None:
        handlers = list(generic_rpc_handlers)
        for handler in handlers:
            if isinstance(handler, grpc.ServiceRpcHandler) and handler.service_name() not in self.services:
                self.services.append(handler.service_name())
        self._inner.add_generic_rpc_handlers([GuardedGenericHandler(handler, self._admit) for handler in handlers])

    def add_registered_method_handlers(self, service_name: str, method_handlers: Mapping[str, Handler]) -> None:
        guarded = guard_methods(service_name, method_handlers, self._admit)
        self._inner.add_registered_method_handlers(service_name, guarded)

    def add_insecure_port(self, address: str) -> int:
        raise grpc.aio.UsageError(f"open_server chooses the port, not {address}")

    def add_secure_port(self, address: str, server_credentials: grpc.ServerCredentials) -> int:
        raise grpc.aio.UsageError(f"open_server chooses the port, not {address}")

    async def start(self) -> None:
        raise grpc.aio.UsageError("open_server starts the server")

    async def stop(self, grace: float | None) -> None:
        raise grpc.aio.UsageError("leaving open_server stops the server")

    async def wait_for_termination(self, timeout: float | None = None) -> bool:
        return await self._inner.wait_for_termination(timeout)


def _bind(server: grpc.aio.Server, bind: str, tls: TlsFiles | Callers | None) -> int:
    credentials = None
    if tls is not None:
        credentials = dynamic_server_credentials(tls.certificates if isinstance(tls, Callers) else Certificates(tls))
    try:
        port = server.add_insecure_port(bind) if credentials is None else server.add_secure_port(bind, credentials)
    except RuntimeError as error:
        raise _refusal(bind, _why_not(bind)) from error
    if port == 0:
        raise _refusal(bind, _why_not(bind))
    return port


def refuse_taken(bind: str) -> None:
    """See, before much else is started, that one could listen on host:port now. Raises BindError."""
    if why := _why_not(bind):
        raise _refusal(bind, why)


def _refusal(bind: str, why: str) -> BindError:
    return BindError(f"can't listen on {bind}: {why or 'the address was refused'}")


def _why_not(bind: str) -> str:
    """Find out why an address can't be bound, which gRPC only logs; nothing: it can."""
    host, port = split_bind(bind)
    try:
        for family, kind, protocol, _, address in socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM):
            with socket.socket(family, kind, protocol) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as gRPC: connections that have ended take nothing
                probe.bind(address)
    except OSError as error:
        return error.strerror or str(error)
    return ""


def split_bind(bind: str) -> tuple[str, int]:
    """Split host:port. Raises BindError: gRPC would take port 70000 for 4464, and a missing one for 443."""
    host, _, port = bind.rpartition(":")
    if not host or not (port.isascii() and port.isdecimal()) or int(port) > 0xFFFF:
        raise BindError(f"can't listen on {bind!r}: it is not host:port with a port from 0 to 65535")
    return host, int(port)


async def _stop(server: grpc.aio.Server, calls: CallTasks, grace_seconds: float) -> None:
    """Stop, and wait for the calls' tasks, which gRPC only cancels. One that ignores its cancellation is named and left."""
    stopping: asyncio.Task[Any] = asyncio.ensure_future(server.stop(grace_seconds))
    _, late = await asyncio.wait([stopping], timeout=grace_seconds + _STOP_LIMIT_SECONDS)
    loop = asyncio.get_running_loop()
    deadline = loop.time() + _STOP_LIMIT_SECONDS
    while calls and (left := deadline - loop.time()) > 0:  # again and again: one that has not begun yet makes another
        await asyncio.wait(list(calls), timeout=left)
    if calls or late:
        log.error("server did not stop in time", tasks=[task.get_name() for task in calls])
        stopping.cancel()
    else:
        stopping.result()
