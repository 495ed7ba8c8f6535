"""The settings that every process of Parley has, whatever it serves."""

from typing import Literal, Self

from pydantic import Field, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from chassis.addresses import is_address, is_loopback, is_unspecified


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
    allow_plaintext_beyond_loopback: bool = Field(False, description="For a network that does the encryption itself.")

    @model_validator(mode="after")
    def _check(self) -> Self:
        problems = [
            f"{name} {address!r} is not host:port"
            for name, address in (("LISTEN", self.listen), ("ADVERTISE_ADDRESS", self.advertise_address))
            if address and not is_address(address)
        ]
        if not problems:
            if is_unspecified(self.listen) and not self.advertise_address:
                problems.append(f"LISTEN {self.listen} is every address: ADVERTISE_ADDRESS must say which one others connect to")
            if not is_loopback(self.listen) and not self.allow_plaintext_beyond_loopback:
                problems.append(f"LISTEN {self.listen} is beyond loopback and needs ALLOW_PLAINTEXT_BEYOND_LOOPBACK=true")
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def advertised(self, bound: str) -> str:
        """Return what to tell others, now that the server is bound; port 0 there means the port that was bound."""
        if not self.advertise_address:
            return bound
        host, _, port = self.advertise_address.rpartition(":")
        return f"{host}:{bound.rpartition(':')[2]}" if port == "0" else self.advertise_address
