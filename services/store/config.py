"""The store's settings, from the environment: PARLEY_STORE_<NAME>."""

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from services.store.rows import BUCKET_BITS


class StoreSettings(BaseSettings):
    """How a store worker spends memory. Nothing here changes what is decided."""

    model_config = SettingsConfigDict(env_prefix="PARLEY_STORE_", frozen=True, allow_inf_nan=False)

    instance_id: str = Field(default="", description="This store's name in the registry; empty: a random one.")
    # A batch: enough to share one commit, few enough to answer within milliseconds.
    poll_records: int = Field(default=500, ge=1, description="Records of a partition that are applied together.")
    bucket_bits: int = Field(default=BUCKET_BITS, ge=1, le=20, description="Fixed for a cluster's life: it says where events lie.")
    max_conversations: int = Field(default=20_000, ge=1, description="States kept a partition, ~3 kB each for a 1-1.")
    recent_bytes: int = Field(default=64 * 1024 * 1024, ge=0, description="Newest events kept for readers.")
    publish_bytes: int = Field(
        default=512 * 1024, ge=1024, description="An events record at most, below Kafka's default limit of 1 MB."
    )
    retry_min_seconds: float = Field(default=0.05, gt=0, description="The first wait after an engine failed.")
    retry_max_seconds: float = Field(default=2.0, gt=0, description="The longest one.")
    skip_look_seconds: float = Field(default=5.0, gt=0, description="How often a stopped partition looks for a skip.")
