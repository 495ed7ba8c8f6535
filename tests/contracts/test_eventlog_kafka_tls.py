"""The log on a Kafka that encrypts and asks who comes, by the settings that an operator gives."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from engine_fixtures import EnginesOfTheRun
from kafka_scene import TOPIC, TOPICS, append, open_log, poll, values
from own_engine import OwnEngine, open_own_engine
from pydantic import SecretStr
from tls_files import make_tls_files

from chassis.certificates import TlsError
from chassis.eventlog import LogSetupError, LogUnavailableError
from chassis.eventlog_kafka_settings import KafkaSettings
from chassis.eventlog_kafka_topics import TopicSettings, apply_topics
from parley_engines.engine import HOST, Place
from parley_engines.kafka import LOGIN_USER

pytestmark = pytest.mark.engines("kafka")

_LISTENERS = """
listeners=PLAINTEXT://{host}:{client},TLS://{host}:{tls},LOGIN://{host}:{login},CONTROLLER://{host}:{controller}
advertised.listeners=PLAINTEXT://{host}:{client},TLS://{host}:{tls},LOGIN://{host}:{login}
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,TLS:SSL,LOGIN:SASL_SSL,CONTROLLER:PLAINTEXT
ssl.keystore.type=PEM
ssl.keystore.location={keys}
"""


@pytest.fixture(scope="module")
def tls_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tls")
    for name in ("own", "other"):
        make_tls_files(folder / name)
    (folder / "kafka.pem").write_text((folder / "own/key.pem").read_text() + (folder / "own/cert.pem").read_text())
    return folder


@pytest.fixture(scope="module")
def kafka(engines: EnginesOfTheRun, tls_files: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OwnEngine]:
    engines.require("kafka")

    def edit(place: Place) -> None:
        with (place.folder / "server.properties").open("a") as file:
            file.write(_LISTENERS.format(host=HOST, keys=tls_files / "kafka.pem", **place.ports))

    with open_own_engine("kafka", tmp_path_factory.mktemp("kafka"), edit=edit, ports=("tls",)) as own:
        yield own


def settings(kafka: OwnEngine, listener: str, ca: Path, **more: object) -> KafkaSettings:
    return KafkaSettings(servers=f"{HOST}:{kafka.started.ports[listener]}", tls_ca_file=ca, **more)


async def refusal(expected: type[Exception], settings: KafkaSettings, seconds: float = 600) -> str:
    """Return why it does not open; what no time mends is told at once, however long it would wait for a broker."""
    with pytest.raises(expected) as refused:
        async with asyncio.timeout(40), open_log(settings.connection(), seconds=seconds):
            pass
    return str(refused.value)


async def test_over_tls_it_trusts_whom_it_should_and_no_other(kafka: OwnEngine, tls_files: Path) -> None:
    own = settings(kafka, "tls", tls_files / "own/cert.pem")
    await apply_topics(own.connection(), TOPICS, epoch=1, settings=TopicSettings(), prefix="tls.")
    async with open_log(own.connection(), prefix="tls.") as log:
        await append(log, 0, "a")
        async with log.open_consumer(TOPIC, "g") as consumer:
            assert values(await poll(consumer)) == ["a"]
    other = settings(kafka, "tls", tls_files / "other/cert.pem")
    assert "certificate that PARLEY_KAFKA_TLS_CA_FILE does not vouch for" in await refusal(LogSetupError, other)
    with pytest.raises(LogSetupError, match="does not vouch for"):
        await apply_topics(other.connection(), TOPICS, epoch=1, settings=TopicSettings())
    assert "127.0.0.1" in await refusal(LogUnavailableError, KafkaSettings(servers=own.servers), seconds=0)
    with pytest.raises(TlsError, match="nosuch"):
        settings(kafka, "tls", tls_files / "nosuch").connection()


async def test_over_tls_it_logs_in_and_a_wrong_password_is_refused(kafka: OwnEngine, tls_files: Path) -> None:
    ca = tls_files / "own/cert.pem"
    for mechanism in ("SCRAM-SHA-512", "PLAIN"):
        right = settings(kafka, "login", ca, user=LOGIN_USER, password=SecretStr(LOGIN_USER), sasl_mechanism=mechanism)
        await apply_topics(right.connection(), TOPICS, epoch=1, settings=TopicSettings(), prefix=f"{mechanism.lower()}.")
        async with open_log(right.connection(), prefix=f"{mechanism.lower()}.") as log:
            await append(log, 0, "a")
        wrong = right.model_copy(update={"password": SecretStr("guessed")})
        why = await refusal(LogSetupError, wrong)
        assert f"refuses the login of '{LOGIN_USER}' by {mechanism}" in why
        assert "guessed" not in why
    nobody = settings(kafka, "login", ca)
    assert "127.0.0.1" in await refusal(LogUnavailableError, nobody, seconds=0)
    plain = right.model_copy(update={"tls_ca_file": None})
    assert "127.0.0.1" in await refusal(LogUnavailableError, plain, seconds=0)
