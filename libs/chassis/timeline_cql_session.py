"""One session of scylla-driver, bridged to asyncio.

The driver answers by callbacks on a thread of its own. An answer goes into a queue, and only the first of those that wait there
wakes the loop: a burst of answers costs one wake-up. What blocks (connecting, preparing, shutting down, sending while connections
are being made anew) runs on an executor. The session has threads: a process that has one must not fork.
"""

import asyncio
from collections import Counter, deque
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from cassandra import DriverException, OperationTimedOut, RequestExecutionException, Timeout, Unavailable
from cassandra.cluster import NoHostAvailable, ResultSet, Session
from cassandra.connection import ConnectionBusy, ConnectionException
from cassandra.protocol import OverloadedErrorMessage
from cassandra.query import PreparedStatement, Statement

from chassis.executor import ThreadExecutor
from chassis.timeline import TimelineUnavailableError
from chassis.timeline_cql_metrics import CqlMetrics, Failure, Kind
from chassis.timeline_cql_settings import CqlSettings

# What the driver raises where the database can't be asked: its errors have no base in common. A connection that ends while its
# answer is waited for is a ConnectionException.
DRIVER_ERRORS: Final = (DriverException, RequestExecutionException, NoHostAvailable, ConnectionException, ConnectionBusy)
_DEFINE_SECONDS: Final = 60.0  # a change of the schema takes 0.1 to 0.5 s, on a crowded machine many times that


class Answer(NamedTuple):
    """What a statement returned: rows, and where its next page begins if there is one."""

    rows: Sequence[Any]
    next_page: bytes | None


class _Exchange:
    """Statements that were sent together, until the last of them is answered."""

    __slots__ = ("_left", "answers", "done", "error")

    def __init__(self, count: int, done: asyncio.Future[None]) -> None:
        self.answers: list[Answer | None] = [None] * count
        self.error: TimelineUnavailableError | None = None
        self.done = done
        self._left = count

    def settle(self, index: int, answer: Answer | None, error: TimelineUnavailableError | None) -> None:
        self.answers[index] = answer
        self.error = self.error or error
        self._left -= 1
        if not self._left and not self.done.done():
            self.done.set_result(None)

    def give_up(self, not_sent: int) -> None:
        """Expect no answer for the last `not_sent` statements."""
        self._left -= not_sent
        if not self._left and not self.done.done():
            self.done.set_result(None)


class _Request(NamedTuple):
    """A statement under way."""

    exchange: _Exchange
    place: int
    kind: Kind
    sent_at: float


