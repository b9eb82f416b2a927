"""What an operator writes about reading result records."""

from collections.abc import Iterator
from typing import Annotated

from pydantic import Field

from agent.settings.model import Config, Env
from agent.settings.needs import RedisUse, on_key
from agent.settings.redis_tls import RedisTls
from agent.settings.types import Duration, Flag, RedisAddress, RedisUrl
from agent.stem.keys import Keys


class ResultsConfig(Config):
    """Read what became of tasks from Stem's result backend, where signals were lost."""

    enabled: Flag = Field(default=True, description="read result records at all")
    url: Annotated[RedisAddress, Env("STEM_RESULT_BACKEND_URL", "STEM_BROKER_URL")] = Field(
        default_factory=lambda: RedisUrl("redis://localhost:6379/0"),
        description="the Redis that holds the results",
    )
    tls: RedisTls = Field(default_factory=RedisTls, description="TLS for `rediss://`")
    namespace: str = Field("stem", min_length=1, description="the store's prefix: the part of a key before `:result:`")
    max_reads_per_second: int = Field(500, gt=0, description="records read a second, at the most")
    batch: int = Field(100, gt=0, le=1000, description="records read at once")
    timeout: Duration = Field(2.0, gt=0, description="for one command, answer included")

    def redis_uses(self) -> Iterator[RedisUse]:
        """Yield the result backend, and the right to read records there."""
        if self.enabled:
            record = Keys(self.namespace).result("stem-agent-validate")
            rule, gives = f"%R~{Keys(self.namespace).result('*')}", "the repair of lost signals"
            rights = tuple(on_key(record, rule, "STRLEN {}", "MGET {}", gives=gives))
            yield RedisUse(self.url, self.tls, self.timeout, rights)
