"""A gateway's settings, from the environment: PARLEY_GATEWAY_<NAME>."""

from pathlib import Path
from typing import Self

from pydantic import Field, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from chassis.addresses import is_address, is_loopback
from chassis.certificates import TlsFiles
from chassis.config import ConfigError
from parley_protocol.limits import DEFAULT_MEMBER_CAP, RULES, RULES_VERSION
from parley_protocol.slots import SLOT_COUNT

_FRAME_OVERHEAD_BYTES = 1024  # ids, numbers and tags around the largest action


class GatewaySettings(BaseSettings):
    """What an operator may choose. Checked as a whole when made."""

    model_config = SettingsConfigDict(env_prefix="PARLEY_GATEWAY_", frozen=True, allow_inf_nan=False)

    listen: str = Field("127.0.0.1:7080", description="Where devices connect; port 0 picks a free one.")
    advertise_address: str = Field(
        "", description="host:port where devices find this very gateway; empty: where it listens, which is enough on loopback only."
    )
    instance_id: str = Field("", description="This gateway's name in records and in the registry; empty: a random one.")
    tls_certificate_file: Path | None = Field(None, description="PEM; with tls_key_file.")
    tls_key_file: Path | None = Field(None, description="PEM.")
    allow_plaintext_beyond_loopback: bool = Field(False, description="For a proxy that ends TLS in front of the gateway.")
    token_keys_file: Path | None = Field(
        None, description="A public key (PEM) or a JSON Web Key Set, read again when it changes; none: the development key."
    )
    token_audience: str = Field("", description="What `aud` must contain; empty: not looked at.")
    token_issuer: str = Field("", description="What `iss` must be; empty: not looked at.")
    allow_development_key_beyond_loopback: bool = Field(False, description="Whoever reads the data folder can be any user.")

    heartbeat_seconds: float = Field(25.0, gt=0, description="Devices say something that often; twice as long silent: gone.")
    hello_seconds: float = Field(10.0, gt=0, description="Time for a stream's Hello.")
    write_seconds: float = Field(10.0, gt=0, description="Time that a device may take for one frame.")
    submit_seconds: float = Field(10.0, gt=0, description="Time that a Submit waits for its outcome.")
    read_seconds: float = Field(5.0, gt=0, description="Time that a read from the store may take.")
    drain_seconds: float = Field(3.0, gt=0, description="Time for goodbyes and for what is not in the log yet, each.")

    commands_per_second: int = Field(200, ge=1, description="A device's steady rate.")
    commands_burst: int = Field(400, ge=1, description="What a device may send at once; at least commands_per_frame.")
    commands_per_frame: int = Field(256, ge=1, description="Commands in one frame at most.")
    frame_bytes: int = Field(1024 * 1024, description="An encoded frame at most; a larger one ends the stream.")
    group_members: int = Field(
        DEFAULT_MEMBER_CAP, ge=2, le=RULES[RULES_VERSION].users_per_action, description="Members of a group."
    )

    slot_count: int = Field(
        SLOT_COUNT, ge=1, le=65_536, description="Slots of users: one number for all gateways and routers, for good."
    )
    slots_per_second: int = Field(128, ge=1, description="Slots that this gateway takes or lets go a second, with their devices.")
    slot_settle_seconds: float = Field(
        10.0, ge=0, description="Time before a gateway that is new to the registry takes what may be another one's."
    )
    offline_grace_seconds: float = Field(
        10.0, ge=0, description="Time that devices of a new slot have to come, before push is asked."
    )
    digest_check_seconds: float = Field(
        900.0, gt=0, description="How often a device is asked whether it holds what it should, a quarter more or less."
    )
    handover_seconds: float = Field(20.0, ge=0, description="Time that a gateway which stops has to hand its slots to others.")

    outbox_fields: int = Field(4096, ge=1, description="Events and the like that may wait for one device.")
    outbox_bytes: int = Field(4 * 1024 * 1024, ge=1, description="Bytes that may wait for one device: a burst of another one.")
    max_streams: int = Field(60_000, ge=1, description="Devices; ~50 kB each.")
    max_streams_per_user: int = Field(32, ge=1, description="Devices of one user.")
    streams_per_second: int = Field(500, ge=1, description="New devices; a storm beyond it is told to come later.")
    streams_burst: int = Field(1000, ge=1, description="New devices at once.")
    max_waiting_submits: int = Field(10_000, ge=1, description="Submits that wait for their outcome.")

    @model_validator(mode="after")
    def _check(self) -> Self:
        problems = []
        if (self.tls_certificate_file is None) != (self.tls_key_file is None):
            problems.append("TLS_CERTIFICATE_FILE and TLS_KEY_FILE belong together")
        if not is_address(self.listen):
            problems.append(f"LISTEN {self.listen} is not host:port")
        elif not is_loopback(self.listen):
            if self.tls_certificate_file is None and not self.allow_plaintext_beyond_loopback:
                problems.append(
                    f"LISTEN {self.listen} is beyond loopback and needs TLS_CERTIFICATE_FILE and TLS_KEY_FILE"
                    " (or ALLOW_PLAINTEXT_BEYOND_LOOPBACK=true)"
                )
            if self.token_keys_file is None and not self.allow_development_key_beyond_loopback:
                problems.append(
                    f"LISTEN {self.listen} is beyond loopback and needs TOKEN_KEYS_FILE"
                    " (or ALLOW_DEVELOPMENT_KEY_BEYOND_LOOPBACK=true)"
                )
        if self.advertise_address and not is_address(self.advertise_address):
            problems.append(f"ADVERTISE_ADDRESS {self.advertise_address} is not host:port")
        if self.commands_burst < self.commands_per_frame:
            problems.append("COMMANDS_BURST must not be smaller than COMMANDS_PER_FRAME")
        least = RULES[RULES_VERSION].command_bytes + _FRAME_OVERHEAD_BYTES
        if self.frame_bytes < least:
            problems.append(f"FRAME_BYTES must be at least {least}: the largest command must fit")
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def tls(self) -> TlsFiles | None:
        """Return what devices are shown, if TLS is spoken here."""
        if self.tls_certificate_file is None or self.tls_key_file is None:
            return None
        return TlsFiles(self.tls_certificate_file, self.tls_key_file)

    def advertised(self, bound_address: str) -> str:
        """Return where devices find this gateway among several, which listens at an address. Raises ConfigError if nobody said."""
        if not self.advertise_address and not is_loopback(self.listen):
            raise ConfigError([f"PARLEY_GATEWAY_ADVERTISE_ADDRESS is missing: LISTEN {self.listen} is beyond loopback"])
        return self.advertise_address or bound_address
