"""The registry when Consul is away, slow, has forgotten everything, is somebody else's, or asks who we are."""

import asyncio
import random
import signal
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager, suppress
from pathlib import Path

import pytest
from engine_fixtures import EnginesOfTheRun
from own_consul import OwnConsul, open_own_consul
from tls_files import make_tls_files

from chassis import registry_consul_session
from chassis.certificates import TlsError
from chassis.registry import Instance, Registry, RegistryRefusedError, RegistrySession, RegistryUnavailableError
from chassis.registry_consul import ConsulRegistry, open_consul_registry
from chassis.registry_consul_claim import Claim
from chassis.registry_consul_http import ConsulSettings
from parley_engines.ports import free_ports

pytestmark = pytest.mark.engines("consul")
G1 = Instance("gateway", "g1", "127.0.0.1:1001", "chat.test:443")
DEADLINE_SECONDS = 30.0


def registry_at(
    address: str, cluster: str = "one", claim: Claim | None = None, **settings: object
) -> AbstractAsyncContextManager[ConsulRegistry]:
    return open_consul_registry(
        ConsulSettings(address=address, **settings), claim=claim or Claim(cluster), version="0", rng=random.Random(1)
    )  # fmt: skip


@pytest.fixture
def consul(tmp_path: Path, engines: EnginesOfTheRun) -> Iterator[OwnConsul]:
    engines.require("consul")
    with open_own_consul(tmp_path) as consul:
        yield consul


class Seen:
    """What a registry's two watches have shown."""

    def __init__(self) -> None:
        self.instances: list[list[Instance]] = []
        self.holders: list[dict[str, str]] = []
        self._changed = asyncio.Condition()

    async def until(self, shown: Callable[["Seen"], bool]) -> None:
        async with asyncio.timeout(DEADLINE_SECONDS), self._changed:
            await self._changed.wait_for(lambda: shown(self))

    async def follow_instances(self, registry: Registry) -> None:
        async with aclosing(registry.watch_instances("gateway")) as watch:
            async for instances in watch:
                await self._note(self.instances, list(instances))

    async def follow_holders(self, registry: Registry) -> None:
        async with aclosing(registry.watch_holders("slots/")) as watch:
            async for holders in watch:
                await self._note(self.holders, {key: holder.epoch.session_id for key, holder in holders.items()})

    async def _note(self, of: list[object], shown: object) -> None:
        async with self._changed:
            of.append(shown)
            self._changed.notify_all()


@asynccontextmanager
async def seeing(registry: Registry) -> AsyncIterator[Seen]:
    seen = Seen()
    following = [asyncio.create_task(seen.follow_instances(registry)), asyncio.create_task(seen.follow_holders(registry))]
    try:
        yield seen
    finally:
        for task in following:
            task.cancel()
        await asyncio.wait(following)


async def acquire(session: RegistrySession, key: str) -> bool:
    """Acquire, over a moment in which the lock is closed or Consul elects."""
    async with asyncio.timeout(DEADLINE_SECONDS):
        while True:
            with suppress(RegistryUnavailableError):
                if await session.acquire([key]):
                    return True
            await asyncio.sleep(0.1)


async def open_again(registry: Registry) -> AbstractAsyncContextManager[RegistrySession]:
    async with asyncio.timeout(DEADLINE_SECONDS):
        while True:
            opening = registry.open_session(G1)
            try:
                session = await opening.__aenter__()
            except RegistryUnavailableError:
                await asyncio.sleep(0.1)
                continue
            return Opened(opening, session)


class Opened:
    """A session that is entered already."""

    def __init__(self, opening: AbstractAsyncContextManager[RegistrySession], session: RegistrySession) -> None:
        self._opening = opening
        self._session = session

    async def __aenter__(self) -> RegistrySession:
        return self._session

    async def __aexit__(self, *error: object) -> None:
        await self._opening.__aexit__(None, None, None)


# Consul is away


async def test_without_a_consul_there_is_a_clear_error_soon() -> None:
    async with asyncio.timeout(5):
        with pytest.raises(RegistryUnavailableError, match=r"http://127\.0\.0\.1:1 can't be reached"):
            await registry_at("127.0.0.1:1").__aenter__()


async def test_a_consul_that_hangs_is_unavailable_within_a_deadline_and_ends_nothing(consul: OwnConsul) -> None:
    async with registry_at(consul.address) as registry, registry.open_session(G1) as session, seeing(registry) as seen:
        assert await session.acquire(["slots/1"])
        await seen.until(lambda seen: seen.holders[-1:] == [{"slots/1": session.session_id}])
        consul.signal(signal.SIGSTOP)
        lost = asyncio.create_task(session.wait_lost())
        try:
            async with asyncio.timeout(5):
                with pytest.raises(RegistryUnavailableError, match="in time"):
                    await session.acquire(["slots/2"])
        finally:
            consul.signal(signal.SIGCONT)
        assert await acquire(session, "slots/2")
        await seen.until(lambda seen: len(seen.holders[-1]) == 2)
        assert not lost.done()
        assert all(shown == [G1] for shown in seen.instances[seen.instances.index([G1]) :])
        lost.cancel()
        await asyncio.wait([lost])


