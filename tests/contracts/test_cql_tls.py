"""The tables in a real Cassandra that encrypts and asks who comes."""

import asyncio
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from engine_fixtures import EnginesOfTheRun
from own_engine import open_own_engine
from prometheus_client import CollectorRegistry
from pydantic import SecretStr
from tls_files import make_tls_files

from chassis.timeline import Point, Row, TimelineSetupError, TimelineUnavailableError
from chassis.timeline_cql import open_cql_timeline
from chassis.timeline_cql_connect import open_cql_session
from chassis.timeline_cql_metrics import CqlMetrics
from chassis.timeline_cql_schema import TableSpec, apply_schema
from chassis.timeline_cql_settings import CqlSettings
from parley_engines.engine import HOST, Place

pytestmark = pytest.mark.engines("scylladb")
_FIRST_USER = "cassandra"  # and the password: Cassandra makes it, for whoever then makes others
_CONFIGURATION = """
client_encryption_options:
  enabled: true
  optional: false
  ssl_context_factory:
    class_name: org.apache.cassandra.security.PEMBasedSslContextFactory
  keystore: {keys}
  truststore: {trusted}
"""


@pytest.fixture(scope="module")
def tls_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tls")
    for name in ("own", "other"):
        make_tls_files(folder / name)
    (folder / "node.pem").write_text((folder / "own/key.pem").read_text() + (folder / "own/cert.pem").read_text())
    return folder


@pytest.fixture(scope="module")
def settings(engines: EnginesOfTheRun, tls_files: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[CqlSettings]:
    engines.require("scylladb")

    def edit(place: Place) -> None:
        file = place.folder / "cassandra.yaml"
        text = file.read_text().replace("AllowAllAuthenticator", "PasswordAuthenticator")
        file.write_text(text + _CONFIGURATION.format(keys=tls_files / "node.pem", trusted=tls_files / "own/cert.pem"))

    def probe(port: int) -> None:
        socket.create_connection((HOST, port), 3).close()  # it opens the port when it is ready to take clients

    with open_own_engine(
        "scylladb", tmp_path_factory.mktemp("cassandra"), edit=edit, probe=probe, options=["-Dcassandra.superuser_setup_delay_ms=0"]
    ) as own:
        yield CqlSettings(
            hosts=own.started.address,
            username=_FIRST_USER,
            password=SecretStr(_FIRST_USER),
            tls_ca_file=tls_files / "own/cert.pem",
            keyspace="behind_tls",
        )


async def refusal(expected: type[Exception], settings: CqlSettings, **changed: object) -> str:
    with pytest.raises(expected) as refused:
        async with asyncio.timeout(40), open_cql_session(settings.model_copy(update=changed), CqlMetrics(CollectorRegistry())):
            pass
    return str(refused.value)


async def test_over_tls_and_with_its_login_it_serves_and_nobody_else_is_let_in(settings: CqlSettings, tls_files: Path) -> None:
    async with open_cql_session(settings, CqlMetrics(CollectorRegistry())) as session:
        await apply_schema(session, settings.keyspace, "1", [[TableSpec("events")]])
    async with open_cql_timeline(settings, ["events"], schema_version=1, metrics=CollectorRegistry()) as timeline:
        row = Row("events", "p", b"k", b"v", 1)
        await timeline.write([row])
        assert await timeline.read_points([Point("events", "p", b"k")]) == {Point("events", "p", b"k"): b"v"}

    # At once, however long a start would wait for a database that is not there.
    assert "refuses the login" in (why := await refusal(TimelineSetupError, settings, password=SecretStr("guessed")))
    assert "guessed" not in why
    assert "refuses the login" in await refusal(TimelineSetupError, settings, username="")
    # As if nobody were there: in time, and with the reason of the TLS library.
    soon = settings.model_copy(update={"connect_seconds": 0.0})
    assert "certificate verify failed" in await refusal(TimelineUnavailableError, soon, tls_ca_file=tls_files / "other/cert.pem")
    assert "no database answers" in await refusal(TimelineUnavailableError, soon, tls_ca_file=None)
