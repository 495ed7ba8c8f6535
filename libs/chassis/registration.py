"""Being in the registry for as long as one serves, whatever becomes of a session."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import structlog

from chassis.backoff import Backoff
from chassis.registry import Instance, Registry, RegistryRefusedError, RegistryUnavailableError
from chassis.tasks import open_tasks

_FIRST_RETRY_SECONDS: Final = 0.2
_MAX_RETRY_SECONDS: Final = 5.0  # a registry that is back is told of us within that

_log = structlog.get_logger()


@asynccontextmanager
async def open_registration(registry: Registry, instance: Instance, rng: random.Random) -> AsyncIterator[None]:
    """Be found by others until the block is left; it begins once that is so.

    A session that the registry ended, because this process was silent for too long or because it lost its data, is followed by a
    new one. For those who hold locks a session's end means more: they hold their sessions themselves.
    """
    registered = asyncio.Event()
    async with open_tasks(f"registration.{instance.instance_id}", told=(RegistryRefusedError,)) as tasks:
        keeping = tasks.spawn(_keep(registry, instance, registered, rng), name="keep")
        waiting = tasks.spawn(registered.wait(), name="first")
        await asyncio.wait({keeping, waiting}, return_when=asyncio.FIRST_COMPLETED)
        if keeping.done():
            keeping.result()  # raises what the registry can't be used for
        yield


async def _keep(registry: Registry, instance: Instance, registered: asyncio.Event, rng: random.Random) -> None:
    backoff = Backoff(_FIRST_RETRY_SECONDS, _MAX_RETRY_SECONDS, rng)
    while True:
        try:
            async with registry.open_session(instance) as session:
                backoff.succeeded(0)
                registered.set()
                await session.wait_lost()
            _log.warning("registry.session_lost", instance=instance.instance_id)
        except RegistryUnavailableError as error:
            _log.warning("registry.not_registered", instance=instance.instance_id, error=str(error))
        await asyncio.sleep(backoff.failed(0))