@pytest.mark.parametrize("data", ["kept", "lost"])
async def test_a_consul_that_comes_back_is_used_again_and_nothing_is_said_to_be_gone(consul: OwnConsul, data: str) -> None:
    async with registry_at(consul.address) as registry, seeing(registry) as seen:
        async with registry.open_session(G1) as session:
            assert await session.acquire(["slots/1"])
            await seen.until(lambda seen: seen.holders[-1:] == [{"slots/1": session.session_id}] and seen.instances[-1:] == [[G1]])
            shown = len(seen.holders), len(seen.instances)
            lost = asyncio.create_task(session.wait_lost())
            consul.stop()
            with pytest.raises(RegistryUnavailableError, match="can't be reached"):
                await session.acquire(["slots/1"])
            await asyncio.sleep(0.5)  # time in which a watch could show what is not so
            assert shown == (len(seen.holders), len(seen.instances))
            assert not lost.done()
            if data == "lost":
                consul.lose_data()
            consul.start()
            if data == "lost":
                async with asyncio.timeout(DEADLINE_SECONDS):
                    await lost
            elif not lost.done():
                assert await acquire(session, "slots/1") or lost.done()
            lost.cancel()
            await asyncio.wait([lost])
        async with await open_again(registry) as again:
            assert await acquire(again, "slots/1")
            await seen.until(lambda seen: seen.holders[-1:] == [{"slots/1": again.session_id}])
            await seen.until(lambda seen: seen.instances[-1:] == [[G1]])
        assert all(instances == [G1] for instances in seen.instances[shown[1] :])


# An instance stops


async def test_an_instance_that_stops_is_gone_after_some_seconds(engines: EnginesOfTheRun, monkeypatch: pytest.MonkeyPatch) -> None:
    async with registry_at(engines.address("consul"), prefix=f"test-{uuid.uuid4().hex}") as registry, seeing(registry) as seen:
        monkeypatch.setattr(registry_consul_session, "_RENEW_SECONDS", 3600.0)  # as if its loop stood still
        async with registry.open_session(G1) as session:
            began = time.monotonic()
            await session.acquire(["slots/1"])
            await seen.until(lambda seen: seen.instances[-1:] == [[G1]] and len(seen.holders[-1]) == 1)
            await seen.until(lambda seen: seen.instances[-1:] == [[]] and seen.holders[-1] == {})
            async with asyncio.timeout(DEADLINE_SECONDS):
                await session.wait_lost()
            assert time.monotonic() - began > registry_consul_session.CHECK_SECONDS - 1  # it was not gone for another reason


# Whose Consul it is


async def test_two_clusters_under_one_prefix_are_told_apart(engines: EnginesOfTheRun) -> None:
    prefix = f"test-{uuid.uuid4().hex}"
    async with registry_at(engines.address("consul"), "one", prefix=prefix):
        pass
    with pytest.raises(RegistryRefusedError, match=rf"{prefix}/ in this Consul belong to cluster 'one', not to 'two'.*PREFIX"):
        await registry_at(engines.address("consul"), "two", prefix=prefix).__aenter__()
    async with registry_at(engines.address("consul"), "one", prefix=prefix):
        pass


async def test_two_clusters_that_kept_the_default_name_are_told_apart_by_their_logs_and_tables(engines: EnginesOfTheRun) -> None:
    prefix = f"test-{uuid.uuid4().hex}"

    async def opens(log_id: str, tables_id: str = "") -> None:
        claim = Claim("parley", log_id, 1, tables_id)
        async with registry_at(engines.address("consul"), claim=claim, prefix=prefix):
            pass

    await opens("kafka-1/")
    await opens("kafka-1/", "tables-1")
    with pytest.raises(RegistryRefusedError, match=r"has another log, 'kafka-1/' and not 'kafka-2/'.*PREFIX.*delete the key"):
        await opens("kafka-2/")
    with pytest.raises(RegistryRefusedError, match=r"'kafka-1/' and not 'kafka-1/b\.'"):  # one Kafka, other topics
        await opens("kafka-1/b.", "tables-2")
    with pytest.raises(RegistryRefusedError, match=r"has other tables, 'tables-1' and not 'tables-2'"):
        await opens("kafka-1/", "tables-2")
    await opens("kafka-1/", "tables-1")


