"""One instance in Consul: its registration, the health check that it renews, the session that hangs on that, and its locks."""

import asyncio
import base64
import random
import uuid
from collections.abc import AsyncIterator, Awaitable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Any, Final

import structlog

from chassis.registry import Epoch, Instance, RegistryUnavailableError
from chassis.registry_consul_http import TRANSACTION_KEYS, WAIT_SECONDS, ConsulClient
from chassis.registry_consul_watch import follow
from chassis.tasks import open_tasks

# An instance that stops renewing is gone after this long, be it dead, paused, cut off, or busy with something else than its loop.
CHECK_SECONDS: Final = 5
_RENEW_SECONDS: Final = 1.0  # several tries within it, and nothing is written anywhere when nothing changes
LOCK_DELAY_SECONDS: Final = 1  # what fences is the epoch, so this is only for the dead one's last words
_FORGET_SECONDS: Final = 60  # Consul's least; an instance that failed stands there as failed until then
_OPEN_SECONDS: Final = 10.0  # registration, until the check is known everywhere and a session can hang on it
_OPEN_PAUSE_SECONDS: Final = 0.05
_CLOSE_SECONDS: Final = 3.0  # what is not undone by then ends with the check
_NODE_CHECK: Final = "serfHealth"  # Consul's own: without it a dead machine's sessions would live for ever

_log = structlog.get_logger()


class ConsulSession:
    """See `chassis.registry.RegistrySession`."""

    def __init__(self, client: ConsulClient, session_id: str, start: str, instance_id: str) -> None:
        self._client = client
        self._session_id = session_id
        self._start = start
        self._value = base64.b64encode(instance_id.encode()).decode()
        self._held: dict[str, None] = {}
        self.lost = asyncio.Event()

    @property
    def session_id(self) -> str:
        return self._session_id

    async def acquire(self, keys: Sequence[str]) -> Mapping[str, Epoch]:
        held: dict[str, Epoch] = {}
        for chunk in _chunks(keys):
            self._held.update(dict.fromkeys(chunk))  # before: if the answer is lost they may be ours
            for entry in await self._transact("lock", chunk):
                held[entry["Key"].removeprefix(self._start)] = Epoch(entry["Session"], entry["LockIndex"])
            for key in chunk:
                if key not in held:
                    self._held.pop(key, None)
        return held

    async def release(self, keys: Sequence[str]) -> None:
        for chunk in _chunks(keys):
            await self._transact("unlock", chunk)
            for key in chunk:
                self._held.pop(key, None)

    async def release_all(self) -> None:
        """Unlock everything, so that others need not wait for the lock-delay."""
        await self.release(list(self._held))

    async def wait_lost(self) -> None:
        await self.lost.wait()

    async def _transact(self, verb: str, keys: Sequence[str]) -> Sequence[Mapping[str, Any]]:
        """Do it for those of the keys for which it can be done; return their entries.

        A transaction does all or nothing and names what failed (held by another, closed by the lock-delay, the session gone): those
        are left out of the next try.
        """
        left = list(keys)
        while left:
            operation = {"Verb": verb, "Value": self._value, "Session": self._session_id}
            entries, failures = await self._client.transact([{"KV": {**operation, "Key": self._start + key}} for key in left])
            if not failures:
                return entries
            left = [key for place, key in enumerate(left) if place not in failures]
        return ()


def _chunks(keys: Sequence[str]) -> list[list[str]]:
    unique = list(dict.fromkeys(keys))
    return [unique[start : start + TRANSACTION_KEYS] for start in range(0, len(unique), TRANSACTION_KEYS)]


@asynccontextmanager
async def open_consul_session(
    client: ConsulClient, service_name: str, start: str, instance: Instance, meta: Mapping[str, str], rng: random.Random
) -> AsyncIterator[ConsulSession]:
    """Register the instance and hold its session; leaving undoes both. Raises RegistryUnavailableError."""
    service_id = f"{service_name}-{instance.instance_id}-{uuid.uuid4().hex[:8]}"  # one that comes back does not meet its old check
    check_id = f"service:{service_id}"
    try:
        await _register(client, service_name, service_id, instance, meta)
        session_id = await _create_session(client, service_id, check_id)
        session = ConsulSession(client, session_id, start, instance.instance_id)
        async with open_tasks(f"registry.{instance.instance_id}") as tasks:
            renewing = tasks.spawn(_renew(client, check_id), name="renew")
            tasks.spawn(_watch_loss(client, session, service_id, renewing, rng), name="watch")
            yield session
            await _undo(session.release_all(), "release")
            await _undo(client.session.destroy(session_id), "session")
    finally:
        await _undo(client.agent.service.deregister(service_id), "service")


async def _register(client: ConsulClient, name: str, service_id: str, instance: Instance, meta: Mapping[str, str]) -> None:
    host, _, port = instance.address.rpartition(":")
    check = {"TTL": f"{CHECK_SECONDS}s", "Status": "passing", "DeregisterCriticalServiceAfter": f"{_FORGET_SECONDS}s"}
    addresses = {"address": instance.address, "public_address": instance.public_address}
    await client.agent.service.register(
        name,
        service_id=service_id,
        address=host.strip("[]"),
        port=int(port) if port.isdecimal() else None,
        check=check,
        meta={"instance_id": instance.instance_id, **addresses, **meta},
    )


async def _create_session(client: ConsulClient, name: str, check_id: str) -> str:
    """Create the session, as soon as the agent has told its servers of the check."""
    last: RegistryUnavailableError | None = None
    try:
        async with asyncio.timeout(_OPEN_SECONDS):
            while True:
                try:
                    session_id: str = await client.session.create(
                        name=name, checks=[_NODE_CHECK, check_id], lock_delay=LOCK_DELAY_SECONDS
                    )
                except RegistryUnavailableError as error:
                    last = error
                else:
                    return session_id
                await asyncio.sleep(_OPEN_PAUSE_SECONDS)
                await _renew_once(client, check_id)
    except TimeoutError:
        raise RegistryUnavailableError(f"no session within {_OPEN_SECONDS:g} s: {last}") from last


async def _renew(client: ConsulClient, check_id: str) -> None:
    while True:
        await _renew_once(client, check_id)
        await asyncio.sleep(_RENEW_SECONDS)


async def _renew_once(client: ConsulClient, check_id: str) -> None:
    try:
        await client.agent.check.ttl_pass(check_id)
    except RegistryUnavailableError as error:
        _log.debug("registry.not_renewed", check=check_id, error=str(error))  # what comes of it, the session's watch tells


async def _watch_loss(
    client: ConsulClient, session: ConsulSession, service_id: str, renewing: "asyncio.Task[None]", rng: random.Random
) -> None:
    """Tell of the session's end when Consul says for sure that there is no such session; then the instance is no more, either."""

    async def query(index: int | None) -> tuple[str, Any]:
        answer: tuple[str, Any] = await client.session.info(session.session_id, index=index, wait=f"{WAIT_SECONDS}s")
        return answer

    async with aclosing(follow(query, f"session {session.session_id}", rng)) as answers:
        async for answer in answers:
            if answer.value is None:
                break
    renewing.cancel()
    session.lost.set()
    await _undo(client.agent.service.deregister(service_id), "service")


async def _undo(step: Awaitable[object], what: str) -> None:
    try:
        async with asyncio.timeout(_CLOSE_SECONDS):
            await step
    except (TimeoutError, RegistryUnavailableError) as error:
        _log.warning("registry.left_to_expire", what=what, error=str(error))
