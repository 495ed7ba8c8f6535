"""The router's settings, from the environment: PARLEY_ROUTER_<NAME>."""

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from parley_protocol.slots import SLOT_COUNT


class RouterSettings(BaseSettings):
    """Bounds and patience."""

    model_config = SettingsConfigDict(env_prefix="PARLEY_ROUTER_", frozen=True, allow_inf_nan=False)

    instance_id: str = Field(default="", description="This router's name in the registry; empty: a random one.")
    slot_count: int = Field(default=SLOT_COUNT, ge=1, le=65_536, description="Slots of users: the same for all, for good.")
    poll_records: int = Field(default=64, ge=1, description="Event batches at once; each holds up to a poll of the store.")
    frame_bytes: int = Field(default=1024 * 1024, ge=1024, description="A frame to a gateway at most.")
    unreachable_seconds: float = Field(
        default=10.0, gt=0, description="A gateway silent for this long: its users' messages go to parley.offline."
    )
    question_seconds: float = Field(default=5.0, gt=0, description="Deadline of calls to stores and gateways.")
    cached_groups: int = Field(
        default=10_000, ge=1, description="Groups over the named-recipients bound kept a partition, ~50 kB each at 500 members."
    )
    retry_min_seconds: float = Field(default=0.05, gt=0, description="The first wait after an engine failed.")
    retry_max_seconds: float = Field(default=2.0, gt=0, description="The longest one.")
