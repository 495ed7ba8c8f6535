"""Whose the keys below a prefix in Consul are, and which log is served there now.

| key | says |
|---|---|
| `<prefix>/cluster` | the cluster's name, as its settings have it |
| `<prefix>/log` | the log: Kafka's own id and the topics' prefix. Clusters that were never given names are told apart by it |
| `<prefix>/tables` | the database's id, which it got when its schema was made; written by those that use it |
| `<prefix>/log-epoch` | the newest log epoch that tables belonged to; it only grows |

The first who comes writes, whoever comes later compares. A Consul that lost its data is written again with each new session.
"""

import asyncio
import random
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Final, NoReturn

from chassis.first_of import first_of
from chassis.registry import RegistryRefusedError, RegistryUnavailableError
from chassis.registry_consul_http import WAIT_SECONDS, ConsulClient
from chassis.registry_consul_watch import follow

_EPOCH: Final = "log-epoch"
_TRIES: Final = 10  # of a change that others are faster with: each of them made it, too


@dataclass(frozen=True)
class Claim:
    """What a process knows of its cluster. What is empty or 0 it does not know, and does not compare."""

    cluster_id: str
    log_id: str = ""
    log_epoch: int = 0
    tables_id: str = ""  # who knows the tables knows their log epoch, and notes it; others wait until somebody has


class Claims:
    """The keys of one prefix."""

    def __init__(self, client: ConsulClient, prefix: str, claim: Claim, rng: random.Random) -> None:
        self._client = client
        self._prefix = prefix
        self._claim = claim
        self._rng = rng
        self._refusal: asyncio.Future[NoReturn] = asyncio.get_running_loop().create_future()
        self._refusal.add_done_callback(lambda _: self._refusal.cancelled() or self._refusal.exception())  # nobody has to wait

    async def make(self) -> None:
        """Note whose the keys below the prefix are, or see that they are ours.

        Raises RegistryRefusedError: another cluster's, or a log's that is not ours; RegistryUnavailableError.
        """
        try:
            await self._make()
        except RegistryRefusedError as error:
            if not self._refusal.done():
                self._refusal.set_exception(error)
            raise

    async def _make(self) -> None:
        claim = self._claim
        await self._hold("cluster", claim.cluster_id, "cluster {owner!r}, not to {ours!r}", "{owner!r} is no more")
        for name, ours, other in (("log", claim.log_id, "another log"), ("tables", claim.tables_id, "other tables")):
            if ours:
                whose = f"a cluster of this name that has {other}, {{owner!r}} and not {{ours!r}}"
                await self._hold(name, ours, whose, "this is the same cluster, moved")
        if claim.log_epoch:
            if claim.tables_id:
                await self.note_epoch(claim.log_epoch)
            else:
                self._compare(await self._read_epoch())

    async def note_epoch(self, epoch: int) -> None:
        """Say that the tables belong to a log epoch. Raises RegistryRefusedError: they did to a newer one already."""
        key = f"{self._prefix}/{_EPOCH}"
        for _ in range(_TRIES):
            entry = await self._get(key)
            noted = _number(entry)
            if noted > epoch:
                raise RegistryRefusedError(
                    f"the cluster has gone on to log epoch {noted}, says {key} in Consul, and the tables belong to {epoch}: they"
                    " are older than that. Delete the key if they are what counts"
                )
            if noted == epoch or await self._client.kv.put(key, str(epoch), cas=0 if entry is None else entry["ModifyIndex"]):
                return
        raise RegistryUnavailableError(f"the key {key} in Consul changes all the time")

    async def wait_refused(self) -> None:
        """Wait until this process has no place here any more, and raise RegistryRefusedError.

        The cluster has another log by now, or Consul lost its data and another cluster was there before us.
        """
        await first_of(self._follow_epoch(), self._until_refused())

    async def _until_refused(self) -> None:
        await asyncio.shield(self._refusal)

    async def _follow_epoch(self) -> None:
        key = f"{self._prefix}/{_EPOCH}"

        async def query(index: int | None) -> tuple[str, Any]:
            answer: tuple[str, Any] = await self._client.kv.get(key, index=index, wait=f"{WAIT_SECONDS}s")
            return answer

        async with aclosing(follow(query, key, self._rng)) as answers:
            async for answer in answers:
                if (noted := _number(answer.value)) > self._claim.log_epoch:
                    self._compare(noted)

    def _compare(self, noted: int) -> None:
        ours = self._claim.log_epoch
        if noted > ours:
            raise RegistryRefusedError(
                f"the cluster has gone on to log epoch {noted}, this process was told {ours}: start it with"
                f" PARLEY_KAFKA_LOG_EPOCH={noted}"
            )
        if 0 < noted < ours:
            raise RegistryUnavailableError(f"the cluster has log epoch {noted}; no store has begun with {ours} yet")

    async def _read_epoch(self) -> int:
        return _number(await self._get(f"{self._prefix}/{_EPOCH}"))

    async def _hold(self, name: str, ours: str, whose: str, unless: str) -> None:
        key = f"{self._prefix}/{name}"
        entry = await self._get(key)
        if entry is None:
            await self._client.kv.put(key, ours, cas=0)  # another one may be faster
            entry = await self._get(key)
        if entry is None:
            raise RegistryUnavailableError(f"the key {key} was deleted in Consul just now")
        owner = (entry["Value"] or b"").decode(errors="replace")
        if owner != ours:
            raise RegistryRefusedError(
                f"the keys below {self._prefix}/ in this Consul belong to {whose.format(owner=owner, ours=ours)}: give each cluster"
                f" a PARLEY_CONSUL_PREFIX of its own, or delete the key {key} if {unless.format(owner=owner)}"
            )

    async def _get(self, key: str) -> Any:
        return (await self._client.kv.get(key))[1]


def _number(entry: Any) -> int:
    """Return the epoch that a key holds, 0 if it does not exist or holds none."""
    text = b"" if entry is None else entry["Value"] or b""
    return int(text) if text.isdigit() else 0
