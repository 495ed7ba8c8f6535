"""Where the CQL database is, and how a process speaks to it."""

import ssl
from pathlib import Path
from typing import Annotated, Self

from pydantic import AfterValidator, Field, SecretStr, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

_DEFAULT_PORT = 9042


def parse_hosts(text: str) -> list[tuple[str, int]]:
    """Return the nodes of "host[:port],host[:port]". Raises ValueError."""
    hosts = []
    for part in text.split(","):
        host, colon, port = part.strip().rpartition(":")
        if not colon:
            host, port = part.strip(), str(_DEFAULT_PORT)
        if not host or not port.isdecimal() or not 0 < int(port) < 65536:
            raise ValueError(f"{part!r} is not host or host:port")
        hosts.append((host.strip("[]"), int(port)))
    if len({port for _, port in hosts}) > 1:
        raise ValueError("all nodes listen on one port")  # the driver finds the others by address and takes the port as given
    return hosts


def _check_hosts(text: str) -> str:
    parse_hosts(text)
    return text


def _check_keyspace(name: str) -> str:
    if not name.isascii() or not name.isidentifier() or name != name.lower() or len(name) > 48:
        raise ValueError(f"{name!r} is no keyspace: up to 48 small letters, digits and _")
    return name


class CqlSettings(BaseSettings):
    """Settings of the tables' database, ScyllaDB or Cassandra."""

    model_config = SettingsConfigDict(env_prefix="PARLEY_CQL_", frozen=True)

    hosts: Annotated[str, AfterValidator(_check_hosts)] = Field(
        "127.0.0.1:9042", description="Nodes to begin with, host:port,...; the others are found."
    )
    keyspace: Annotated[str, AfterValidator(_check_keyspace)] = Field("parley", description="Where the tables lie.")
    datacenter: str = Field("", description="Whose nodes are used; empty: that of the first node reached.")
    username: str = Field("", description="Empty: without a login.")
    password: SecretStr = Field(SecretStr(""), description="Its password.")
    tls_ca_file: Path | None = Field(None, description="PEM; trust these for the nodes' certificates, and speak TLS.")
    tls_certificate_file: Path | None = Field(None, description="PEM: what this process shows to the nodes; with tls_key_file.")
    tls_key_file: Path | None = Field(None, description="PEM.")
    request_seconds: float = Field(5.0, gt=0, description="Time for a read or write, its retry included.")
    connect_seconds: float = Field(60.0, ge=0, description="How long a start waits for the database.")
    requests_in_flight: int = Field(128, ge=1, le=2048, description="Statements under way at once; more wait.")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.tls_certificate_file is None) != (self.tls_key_file is None):
            raise ValueError("TLS_CERTIFICATE_FILE and TLS_KEY_FILE go together")
        if self.tls_certificate_file is not None and self.tls_ca_file is None:
            raise ValueError("TLS_CERTIFICATE_FILE needs TLS_CA_FILE: without it nothing is encrypted")
        return self

    def nodes(self) -> list[tuple[str, int]]:
        """Return the nodes to begin with."""
        return parse_hosts(self.hosts)

    def tls(self) -> ssl.SSLContext | None:
        """Return what connections are encrypted with, if they are. Raises OSError."""
        if self.tls_ca_file is None:
            return None
        context = ssl.create_default_context(cafile=self.tls_ca_file)
        if self.tls_certificate_file is not None:
            context.load_cert_chain(self.tls_certificate_file, self.tls_key_file)
        return context
