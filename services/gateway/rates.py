"""How fast one device may send, however often it connects and whichever call it uses."""

from typing import Final

from chassis.rate import TokenBucket

_MAX_DEVICES: Final = 100_000  # ~300 B each; beyond it the one that asked for its bucket longest ago starts with a full one


class DeviceRates:
    """One bucket a device."""

    def __init__(self, commands_per_second: float, burst: int) -> None:
        self._commands_per_second = commands_per_second
        self._burst = burst
        self._buckets: dict[tuple[str, str], TokenBucket] = {}

    def bucket_of(self, user_id: str, device_id: str) -> TokenBucket:
        """Return the device's bucket."""
        key = (user_id, device_id)
        bucket = self._buckets.pop(key, None)
        if bucket is None:
            if len(self._buckets) >= _MAX_DEVICES:
                del self._buckets[next(iter(self._buckets))]
            bucket = TokenBucket(self._commands_per_second, self._burst)
        self._buckets[key] = bucket
        return bucket
