"""The settings that every process of Parley has, whatever it serves."""

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from chassis.addresses import is_address, is_loopback, is_unspecified
from chassis.certificates import Certificates, TlsFiles


class ProcessSettings(BaseSettings):
    """What concerns the process and no single service: PARLEY_<NAME>."""

    model_config = SettingsConfigDict(env_prefix="PARLEY_", frozen=True)

    metrics_listen: str = Field("", description="Where Prometheus finds /metrics, and others /healthz and /livez; empty: nowhere.")
    log_level: Literal["debug", "info", "warning", "error"] = Field("warning", description="What is logged, to stderr.")
    log_json: bool = Field(False, description="Log JSON lines, for machines.")

    @field_validator("metrics_listen")
    @classmethod
    def _check_address(cls, address: str) -> str:
        if address and not is_address(address):
            raise ValueError(f"{address!r} is not host:port")
        return address


class InternalSettings(BaseSettings):
    """Where other services reach this one: PARLEY_INTERNAL_<NAME>."""

    model_config = SettingsConfigDict(env_prefix="PARLEY_INTERNAL_", frozen=True)

    listen: str = Field("127.0.0.1:0", description="Where other services connect; port 0 picks a free one.")
    advertise_address: str = Field("", description="The address that others are told; empty: the one that is listened on.")
    tls_ca_file: Path | None = Field(None, description="PEM: whose certificates services show each other; with the next two.")
    tls_certificate_file: Path | None = Field(None, description="PEM: this service's certificate; read again when it changes.")
    tls_key_file: Path | None = Field(None, description="PEM: its key.")
    allow_plaintext_beyond_loopback: bool = Field(False, description="For a network that does the encryption itself.")

    @model_validator(mode="after")
    def _check(self) -> Self:
        files = (self.tls_ca_file, self.tls_certificate_file, self.tls_key_file)
        problems = ["TLS_CA_FILE, TLS_CERTIFICATE_FILE and TLS_KEY_FILE belong together"] if any(files) and not all(files) else []
        problems += [
            f"{name} {address!r} is not host:port"
            for name, address in (("LISTEN", self.listen), ("ADVERTISE_ADDRESS", self.advertise_address))
            if address and not is_address(address)
        ]
        if not problems:
            if is_unspecified(self.listen) and not self.advertise_address:
                problems.append(f"LISTEN {self.listen} is every address: ADVERTISE_ADDRESS must say which one others connect to")
            if not is_loopback(self.listen) and not any(files) and not self.allow_plaintext_beyond_loopback:
                problems.append(
                    f"LISTEN {self.listen} is beyond loopback and needs TLS_CA_FILE, TLS_CERTIFICATE_FILE and TLS_KEY_FILE (`parley"
                    " certs` makes some; or ALLOW_PLAINTEXT_BEYOND_LOOPBACK=true)"
                )
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def certificates(self, role: str) -> Certificates | None:
        """Read the TLS files, if there are any. Raises TlsError: not usable, or not for this role."""
        if self.tls_ca_file is None or self.tls_certificate_file is None or self.tls_key_file is None:
            return None
        certificates = Certificates(TlsFiles(self.tls_certificate_file, self.tls_key_file, self.tls_ca_file))
        certificates.require_role(role)
        return certificates

    def advertised(self, bound: str) -> str:
        """Return what to tell others, now that the server is bound; port 0 there means the port that was bound."""
        if not self.advertise_address:
            return bound
        host, _, port = self.advertise_address.rpartition(":")
        return f"{host}:{bound.rpartition(':')[2]}" if port == "0" else self.advertise_address