class CqlSession:
    """A connected session, for one event loop; made by `open_cql_session`."""

    def __init__(self, session: Session, executor: ThreadExecutor, settings: CqlSettings, metrics: CqlMetrics) -> None:
        self.metadata = session.cluster.metadata
        self._session = session
        self._executor = executor
        self._loop = asyncio.get_running_loop()
        self._timeout_seconds = settings.request_seconds
        self._metrics = metrics
        self._slots = asyncio.Semaphore(settings.requests_in_flight)
        self._answers: deque[tuple[_Request, Answer | None, Exception | None]] = deque()
        self._woken = False

    async def prepare(self, cql: str) -> PreparedStatement:
        """Prepare a statement on every node. Raises what the driver raises."""
        return await self._executor.run(self._session.prepare, cql)

    async def query(self, cql: str, parameters: Sequence[Any] | None = None) -> Sequence[Any]:
        """Run one plain statement and return its rows, for setting up. Raises what the driver raises."""
        return await self._executor.run(lambda: list(self._session.execute(cql, parameters)))

    async def define(self, cql: str) -> bool:
        """Change the schema and tell whether all nodes agree on it. Raises what the driver raises.

        Everybody's changes go to the same node, which does one after the other: several Cassandra nodes that create one table at
        the same moment would make two of it.
        """

        def execute() -> bool:
            up = [host for host in self.metadata.all_hosts() if host.is_up]
            first = min(up, key=lambda host: str(host.endpoint), default=None)
            response = self._session.execute_async(cql, host=first, timeout=_DEFINE_SECONDS)
            response.result()
            return bool(response.is_schema_agreed)

        return await self._executor.run(execute)

    def nodes_by_datacenter(self) -> Counter[str]:
        """Return how many nodes each datacenter has."""
        return Counter(str(host.datacenter) for host in self.metadata.all_hosts())

    async def run(self, kind: Kind, statements: Sequence[Statement], pages: Sequence[bytes | None] = ()) -> list[Answer]:
        """Send statements and wait for all answers, in their order. `pages` says where each one's page begins.

        Raises TimelineUnavailableError within the deadline. Cancelling leaves alone what was sent.
        """
        loop = self._loop
        deadline = loop.time() + self._timeout_seconds
        exchange = _Exchange(len(statements), loop.create_future())
        try:
            for index, statement in enumerate(statements):
                if self._slots.locked():
                    await self._wait_for_slot(exchange, deadline)
                else:
                    await self._slots.acquire()  # at once
                if exchange.error is not None:  # what is not sent yet need not be
                    self._slots.release()
                    exchange.give_up(len(statements) - index)
                    break
                self._metrics.under_way += 1
                request = _Request(exchange, index, kind, loop.time())
                page = pages[index] if pages else None
                if self._is_connected():
                    self._send(request, statement, page, deadline)
                else:
                    await asyncio.shield(self._executor.run(self._send, request, statement, page, deadline))
            await exchange.done
        finally:
            exchange.done.cancel()
        if exchange.error is not None:
            raise exchange.error
        return exchange.answers  # type: ignore[return-value]  # without an error all are there

    async def _wait_for_slot(self, exchange: _Exchange, deadline: float) -> None:
        try:
            async with asyncio.timeout_at(deadline):
                await self._slots.acquire()
        except TimeoutError:
            self._metrics.errors[Failure.TIMEOUT].inc()
            raise TimelineUnavailableError(
                "the database is too slow: no request of the earlier ones was answered in time"
            ) from None

    def _is_connected(self) -> bool:
        """Tell whether sending can't block: with a closed connection in a pool the driver waits up to 2 s for a better one."""
        return all(state["open_count"] == len(state["in_flights"]) for state in self._session.get_pool_state().values())

    def _send(self, request: _Request, statement: Statement, page: bytes | None, deadline: float) -> None:
        try:
            # Not less than a moment: a response future with a timeout in the past never answers.
            timeout = max(0.001, deadline - self._loop.time())
            response = self._session.execute_async(statement, timeout=timeout, paging_state=page)
        except Exception as error:  # shut down, or a node that went away while it was sent
            self._answered(request, None, error)
            return
        response.add_callbacks(self._on_rows, self._on_error, callback_args=(request, response), errback_args=(request,))

    def _on_rows(self, rows: Any, request: _Request, response: Any) -> None:
        # Of a page the driver tells its rows only; where the next one begins is the response's.
        next_page = ResultSet(response, rows).paging_state if response.has_more_pages else None
        self._answered(request, Answer(rows or (), next_page), None)

    def _on_error(self, error: Exception, request: _Request) -> None:
        self._answered(request, None, error)

    def _answered(self, request: _Request, answer: Answer | None, error: Exception | None) -> None:
        """Hand an answer to the loop; from any thread."""
        self._answers.append((request, answer, error))
        if not self._woken:  # else the loop is on its way, and it lowers the flag before it looks
            self._woken = True
            self._loop.call_soon_threadsafe(self._drain)

    def _drain(self) -> None:
        self._woken = False
        now, metrics = self._loop.time(), self._metrics
        while self._answers:
            request, answer, error = self._answers.popleft()
            self._slots.release()
            metrics.under_way -= 1
            metrics.seconds[request.kind].observe(now - request.sent_at)
            failure = None
            if error is not None:
                why, failure = failure_of(error)
                metrics.errors[why].inc()
            request.exchange.settle(request.place, answer, failure)


def failure_of(error: Exception) -> tuple[Failure, TimelineUnavailableError]:
    """Say what a driver's error means."""
    if isinstance(error, NoHostAvailable):
        inner = [each for each in error.errors.values() if isinstance(each, Exception)]
        if len(inner) == 1 and not isinstance(inner[0], NoHostAvailable | ConnectionError | OSError):
            why = failure_of(inner[0])[0]
            return why, _unavailable(inner[0])
        return Failure.UNREACHABLE, _unavailable(error)
    if isinstance(error, OperationTimedOut | Timeout):
        return Failure.TIMEOUT, _unavailable(error)
    if isinstance(error, Unavailable):
        return Failure.UNAVAILABLE, _unavailable(error)
    if isinstance(error, OverloadedErrorMessage):
        return Failure.OVERLOADED, _unavailable(error)
    return Failure.REFUSED, _unavailable(error)


def _unavailable(error: Exception) -> TimelineUnavailableError:
    failure = TimelineUnavailableError(text_of(error))
    failure.__cause__ = error
    return failure


def text_of(error: Exception) -> str:
    """Return an error on one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
