"""How fast one device may send, however often it connects and whichever call it uses."""

from typing import Final

from chassis.rate import TokenBucket

_MAX_BUCKETS: Final = 100_000  # ~300 B each; beyond it the user who asked for his longest ago starts with full ones
_DEVICES_PER_USER: Final = 32  # with a bucket of their own: a token that pins no device may name any number of them
_OTHERS: Final = "\0"  # no device's id


class DeviceRates:
    """One bucket a device; the devices of a user beyond the first 32 share one."""

    def __init__(self, commands_per_second: float, burst: int) -> None:
        self._commands_per_second = commands_per_second
        self._burst = burst
        self._count = 0
        self._users: dict[str, dict[str, TokenBucket]] = {}

    def bucket_of(self, user_id: str, device_id: str) -> TokenBucket:
        """Return the device's bucket."""
        devices = self._users.pop(user_id, None)
        if devices is None:
            devices = {}
        self._users[user_id] = devices  # now the last to be forgotten
        if device_id not in devices and len(devices) >= _DEVICES_PER_USER:
            device_id = _OTHERS
        bucket = devices.get(device_id)
        if bucket is None:
            while self._count >= _MAX_BUCKETS:
                self._count -= len(self._users.pop(next(iter(self._users))))
            bucket = devices[device_id] = TokenBucket(self._commands_per_second, self._burst)
            self._count += 1
        return bucket
