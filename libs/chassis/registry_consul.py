"""The Registry in Consul: services with health checks, one session an instance, locks on keys.

| in Consul | is |
|---|---|
| service `<prefix>-<service>` | an instance, with its addresses, cluster, role and version as meta data |
| check `service:<id>` | a TTL that the instance's event loop renews: critical a few seconds after it stops, for whatever reason |
| a session | tied to that check and to the node's own; when one fails, Consul frees the locks |
| key `<prefix>/<lock>` | a lock; its value is the holder's instance id, its (session, LockIndex) the epoch |
| keys `<prefix>/cluster`, `/log`, `/tables`, `/log-epoch` | whose all of this is: see `registry_consul_claim` |

Watches are blocking queries. Consul may be away for any time: a watch shows nothing then, and goes on by itself.
"""

import asyncio
import random
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from typing import Any, Final

from chassis.registry import Epoch, Holder, Instance, RegistryRefusedError
from chassis.registry_consul_claim import Claim, Claims
from chassis.registry_consul_http import WAIT_SECONDS, ConsulClient, ConsulRefusedError, ConsulSettings, open_consul_client
from chassis.registry_consul_session import ConsulSession, open_consul_session
from chassis.registry_consul_watch import follow

# After Consul was away, who was there counts as there for that long: its checks begin anew as failed, or it has lost its data and
# everybody has to register again.
_RETURN_SECONDS: Final = 10.0


class ConsulRegistry:
    """See `chassis.registry.Registry`; opened by `open_consul_registry`."""

    def __init__(self, client: ConsulClient, settings: ConsulSettings, claim: Claim, version: str, rng: random.Random) -> None:
        self.claims = Claims(client, settings.prefix, claim, rng)
        self._client = client
        self._prefix = settings.prefix
        self._cluster_id = claim.cluster_id
        self._version = version
        self._rng = rng

    def open_session(self, instance: Instance) -> AbstractAsyncContextManager[ConsulSession]:
        return self._open_session(instance)

    @asynccontextmanager
    async def _open_session(self, instance: Instance) -> AsyncIterator[ConsulSession]:
        await self.claims.make()  # a Consul that has lost its data may have been taken by another cluster since
        meta = {"cluster": self._cluster_id, "role": instance.service, "version": self._version}
        name = self._service_name(instance.service)
        async with open_consul_session(self._client, name, f"{self._prefix}/", instance, meta, self._rng) as session:
            yield session

    async def watch_instances(self, service: str) -> AsyncGenerator[Sequence[Instance], None]:
        name = self._service_name(service)

        async def query(index: int | None) -> tuple[str, list[Mapping[str, Any]]]:
            answer: tuple[str, list[Mapping[str, Any]]] = await self._client.health.service(
                name, passing=True, index=index, wait=f"{WAIT_SECONDS}s"
            )
            return answer

        loop = asyncio.get_running_loop()
        known: dict[str, Instance] = {}
        keep_until = -1.0
        async with aclosing(follow(query, name, self._rng)) as answers:
            async for answer in answers:
                found = self._read_instances(service, answer.value)
                if answer.was_away:
                    keep_until = loop.time() + _RETURN_SECONDS
                known = (known | found) if loop.time() < keep_until else found
                yield [known[instance_id] for instance_id in sorted(known)]

    def _read_instances(self, service: str, entries: Sequence[Mapping[str, Any]]) -> dict[str, Instance]:
        """Return the instances of this cluster, of those that stand there twice (one came back) the newest."""
        found: dict[str, Instance] = {}
        for entry in sorted(entries, key=lambda entry: int(entry["Service"]["CreateIndex"])):
            meta = entry["Service"]["Meta"] or {}
            if meta.get("cluster") == self._cluster_id:
                instance = Instance(service, meta["instance_id"], meta["address"], meta["public_address"])
                found[instance.instance_id] = instance
        return found

    async def watch_holders(self, prefix: str) -> AsyncGenerator[Mapping[str, Holder], None]:
        start = f"{self._prefix}/"

        async def query(index: int | None) -> tuple[str, list[Mapping[str, Any]] | None]:
            answer: tuple[str, list[Mapping[str, Any]] | None] = await self._client.kv.get(
                start + prefix, recurse=True, index=index, wait=f"{WAIT_SECONDS}s"
            )
            return answer

        async with aclosing(follow(query, start + prefix, self._rng)) as answers:
            async for answer in answers:
                locked = (entry for entry in answer.value or () if entry.get("Session"))
                yield {entry["Key"].removeprefix(start): _holder(entry) for entry in locked}

    def _service_name(self, service: str) -> str:
        return f"{self._prefix.replace('/', '-')}-{service}"


def _holder(entry: Mapping[str, Any]) -> Holder:
    return Holder((entry["Value"] or b"").decode(errors="replace"), Epoch(entry["Session"], entry["LockIndex"]))


@asynccontextmanager
async def open_consul_registry(
    settings: ConsulSettings, *, claim: Claim, version: str, rng: random.Random
) -> AsyncIterator[ConsulRegistry]:
    """Open the registry of a cluster. `version` is shown to operators.

    Raises RegistryUnavailableError: Consul is not there, or the cluster has not come to our log epoch yet, try again.
    RegistryRefusedError: the token is refused, Consul serves another cluster under this prefix, or ours has another log by now.
    TlsError.
    """
    try:
        async with open_consul_client(settings) as client:
            registry = ConsulRegistry(client, settings, claim, version, rng)
            try:
                await registry.claims.make()
            except ConsulRefusedError as error:
                what = "PARLEY_CONSUL_TOKEN_FILE" if settings.token_file is None else str(settings.token_file)
                raise RegistryRefusedError(f"{error}: see {what}; docs/cluster.md says what the token must allow") from error
            yield registry
    except FileNotFoundError as error:
        raise RegistryRefusedError(f"PARLEY_CONSUL_TOKEN_FILE: {error}") from error
