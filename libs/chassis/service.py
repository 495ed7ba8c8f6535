"""A service as a process of its own: settings, logs, metrics, engines, and an end in bounded time.

A service's `__main__.py` names its settings and says what it opens; all else is the same for all and lives here. Exit codes tell a
supervisor what to do: 0 it was asked to stop and did; 1 it broke, start it again; 2 it can't begin and never will as it is
configured; 75 the engines were not there in time, start it again.
"""

import os

# gRPC's C core reads this once, when it is loaded: what it would print on stderr comes as an error, too, in words of ours.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

import asyncio
import random
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Final, NoReturn, TypeVar

import grpc.aio
import structlog
from prometheus_client import CollectorRegistry, ProcessCollector
from pydantic_settings import BaseSettings

from chassis.app import Stop, allow_open_files, prefer_throughput, run
from chassis.certificates import TlsError
from chassis.channels import open_channel
from chassis.clock import SystemClock
from chassis.config import ConfigError, Settings, load_all_settings
from chassis.first_of import first_of
from chassis.logs import configure_logging
from chassis.metrics import open_metrics_server
from chassis.process_config import InternalSettings, ProcessSettings
from chassis.readiness import PROCESS, Probe, Readiness, open_readiness
from chassis.registry import Instance, RegistryRefusedError
from chassis.server import BindError, Register, RunningServer, open_server
from chassis.transport import Callers, Peer
from chassis.waiting import EnginesAbsentError, open_when_there

EXIT_FAILED: Final = 1
EXIT_UNUSABLE: Final = 2
EXIT_ABSENT: Final = 75  # sysexits' EX_TEMPFAIL
STOP_SECONDS: Final = 45.0  # all drains together are bounded by less; then the process ends whatever hangs
_T = TypeVar("_T")

log = structlog.get_logger()


class Host:
    """What a service's composition needs of its process; made by `run_service`."""

    def __init__(self, service: str, settings: Settings, readiness: Readiness, stop: Stop) -> None:
        self.service = service
        self.settings = settings
        self.clock = SystemClock()
        self.rng = random.Random()
        self.metrics = CollectorRegistry()
        self.readiness = readiness
        self.started = asyncio.Event()
        self.metrics_address = ""
        self.certificates = settings[InternalSettings].certificates(service)  # raises TlsError
        self._stop = stop

    @asynccontextmanager
    async def engine(
        self,
        name: str,
        opening: Callable[[CollectorRegistry], AbstractAsyncContextManager[_T]],
        *,
        absent: type[Exception],
        seconds: float,
    ) -> AsyncIterator[_T]:
        """Open an engine's adapter; while the engine is not there, say so, and give up after `seconds` (EnginesAbsentError).

        `opening` gets where its metrics go: each try has a place of its own, and the one that succeeds is shown.
        """
        tried: list[CollectorRegistry] = []

        def attempt() -> AbstractAsyncContextManager[_T]:
            tried.append(CollectorRegistry())
            return opening(tried[-1])

        waiting = open_when_there(name, attempt, absent=absent, seconds=seconds, clock=self.clock, readiness=self.readiness)
        async with waiting as opened:
            self.metrics.register(tried[-1])
            yield opened

    def internal_server(
        self, register: Register, callers: frozenset[str] = frozenset()
    ) -> AbstractAsyncContextManager[RunningServer]:
        """Serve other services; where certificates are configured, only those whose role is among the callers."""
        tls = None if self.certificates is None else Callers(self.certificates, callers)
        return open_server(bind=self.settings[InternalSettings].listen, register=register, tls=tls, readiness=self.readiness)

    def channel_to(self, instance: Instance) -> AbstractAsyncContextManager[grpc.aio.Channel]:
        """Open a channel to another service's instance, which shows that it is one, where certificates are configured."""
        return open_channel(instance.address, None if self.certificates is None else Peer(self.certificates, instance.service))

    def advertised(self, server: RunningServer) -> str:
        """Return the address at which others reach the internal server."""
        return self.settings[InternalSettings].advertised(server.address)

    def name(self, instance_id: str) -> str:
        """Return what this instance is called in the registry: what the operator chose, else a random name."""
        return instance_id or f"{self.service}-{self.rng.getrandbits(48):012x}"

    async def serve(self, address: str, wait_failed: Awaitable[object], probes: Mapping[str, Probe], internal: str = "") -> None:
        """Say where it serves, and serve until told to stop. `probes` are asked whether it is ready, too.

        Raises what ended the service meanwhile.
        """
        self.readiness.watch(probes)
        self.started.set()
        others = f", internal on {internal}" if internal else ""
        others += f", metrics on http://{self.metrics_address}/metrics" if self.metrics_address else ""
        print(f"{self.service} is ready on {address}{others}", flush=True)  # noqa: T201  # for whoever started it
        log.info("service.ready", address=address)

        async def broken() -> None:
            await wait_failed

        await first_of(self._stop.wait(), broken())
        log.info("service.stopping")
        self.readiness.report(PROCESS, "stopping")


