"""How Kafka is reached, from the environment."""

import ssl
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, SecretStr, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from chassis.addresses import is_address
from chassis.certificates import TlsError
from chassis.eventlog_kafka_connection import KafkaConnection


class KafkaSettings(BaseSettings):
    """Where the log is, and which one: PARLEY_KAFKA_<NAME>."""

    model_config = SettingsConfigDict(env_prefix="PARLEY_KAFKA_", frozen=True)

    servers: str = Field("127.0.0.1:9092", description="Brokers to begin with, host:port,...; the others are found.")
    partitions: int = Field(8, ge=1, le=4096, description="Partitions of every topic; one number for all processes of a log epoch.")
    log_epoch: int = Field(1, ge=1, description="Which log: part of the topics' names; one number for all processes.")
    prefix: str = Field("", pattern=r"^[a-z0-9._-]{0,64}$", description="Before the topics' names, where clusters share a Kafka.")
    user: str = Field("", description="Empty: without a login.")
    password: SecretStr = Field(SecretStr(""), description="Its password.")
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = Field("SCRAM-SHA-512", description="How it logs in.")
    tls_ca_file: Path | None = Field(None, description="PEM; trust these for the brokers' certificates, and speak TLS.")

    @model_validator(mode="after")
    def _check(self) -> Self:
        wrong = [server for server in self.servers.split(",") if not is_address(server)]
        if wrong:
            raise ValueError(f"SERVERS: {', '.join(map(repr, wrong))} is not host:port")
        return self

    def connection(self) -> KafkaConnection:
        """Return what the adapter takes. Raises TlsError."""
        tls = None
        if self.tls_ca_file is not None:
            try:
                tls = ssl.create_default_context(cafile=self.tls_ca_file)
            except OSError as error:
                raise TlsError(f"trusted certificates {self.tls_ca_file} can't be used: {error}") from error
        return KafkaConnection(self.servers, self.user, self.password.get_secret_value(), self.sasl_mechanism, tls)