async def test_whoever_has_no_tables_learns_from_those_who_have_which_log_epoch_it_is(engines: EnginesOfTheRun) -> None:
    prefix = f"test-{uuid.uuid4().hex}"

    def at(log_epoch: int, tables_id: str = "") -> AbstractAsyncContextManager[ConsulRegistry]:
        claim = Claim("parley", "log", log_epoch, tables_id)
        return registry_at(engines.address("consul"), claim=claim, prefix=prefix)

    async with at(1) as gateway:  # nobody knows yet: it has to begin somewhere
        over = asyncio.create_task(gateway.claims.wait_refused())
        async with at(1, "tables"):
            pass
        with pytest.raises(RegistryUnavailableError, match="has log epoch 1; no store has begun with 2 yet"):
            await at(2).__aenter__()
        async with gateway.open_session(G1):
            assert not over.done()
            async with at(2, "tables") as store:
                await store.claims.note_epoch(2)
            with pytest.raises(RegistryRefusedError, match=r"on to log epoch 2, this process was told 1: .*LOG_EPOCH=2"):
                async with asyncio.timeout(DEADLINE_SECONDS):
                    await over
        with pytest.raises(RegistryRefusedError, match="on to log epoch 2"):
            await gateway.open_session(G1).__aenter__()
    async with at(2):
        pass
    with pytest.raises(RegistryRefusedError, match="on to log epoch 2, this process was told 1"):
        await at(1).__aenter__()
    with pytest.raises(RegistryRefusedError, match="the tables belong to 1: they are older than that"):  # and it is not lowered
        await at(1, "tables").__aenter__()


async def test_a_prefix_that_another_cluster_took_while_consul_had_no_data_is_not_used_further(consul: OwnConsul) -> None:
    async with registry_at(consul.address) as registry:
        over = asyncio.create_task(registry.claims.wait_refused())
        consul.stop()
        consul.lose_data()
        consul.start()
        async with asyncio.timeout(DEADLINE_SECONDS):
            while True:
                with suppress(RegistryUnavailableError):
                    async with registry_at(consul.address, "two"):
                        break
        with pytest.raises(RegistryRefusedError, match="belong to cluster 'two', not to 'one'"):
            await open_again(registry)
        with pytest.raises(RegistryRefusedError, match="belong to cluster 'two', not to 'one'"):
            await over


ROOT_TOKEN = str(uuid.UUID(int=1))
RULES = """
key_prefix "parley/" { policy = "write" }
service_prefix "parley-" { policy = "write" }
session_prefix "" { policy = "write" }
node_prefix "" { policy = "read" }
"""


async def test_a_token_that_may_not_is_refused_clearly_and_one_that_may_do_what_the_document_says_suffices(
    tmp_path: Path, engines: EnginesOfTheRun
) -> None:
    engines.address("consul")
    rules = (Path(__file__).parents[2] / "docs" / "cluster.md").read_text()
    assert RULES.strip() in rules
    tokens = {"initial_management": ROOT_TOKEN, "agent": ROOT_TOKEN}
    token_file = tmp_path / "token"
    with open_own_consul(tmp_path / "consul", {"acl": {"enabled": True, "default_policy": "deny", "tokens": tokens}}) as consul:
        with pytest.raises(RegistryRefusedError, match=r"PARLEY_CONSUL_TOKEN_FILE.*cluster\.md"):
            await registry_at(consul.address).__aenter__()
        token_file.write_text(str(uuid.uuid4()))
        with pytest.raises(RegistryRefusedError, match=f"{token_file}.*cluster"):
            await registry_at(consul.address, token_file=token_file).__aenter__()
        with pytest.raises(RegistryRefusedError, match="nosuch"):
            await registry_at(consul.address, token_file=tmp_path / "nosuch").__aenter__()
        consul.put("/v1/acl/policy", {"Name": "parley", "Rules": RULES}, ROOT_TOKEN)
        token = consul.put("/v1/acl/token", {"Policies": [{"Name": "parley"}]}, ROOT_TOKEN)
        token_file.write_text(token["SecretID"] + "\n")
        async with registry_at(consul.address, token_file=token_file) as registry, seeing(registry) as seen:
            async with registry.open_session(G1) as session:
                assert await session.acquire(["slots/1"])
                await seen.until(lambda seen: seen.holders[-1:] == [{"slots/1": session.session_id}])
                await seen.until(lambda seen: seen.instances[-1:] == [[G1]])
            await seen.until(lambda seen: seen.instances[-1:] == [[]])


# Over TLS


async def test_consul_over_tls_serves_those_who_trust_it_and_whom_it_trusts(tmp_path: Path, engines: EnginesOfTheRun) -> None:
    engines.address("consul")
    make_tls_files(tmp_path / "tls")
    make_tls_files(tmp_path / "other")
    certificate, key = tmp_path / "tls" / "cert.pem", tmp_path / "tls" / "key.pem"
    (port,) = free_ports("127.0.0.1", ["https"], random.Random()).values()
    files = {"ca_file": str(certificate), "cert_file": str(certificate), "key_file": str(key), "verify_incoming_https": True}
    both = {"tls_certificate_file": certificate, "tls_key_file": key}
    with open_own_consul(tmp_path / "consul", files, {"https": port}):
        address = f"127.0.0.1:{port}"
        async with registry_at(address, tls_ca_file=certificate, **both) as registry, registry.open_session(G1) as session:
            assert await session.acquire(["slots/1"])
        for settings in ({}, {"tls_ca_file": certificate}, {"tls_ca_file": tmp_path / "other" / "cert.pem", **both}):
            with pytest.raises(RegistryUnavailableError, match=address):
                await registry_at(address, **settings).__aenter__()
    with pytest.raises(TlsError, match=r"nosuch\.pem"):
        await registry_at(address, tls_ca_file=tmp_path / "nosuch.pem").__aenter__()
