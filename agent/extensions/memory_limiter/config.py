"""What an operator writes about `memory_limiter`; the names are the Collector's."""

from collections.abc import Iterator

from pydantic import Field, ValidationInfo, field_validator

from agent.core.pressure import Limits
from agent.extensions.memory_limiter.cgroup import available_bytes
from agent.settings.model import Config
from agent.settings.types import Duration, expected

MIB = 1 << 20
DEFAULT_PERCENTAGE = 80
_DEFAULT_SPIKE = 5  # a fifth of the limit


class MemoryLimiterConfig(Config):
    """Keep the memory of the agent below a limit: spill to disk, then drop what matters least."""

    limit_mib: int | None = Field(None, gt=0, description="hard limit in MiB")
    limit_percentage: int | None = Field(
        None,
        gt=0,
        le=100,
        description="hard limit as a share of what the cgroup may use (without a cgroup's limit: of the machine's "
        f"memory); {DEFAULT_PERCENTAGE} where neither limit is given",
    )
    spike_limit_mib: int | None = Field(
        None, gt=0, description="the soft limit is so much below the hard one; a fifth of it where neither is given"
    )
    spike_limit_percentage: int | None = Field(
        None, gt=0, lt=100, description="the same as a share of what the cgroup may use"
    )
    check_interval: Duration = Field(0.5, gt=0, le=60, description="how often the memory in use is looked at")

    @field_validator("limit_percentage")
    @classmethod
    def _one_limit(cls, percentage: int | None, info: ValidationInfo) -> int | None:
        if percentage is not None and info.data.get("limit_mib") is not None:
            raise expected("either this or limit_mib, not both")
        return percentage

    @field_validator("spike_limit_mib")
    @classmethod
    def _below_limit(cls, spike_mib: int | None, info: ValidationInfo) -> int | None:
        limit_mib = info.data.get("limit_mib")
        if spike_mib is not None and limit_mib is not None and spike_mib >= limit_mib:
            raise expected(f"less than limit_mib, which is {limit_mib}")
        return spike_mib

    @field_validator("spike_limit_percentage")
    @classmethod
    def _one_spike(cls, percentage: int | None, info: ValidationInfo) -> int | None:
        if percentage is None:
            return None
        if info.data.get("spike_limit_mib") is not None:
            raise expected("either this or spike_limit_mib, not both")
        limit = info.data.get("limit_percentage") or DEFAULT_PERCENTAGE
        if info.data.get("limit_mib") is None and percentage >= limit:
            raise expected(f"less than limit_percentage, which is {limit}")
        return percentage

    def missing_here(self) -> Iterator[str]:
        """Yield why the limits are impossible in this cgroup."""
        try:
            limits(self, available_bytes())
        except ValueError as error:
            yield str(error)


def limits(config: MemoryLimiterConfig, available: int) -> Limits:
    """Return the limits where `available` bytes may be used; raises `ValueError` where they are impossible."""
    if config.limit_mib is not None:
        hard = config.limit_mib * MIB
        if hard > available:
            raise ValueError(f"limit_mib is {config.limit_mib}, but only {available // MIB} MiB may be used here")
    else:
        hard = available * (config.limit_percentage or DEFAULT_PERCENTAGE) // 100
    if config.spike_limit_mib is not None:
        spike = config.spike_limit_mib * MIB
    elif config.spike_limit_percentage is not None:
        spike = available * config.spike_limit_percentage // 100
    else:
        spike = hard // _DEFAULT_SPIKE
    if spike >= hard:
        raise ValueError(f"the spike limit of {spike // MIB} MiB is not below the limit of {hard // MIB} MiB")
    return Limits(hard, hard - spike)
