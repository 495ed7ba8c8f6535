"""How fast one device may send, however often it connects and whichever call it uses."""

import math
from typing import Final

from chassis.rate import TokenBucket

_MAX_BUCKETS: Final = 100_000  # ~300 B each; beyond it users who asked for theirs longest ago start with full ones
_DEVICES_PER_USER: Final = 32  # with a bucket of their own: a token that pins no device may name any number of them
_OTHERS: Final = "\0"  # no device's id


class DeviceRates:
    """One bucket a device; the devices of a user beyond the first 32 share one.

    A bucket that nobody took from for as long as it takes to fill is as good as a new one. So there are two generations of them,
    the older one is dropped as a whole, and nobody keeps a bucket beyond the moment that he asked for it.
    """

    def __init__(self, commands_per_second: float, burst: int) -> None:
        self._commands_per_second = commands_per_second
        self._burst = burst
        self._filled_seconds = burst / commands_per_second
        self._users: dict[str, dict[str, TokenBucket]] = {}  # asked for since the turn
        self._count = 0  # buckets in them
        self._earlier: dict[str, dict[str, TokenBucket]] = {}  # not since then
        self._turned_at = -math.inf  # monotonic

    @property
    def user_count(self) -> int:
        """Return how many users are remembered."""
        return len(self._users) + len(self._earlier)

    def bucket_of(self, user_id: str, device_id: str, now: float) -> TokenBucket:
        """Return the device's bucket."""
        devices = self._users.pop(user_id, None)
        if devices is None:
            devices = self._earlier.pop(user_id, None) or {}
        else:
            self._count -= len(devices)
        if device_id not in devices and len(devices) >= _DEVICES_PER_USER:
            device_id = _OTHERS
        bucket = devices.get(device_id)
        if bucket is None:
            bucket = devices[device_id] = TokenBucket(self._commands_per_second, self._burst)
        if self._count + len(devices) > _MAX_BUCKETS // 2:
            self._turn(now)
        self._users[user_id] = devices
        self._count += len(devices)
        return bucket

    def forget_full(self, now: float) -> None:
        """Forget what is as good as new; to be called now and then."""
        if now - self._turned_at >= self._filled_seconds:
            self._turn(now)

    def _turn(self, now: float) -> None:
        self._earlier, self._users, self._count, self._turned_at = self._users, {}, 0, now
