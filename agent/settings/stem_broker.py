"""Where a fleet's queues are, for whoever reads them."""

from typing import Annotated

from pydantic import Field

from agent.settings.model import Config, Env
from agent.settings.redis_tls import RedisTls
from agent.settings.types import RedisAddress, RedisUrl


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
