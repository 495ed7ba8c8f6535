"""An asyncio event loop on virtual time: it never waits, it moves its clock to the next timer.

Everything in asyncio that needs no file descriptor, thread or process runs on it unchanged. Whoever would need one is refused
loudly: a thread would race with jumping time. Runs are repeatable: callbacks run in the order asyncio gives them, and tasks and
futures hash by their number, so that sets of them iterate alike in every run.
"""

import asyncio
import heapq
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Generator
from concurrent.futures import Executor
from contextvars import Context, ContextVar
from random import Random
from types import CodeType
from typing import Any, TypeVar, TypeVarTuple, Unpack

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

# Turns of the loop without time moving: far more than any burst of work needs, reached by a livelock in about two seconds.
MAX_TURNS_PER_INSTANT = 200_000
DEFAULT_LIMIT_SECONDS = 30 * 24 * 3600.0  # longer than any retention or expiry that a test waits for
_CANCELLED_TIMERS_MAX = 100  # from then on those that are the half of all are swept out
START_WALL_MS = 1_700_000_000_000  # an arbitrary day: runs must not depend on today's date

PROCESS: ContextVar[str] = ContextVar("virtual_process", default="")  # which simulated process a task belongs to; inherited


class DeadlockError(Exception):
    """Nothing is ready and no timer is set: this run can't go on."""


class LimitError(Exception):
    """The run went on for longer than it may: in virtual seconds, or in turns at one instant (a livelock)."""


class UnhandledError(Exception):
    """Something failed where nobody looked: what asyncio would only have logged."""


class VirtualTask(asyncio.Task[Any]):
    """A task with a number (order of creation) and the simulated process that it belongs to."""

    def __init__(
        self, coro: Coroutine[Any, Any, Any] | Generator[Any, None, Any], *, loop: "VirtualLoop", context: Context | None
    ) -> None:
        self.number = loop.next_number()  # before super(), which hashes
        self.process = PROCESS.get() if context is None else context.get(PROCESS, "")
        super().__init__(coro, loop=loop, name=f"task {self.number}", context=context)

    def __hash__(self) -> int:
        return self.number


class VirtualFuture(asyncio.Future[Any]):
    """A future with a number."""

    def __init__(self, *, loop: "VirtualLoop") -> None:
        self.number = loop.next_number()
        super().__init__(loop=loop)

    def __hash__(self) -> int:
        return self.number


class _Timer(asyncio.TimerHandle):
    """A timer that is compared with its like alone, without a look at what it is: ten times as often as it is made."""

    __slots__ = ()
    _scheduled: bool  # asyncio's
    _when: float

    def __lt__(self, other: asyncio.TimerHandle) -> bool:
        return self._when < other._when  # type: ignore[attr-defined, no-any-return]


class _NoSelector:
    """Stands where the loop waits for sockets: there are none, and waiting is moving the clock."""

    def close(self) -> None:
        """Hold nothing, close nothing."""


