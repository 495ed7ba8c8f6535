"""How to reach a Kafka cluster, and what its client's errors mean here."""

import asyncio
import logging
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

from aiokafka.conn import collect_hosts, create_conn
from aiokafka.errors import KafkaError, SaslAuthenticationFailed, UnsupportedSaslMechanismError

from chassis.eventlog import LogSetupError, LogUnavailableError

# A broker that is merely busy answers sooner; one that hangs (stopped, cut off) shows after this long.
REQUEST_SECONDS: Final = 5.0
# Everything that a client's call may raise because of the cluster or the way to it. asyncio's timeout is the built-in one.
KAFKA_ERRORS: Final = (KafkaError, OSError, TimeoutError)

# What it logs as errors are single tries: they come to us as exceptions, or as silence, which is watched, and are told once.
logging.getLogger("aiokafka").setLevel(logging.CRITICAL)


@dataclass(frozen=True)
class KafkaConnection:
    """Where the cluster is and who we are to it."""

    bootstrap_servers: str  # host:port, separated by commas
    user: str = ""  # with SASL
    password: str = ""
    sasl_mechanism: str = "SCRAM-SHA-512"  # PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512; only with a user
    tls: ssl.SSLContext | None = None

    def client_options(self) -> dict[str, Any]:
        """Return what every client of aiokafka takes."""
        options: dict[str, Any] = {
            "bootstrap_servers": self.bootstrap_servers,
            "request_timeout_ms": int(REQUEST_SECONDS * 1_000),
            "security_protocol": ("SASL_" if self.user else "") + ("PLAINTEXT" if self.tls is None else "SSL"),
            "ssl_context": self.tls,
        }
        if self.user:
            options |= {
                "sasl_mechanism": self.sasl_mechanism,
                "sasl_plain_username": self.user,
                "sasl_plain_password": self.password,
            }
        return options


@asynccontextmanager
async def kafka_errors(what: str) -> AsyncIterator[None]:
    """Turn the cluster's errors into LogUnavailableError that says what was tried."""
    try:
        yield
    except KAFKA_ERRORS as error:
        raise LogUnavailableError(f"{what}: {describe(error)}") from error


async def refuse_wrong_settings(connection: KafkaConnection) -> None:
    """Raise LogSetupError if a broker refuses the login, or is not to be trusted. Its clients say that they found no broker."""
    if not connection.user and connection.tls is None:
        return
    options = connection.client_options()
    for host, port, _ in collect_hosts(options.pop("bootstrap_servers")):
        try:
            (await create_conn(host, port, **options)).close()
        except (SaslAuthenticationFailed, UnsupportedSaslMechanismError) as error:
            raise LogSetupError(
                f"Kafka at {host}:{port} refuses the login of {connection.user!r} by {connection.sasl_mechanism}: {describe(error)}"
            ) from error
        except ssl.SSLCertVerificationError as error:
            raise LogSetupError(
                f"Kafka at {host}:{port} shows a certificate that PARLEY_KAFKA_TLS_CA_FILE does not vouch for: {describe(error)}"
            ) from error
        except KAFKA_ERRORS:
            continue


def describe(error: BaseException) -> str:
    """Return an error's text, or its name if it has none."""
    if isinstance(error, asyncio.TimeoutError):
        return str(error) or "no answer in time"
    return str(error) or type(error).__name__