Serve = Callable[[Host], Awaitable[None]]


def run_service(
    service: str, classes: Sequence[type[BaseSettings]], serve: Serve, *, unusable: Sequence[type[Exception]] = ()
) -> NoReturn:
    """Run a service until it is told to stop; ends the process.

    `serve` opens what it needs, calls `Host.serve`, and drains. `unusable` are its own errors that say that it can't begin.
    """
    try:
        settings = load_all_settings((ProcessSettings, InternalSettings, *classes), os.environ)
    except ConfigError as error:
        _refuse(str(error))
    process = settings[ProcessSettings]
    configure_logging(json=process.log_json, level=process.log_level)
    structlog.contextvars.bind_contextvars(service=service)
    prefer_throughput()
    allow_open_files()
    refusals: tuple[type[Exception], ...] = (BindError, RegistryRefusedError, TlsError, *unusable)
    try:
        run(lambda stop: _run(service, settings, stop, serve))
    except refusals as error:
        _refuse(f"{error}.")
    except EnginesAbsentError as error:
        _refuse(f"{error}.", EXIT_ABSENT)
    except Exception:
        log.exception("service.broke")
        _end(EXIT_FAILED)
    _end(0)


async def _run(service: str, settings: Settings, stop: Stop, serve: Serve) -> None:
    async with open_readiness() as readiness:
        host = Host(service, settings, readiness, stop)
        ProcessCollector(registry=host.metrics)
        async with _open_metrics(host):
            await _serve(host, stop, serve)


async def _serve(host: Host, stop: Stop, serve: Serve) -> None:
    serving = asyncio.ensure_future(serve(host))
    stopped = asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait({serving, stopped}, return_when=asyncio.FIRST_COMPLETED)
        if stop.is_set():
            _end_in_time()
            if not host.started.is_set():
                serving.cancel()  # it waits for an engine, or opens what nobody needs any more
        await serving
    except asyncio.CancelledError:
        if not (stop.is_set() and serving.cancelled()):
            raise
    finally:
        stopped.cancel()
        serving.cancel()
        await asyncio.wait({serving, stopped})


@asynccontextmanager
async def _open_metrics(host: Host) -> AsyncIterator[None]:
    listen = host.settings[ProcessSettings].metrics_listen
    if not listen:
        yield
        return
    async with open_metrics_server(listen, host.metrics, host.readiness) as running:
        host.metrics_address = running.address
        yield


def _end_in_time() -> None:
    """End the process after STOP_SECONDS, in whatever its loop hangs then: nothing that was acknowledged depends on a drain."""

    def give_up() -> None:
        log.error("service.stop_took_too_long", seconds=STOP_SECONDS)
        _end_now(EXIT_FAILED)

    timer = threading.Timer(STOP_SECONDS, give_up)
    timer.daemon = True
    timer.start()


def _refuse(why: str, code: int = EXIT_UNUSABLE) -> NoReturn:
    for line in why.splitlines():
        print(f"Error: {line}", file=sys.stderr, flush=True)  # noqa: T201  # it has no logs yet, or a person to read it
    _end(code)


def _end(code: int) -> NoReturn:
    sys.stdout.flush()
    sys.exit(code)


def _end_now(code: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