class VirtualLoop(asyncio.base_events.BaseEventLoop):
    """The loop. `time()` starts at 0 and moves only when nothing is ready."""

    # BaseEventLoop's, in all versions that we run on.
    _ready: deque[Any]
    _scheduled: list[Any]
    _timer_cancelled_count: int
    _stopping: bool
    _check_closed: Callable[[], None]

    def __init__(self, limit_seconds: float = DEFAULT_LIMIT_SECONDS) -> None:
        super().__init__()
        self.set_debug(False)  # debug mode measures real time and looks up every callback's source
        self._selector = _NoSelector()
        self._clock_resolution = 1e-9
        self._now = 0.0
        self._limit_seconds = limit_seconds
        self._turns_at_instant = 0
        self._numbers = 0
        self._home_thread = threading.get_ident()
        self._frozen: dict[str, list[Any]] = {}  # process -> what it would do if it were not
        self.turns = 0
        self.unhandled: list[dict[str, Any]] = []
        self.set_exception_handler(lambda _loop, context: self.unhandled.append(context))
        self.set_task_factory(_make_task)

    def time(self) -> float:
        return self._now

    def next_number(self) -> int:
        """Count tasks and futures."""
        self._numbers += 1
        return self._numbers

    def pass_time(self, timeout: float | None) -> None:
        """Move the clock by what the loop wanted to wait for; raise if that is for ever or too far."""
        self.turns += 1
        if timeout is None:
            raise DeadlockError("nothing is ready and no timer is set\n" + self.describe_tasks())
        if timeout > 0:
            self._turns_at_instant = 0
            self._now += timeout
            if self._now > self._limit_seconds:
                limit, self._limit_seconds = self._limit_seconds, float("inf")  # what ends the run must not meet it again
                raise LimitError(f"the run took more than {limit:g} virtual seconds\n" + self.describe_tasks())
            return
        self._turns_at_instant += 1
        if self._turns_at_instant > MAX_TURNS_PER_INSTANT:
            self._turns_at_instant = 0
            raise LimitError(f"livelock: {MAX_TURNS_PER_INSTANT} turns at {self._now:.6f} s\n" + self.describe_tasks())

    def freeze(self, process: str) -> None:
        """Let nothing of a simulated process run, as SIGSTOP does, or a suspended machine. Its timers come due meanwhile."""
        self._frozen.setdefault(process, [])

    def thaw(self, process: str) -> None:
        """Let a frozen process go on, with all that has come due, in order."""
        self._ready.extend(self._frozen.pop(process, ()))

    def _run_once(self) -> None:
        """Run what is ready, as BaseEventLoop does, but for what belongs to a frozen process."""
        scheduled, ready = self._scheduled, self._ready
        if self._timer_cancelled_count > _CANCELLED_TIMERS_MAX and 2 * self._timer_cancelled_count > len(scheduled):
            for handle in scheduled:
                handle._scheduled = not handle._cancelled
            scheduled[:] = [handle for handle in scheduled if not handle._cancelled]
            heapq.heapify(scheduled)
            self._timer_cancelled_count = 0
        while scheduled and scheduled[0]._cancelled:
            self._timer_cancelled_count -= 1
            heapq.heappop(scheduled)._scheduled = False
        timeout: float | None = None
        if ready or self._stopping:
            timeout = 0.0
        elif scheduled:
            timeout = max(0.0, scheduled[0]._when - self._now)
        self.pass_time(timeout)
        end = self._now + self._clock_resolution
        while scheduled and scheduled[0]._when < end:
            handle = heapq.heappop(scheduled)
            handle._scheduled = False
            ready.append(handle)
        for _ in range(len(ready)):
            due = ready.popleft()
            if due._cancelled:
                continue
            held = self._frozen.get(due._context.get(PROCESS, "")) if self._frozen else None
            if held is None:
                due._run()
            else:
                held.append(due)

    def live_tasks(self, process: str | None = None) -> list[VirtualTask]:
        """Return the tasks that are not done, oldest first: of one simulated process, or all."""
        tasks = [task for task in asyncio.all_tasks(self) if isinstance(task, VirtualTask)]
        return sorted((task for task in tasks if process is None or task.process == process), key=lambda task: task.number)

    def describe_tasks(self) -> str:
        """Say for each task where it waits."""
        lines = [f"  {task.process or '-'}: {task.get_name()} waits at {_where(task.get_coro())}" for task in self.live_tasks()]
        return "\n".join(lines) or "  (no task left)"

    def raise_unhandled(self) -> None:
        """Raise UnhandledError if an exception went where nobody looked."""
        if self.unhandled:
            first = self.unhandled[0]
            raise UnhandledError(f"{len(self.unhandled)} unhandled, first: {first.get('message')}") from first.get("exception")

    # These three do what BaseEventLoop's do, but for debug mode, which is off: a run is mostly turns of the loop.

    def call_soon(self, callback: Callable[[Unpack[Ts]], object], *args: *Ts, context: Context | None = None) -> asyncio.Handle:
        self._check_closed()
        handle = asyncio.Handle(callback, args, self, context)
        self._ready.append(handle)
        return handle

    def call_at(
        self, when: float, callback: Callable[[Unpack[Ts]], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.TimerHandle:
        self._check_closed()
        timer = _Timer(when, callback, args, self, context)
        timer._scheduled = True
        heapq.heappush(self._scheduled, timer)
        return timer

    def call_later(
        self, delay: float, callback: Callable[[Unpack[Ts]], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.TimerHandle:
        return self.call_at(self._now + delay, callback, *args, context=context)

    def create_future(self) -> VirtualFuture:
        return VirtualFuture(loop=self)

    def call_soon_threadsafe(
        self, callback: Callable[[Unpack[Ts]], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.Handle:
        if threading.get_ident() != self._home_thread:
            raise RuntimeError("another thread called into virtual time: run adapters on an InlineExecutor")
        return self.call_soon(callback, *args, context=context)

    def run_in_executor(self, executor: Executor | None, func: Callable[[Unpack[Ts]], T], *args: *Ts) -> asyncio.Future[T]:
        raise RuntimeError(f"a thread would race with jumping time: run {func!r} on an InlineExecutor")

    def _process_events(self, event_list: list[Any]) -> None:
        """Have no sockets, get no events."""

    def _write_to_self(self) -> None:
        """Need no waking: the loop never sleeps."""


class VirtualClock:
    """A chassis.clock.Clock on the running virtual loop. Wall time is the loop's plus an offset that can jump either way."""

    def __init__(self, wall_start_ms: int = START_WALL_MS) -> None:
        self._wall_start_ms = wall_start_ms
        self._offset_ms = 0

    def wall_ms(self) -> int:
        return self._wall_start_ms + self._offset_ms + int(self.monotonic() * 1000)

    def monotonic(self) -> float:
        return asyncio.get_running_loop().time()

    def jump_wall(self, seconds: float) -> None:
        """Move wall time, forward or back, from now on."""
        self._offset_ms += round(seconds * 1000)


def run_virtual(main: Callable[[Random], Awaitable[T]], seed: int = 0, limit_seconds: float = DEFAULT_LIMIT_SECONDS) -> T:
    """Run `main(Random(seed))` on a new virtual loop to its end; whatever it left running is cancelled, oldest first.

    Raises what main raises, DeadlockError, LimitError, and UnhandledError for exceptions that nobody took. All carry the seed
    as a note.
    """
    loop = VirtualLoop(limit_seconds)

    async def run() -> T:
        try:
            return await main(Random(seed))
        finally:
            this = asyncio.current_task()
            others = [task for task in loop.live_tasks() if task is not this]
            for task in others:
                task.cancel("the run is over")
            await asyncio.gather(*others, return_exceptions=True)

    try:
        with asyncio.Runner(debug=False, loop_factory=lambda: loop) as runner:
            result = runner.run(run())
        loop.raise_unhandled()
    except BaseException as error:
        error.add_note(f"seed {seed}, at {loop.time():.6f} virtual seconds")
        raise
    return result


def _make_task(
    loop: asyncio.AbstractEventLoop, coro: Coroutine[Any, Any, Any] | Generator[Any, None, Any], *, context: Context | None = None
) -> VirtualTask:
    assert isinstance(loop, VirtualLoop)
    return VirtualTask(coro, loop=loop, context=context)


def _where(awaitable: Any) -> str:
    """Return file:line (function) of the innermost frame that a suspended coroutine waits in."""
    place = "?"
    while awaitable is not None:
        code: CodeType | None = getattr(awaitable, "cr_code", None) or getattr(awaitable, "ag_code", None)
        frame = getattr(awaitable, "cr_frame", None) or getattr(awaitable, "ag_frame", None)
        if code is not None and frame is not None:
            place = f"{code.co_filename}:{frame.f_lineno} ({code.co_name})"
        awaitable = getattr(awaitable, "cr_await", None) or getattr(awaitable, "ag_await", None)
    return place
