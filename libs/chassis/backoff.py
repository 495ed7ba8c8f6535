"""How long to wait before the next try: longer after each failure, never twice the same."""

import random


class Backoff:
    """Counts failures by key; waits double from one to the next, up to a bound, with the upper half drawn at random."""

    def __init__(self, min_seconds: float, max_seconds: float, rng: random.Random) -> None:
        self._min_seconds = min_seconds
        self._max_seconds = max_seconds
        self._rng = rng
        self._failures: dict[int, int] = {}

    def failed(self, key: int) -> float:
        """Note a failure and return the seconds to wait."""
        failures = self._failures[key] = self._failures.get(key, 0) + 1
        most = min(self._max_seconds, self._min_seconds * 2.0**failures)
        return self._rng.uniform(most / 2, most)

    def succeeded(self, key: int) -> None:
        """Begin anew."""
        self._failures.pop(key, None)
