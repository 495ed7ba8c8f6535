"""How often somebody may do something."""


class TokenBucket:
    """A rate with room for bursts: starts full, refills continuously. Pure: time comes in as an argument."""

    __slots__ = ("_burst", "_rate_per_second", "_tokens", "_updated_at")

    def __init__(self, rate_per_second: float, burst: float) -> None:
        if rate_per_second <= 0 or burst < 1:
            raise ValueError(f"a bucket needs a rate above 0 and a burst of 1 or more, not {rate_per_second} and {burst}")
        self._rate_per_second = rate_per_second
        self._burst = burst
        self._tokens = burst
        self._updated_at: float | None = None

    def take(self, now: float, n: float = 1) -> float:
        """Take n tokens and return 0.0, or take none and return the seconds until n will be there.

        `now` is monotonic seconds; a step back counts as no time. Raises ValueError if n is more than the bucket can hold.
        """
        if n > self._burst:
            raise ValueError(f"{n} tokens never fit into a bucket of {self._burst}")
        if self._updated_at is None:
            self._updated_at = now
        elif now > self._updated_at:
            self._tokens = min(self._burst, self._tokens + (now - self._updated_at) * self._rate_per_second)
            self._updated_at = now
        if self._tokens >= n:
            self._tokens -= n
            return 0.0
        return (n - self._tokens) / self._rate_per_second
