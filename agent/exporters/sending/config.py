"""What an operator writes about batching, queueing and retrying."""

from typing import Literal

from pydantic import Field

from agent.settings.model import Config
from agent.settings.types import ByteSize, Duration, Flag


class BatchConfig(Config):
    """When a batch is closed: whichever limit is reached first."""

    flush_timeout: Duration = Field(1.0, gt=0, description="age of the oldest item, at the most")
    max_items: int = Field(8192, gt=0, description="spans, log records or data points")
    max_bytes: ByteSize = Field(
        3 << 20,
        gt=0,
        le=60 << 20,
        description="uncompressed size; OTLP servers refuse above 64 MiB, many gRPC ones above 4",
    )


_CAPACITIES = {"bytes": 64 << 20, "items": 100_000, "requests": 1_000}


class QueueConfig(Config):
    """What is held in memory while the destination is slow or away."""

    sizer: Literal["bytes", "items", "requests"] = Field("bytes", description="what `queue_size` counts")
    queue_size: ByteSize | None = Field(
        None,
        gt=0,
        description="held in memory per kind (traces, metrics, logs); beyond it the oldest batch is dropped. "
        "Absent: 64MiB, 100000 items or 1000 requests",
    )
    storage: str | None = Field(
        None, description="id of a `file_storage`: sealed batches are kept there until they are accepted"
    )
    num_consumers: int = Field(1, gt=0, le=64, description="requests under way at once, per kind")
    batch: BatchConfig = Field(default_factory=BatchConfig, description="when a batch is closed")

    @property
    def capacity(self) -> int:
        """What is held at the most, in the unit of `sizer`."""
        return self.queue_size or _CAPACITIES[self.sizer]


class RetryConfig(Config):
    """What happens when the destination says later, or nothing."""

    enabled: Flag = Field(default=True, description="false: drop what the first attempt does not deliver")
    initial_interval: Duration = Field(1.0, gt=0, description="ceiling of the first delay; doubles, with full jitter")
    max_interval: Duration = Field(30.0, gt=0, description="ceiling of every delay, a server's `Retry-After` included")
    max_elapsed_time: Duration = Field(
        0.0,
        ge=0,
        description="give a batch up after this long; 0: never, so that only a full queue drops (nor with a `storage`)",
    )
