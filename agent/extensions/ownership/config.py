"""What an operator writes about `ownership`."""

from collections.abc import Iterator
from typing import Annotated

from pydantic import Field, ValidationInfo, field_validator

from agent.settings.model import Config, Env
from agent.settings.needs import RedisUse, Right, on_key
from agent.settings.redis_tls import RedisTls
from agent.settings.types import Duration, RedisAddress, RedisUrl, expected

_KEYS, _CHANNELS = "~stem-agent:*", "&stem-agent:*"
_NOBODYS = "stem-agent:validate"
# Conditions that never hold, a script that is not there, one value too few: each says nothing but whether it may.
_WRITES = (
    *("SET {} 0 XX PX 1", "DEL {}", "PTTL {}", "PEXPIRE {} 1", "HSET {} a b c", "HGETALL {}", "ZADD {} XX 0 a"),
    *("ZREM {} a", "ZREMRANGEBYSCORE {} 0 0", "ZRANGE {} 0 0", f"EVALSHA {'0' * 40} 1 {{}}"),
)


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

    def redis_uses(self) -> Iterator[RedisUse]:
        """Yield the server that agents agree through, and the rights to what is written there."""
        rights = (
            *on_key(_NOBODYS, _KEYS, "GET {}", *_WRITES),
            Right(("TIME",)),
            Right(("SCRIPT", "LOAD", "return 0")),
            Right(("PUBLISH", _NOBODYS, ""), _CHANNELS),
            Right(("SUBSCRIBE", _NOBODYS), _CHANNELS),
        )
        yield RedisUse(self.url, self.tls, self.timeout, rights)
