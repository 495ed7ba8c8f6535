"""Wall time and monotonic time, injected: cores take `now`, only edges hold a Clock."""

import time
from typing import Protocol


class Clock(Protocol):
    """What time it is. Wall time may jump either way (an hour is survived); monotonic time may not."""

    def wall_ms(self) -> int:
        """Return milliseconds since 1970, UTC."""

    def monotonic(self) -> float:
        """Return seconds that only grow, at the pace of the running event loop's timers."""


class SystemClock:
    """The machine's clocks."""

    def wall_ms(self) -> int:
        return time.time_ns() // 1_000_000

    def monotonic(self) -> float:
        return time.monotonic()  # what loops count by; asking them costs three times as much
