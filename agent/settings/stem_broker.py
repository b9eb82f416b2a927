"""Where a fleet's queues are, for whoever reads them."""

from collections.abc import Iterator
from typing import Annotated

from pydantic import Field

from agent.settings.model import Config, Env
from agent.settings.needs import RedisUse
from agent.settings.redis_tls import RedisTls
from agent.settings.types import RedisAddress, RedisUrl

_LOGIN_SECONDS = 5.0


class BrokerConfig(Config):
    """Stem's broker, and the fleet whose it is."""

    url: Annotated[RedisAddress, Env("STEM_BROKER_URL")] = Field(
        default_factory=lambda: RedisUrl("redis://localhost:6379/0"), description="the Redis that holds the queues"
    )
    tls: RedisTls = Field(default_factory=RedisTls, description="TLS for `rediss://`")
    namespace: Annotated[str, Env("STEM_WORKER_NAMESPACE")] = Field(
        "stem", min_length=1, description="the worker namespace, which names the fleet"
    )
    store_namespace: str = Field(
        "stem", min_length=1, description="the broker's prefix: the part of a key before `:stream:`"
    )

    def redis_uses(self) -> Iterator[RedisUse]:
        """Yield the broker."""
        yield RedisUse(self.url, self.tls, _LOGIN_SECONDS)
