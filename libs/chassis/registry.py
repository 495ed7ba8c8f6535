"""The Registry port: which instances of a service live, and who holds which lock, as Consul offers it.

Implementations: `registry_memory` (embedded), `registry_consul`. tests/contracts/test_registry.py runs against each.

Nothing durable depends on it: a registry that is silent, slow or lost its data costs freshness, never a message.
"""

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import NamedTuple, Protocol


class Instance(NamedTuple):
    """One running process of a service."""

    service: str
    instance_id: str
    address: str  # where other services reach it
    public_address: str = ""  # where those outside reach it, if they do


class Epoch(NamedTuple):
    """A lock's fencing token, compared for equality only: indexes restart when a registry loses its data."""

    session_id: str
    lock_index: int


class Holder(NamedTuple):
    """Who holds a lock."""

    instance_id: str
    epoch: Epoch


class RegistryUnavailableError(Exception):
    """The registry did not answer; what was known stays as good as it was."""


class RegistryRefusedError(Exception):
    """The registry is there and can't be used so (a token that it refuses, another cluster's keys): waiting does not help."""


class RegistrySession(Protocol):
    """An instance's presence in the registry. It ends by `close`, or by the registry when the instance's health fails."""

    @property
    def session_id(self) -> str:
        """Return the registry's id of this session."""

    async def acquire(self, keys: Sequence[str]) -> Mapping[str, Epoch]:
        """Try to lock keys; return those that this session holds now, with the epochs of when it got them.

        A key held by another is left out, without an error; so are all once the session has ended. Raises
        RegistryUnavailableError: unknown, ask again.
        """

    async def release(self, keys: Sequence[str]) -> None:
        """Unlock those of the keys that this session holds. Raises RegistryUnavailableError: unknown, ask again."""

    async def wait_lost(self) -> None:
        """Return when the registry has definitely ended this session; never because it is silent."""


class Registry(Protocol):
    """Instances and locks."""

    def open_session(self, instance: Instance) -> AbstractAsyncContextManager[RegistrySession]:
        """Register the instance and hold locks in its name; leaving releases all locks and deregisters.

        Entering raises RegistryUnavailableError: try again; RegistryRefusedError: do not. After the session was lost, leave it and
        open a new one.
        """

    def watch_instances(self, service: str) -> AsyncGenerator[Sequence[Instance], None]:
        """Yield the healthy instances, by id: at once, then after each change (changes may be merged, and an unchanged list may
        come again). Survives an unavailable registry by waiting. Close it to stop (`contextlib.aclosing`).
        """

    def watch_holders(self, prefix: str) -> AsyncGenerator[Mapping[str, Holder], None]:
        """Yield who holds the locks whose keys start with the prefix, likewise."""
