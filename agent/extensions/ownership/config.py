"""What an operator writes about `ownership`."""

from typing import Annotated

from pydantic import Field, ValidationInfo, field_validator

from agent.settings.model import Config, Env
from agent.settings.redis_tls import RedisTls
from agent.settings.types import Duration, RedisAddress, RedisUrl, expected


class OwnershipConfig(Config):
    """Agree with other agents on who tells what, by leases in Redis; needs the right to write `stem-agent:*` there."""

    url: Annotated[RedisAddress, Env("STEM_BROKER_URL")] = Field(
        default_factory=lambda: RedisUrl("redis://localhost:6379/0"),
        description="the Redis that all agents of the fleet agree through",
    )
    namespace: Annotated[str, Env("STEM_WORKER_NAMESPACE")] = Field(
        "stem", min_length=1, description="the worker namespace; agents of one namespace agree with each other"
    )
    lease: Duration = Field(
        10.0,
        ge=0.1,
        le=3600,
        description="after a kill another agent takes over within two of these; renewed every third of it",
    )
    timeout: Duration = Field(2.0, gt=0, description="time for one command, and for connecting; less than `lease`")
    tls: RedisTls = Field(default_factory=RedisTls, description="TLS for `rediss://`")

    @field_validator("timeout")
    @classmethod
    def _within_lease(cls, timeout: float, info: ValidationInfo) -> float:
        lease = info.data.get("lease")
        if lease is not None and timeout >= lease:
            raise expected("less than lease, or a renewal could come too late")
        return timeout
