"""What an operator writes about `stem_tail`."""

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field, field_validator

from agent.settings.model import Config, Env
from agent.settings.needs import RedisUse, Right, on_key
from agent.settings.redis_tls import RedisTls
from agent.settings.stem_broker import BrokerConfig
from agent.settings.types import Duration, RedisAddress, RedisUrl, TimeZone
from agent.stem.keys import Keys
from agent.stem.questions.claims import SPEAKERS_PREFIX

_NOBODY = "stem-agent-validate"


class RecordsConfig(Config):
    """Where the result records are: Stem's result backend."""

    url: Annotated[RedisAddress | None, Env("STEM_RESULT_BACKEND_URL")] = Field(
        None, description="the Redis that holds the results; absent: the one that holds the queues, and its `tls`"
    )
    tls: RedisTls = Field(default_factory=RedisTls, description="TLS for `rediss://`")
    namespace: str = Field("stem", min_length=1, description="the store's prefix: the part of a key before `:result:`")
    young: Duration = Field(
        0.05, gt=0, description="how often the record of a task is read that changed a moment ago; a tenth of its age"
    )
    old: Duration = Field(
        5.0,
        gt=0,
        description="how often, at the least, the record of a task under way is read; where a task has not changed for "
        "five minutes and more, a sixtieth of that",
    )
    max_reads_per_second: int = Field(5000, gt=0, description="records read a second, at the most")
    batch: int = Field(250, gt=0, le=1000, description="records read at once")
    notifications: Literal["auto", "off"] = Field(
        "auto",
        description="`auto`: also read a record when the server's keyspace notifications tell that it changed, where "
        "they are switched on (the agent never does that)",
    )


class StemTailConfig(BrokerConfig):
    """Tell what a fleet does that sends no signals, from its streams and result records. Nothing is written."""

    queues: tuple[str, ...] = Field(
        (), description="follow these queues only; empty: those that workers subscribe to, and all that are found"
    )
    interval: Duration = Field(0.1, gt=0, description="how often the streams are read")
    discovery_interval: Duration = Field(
        5.0, gt=0, description="how often queues, workers and dead letters are looked for"
    )
    scan_budget: int = Field(10_000, gt=0, description="keys looked at each time while looking for queues")
    max_queues: int = Field(200, gt=0, description="queues followed; beyond it the others are not, and the status says")
    max_entries: int = Field(200, gt=0, le=10_000, description="entries of each stream read at once")
    max_tasks: int = Field(
        100_000,
        gt=0,
        description="tasks under way; beyond it the oldest is dropped and counted, and so are its records",
    )
    task_ttl: Duration = Field(86_400.0, gt=0, description="a task without news for so long is dropped and counted")
    claim_interval: Duration = Field(
        30.0,
        gt=0,
        description="after so long another worker may take a task over (Stem's `claimInterval`): an end of which the "
        "record names no start is taken for that of the one delivery that was seen only within this time",
    )
    timeout: Duration = Field(5.0, gt=0, description="for one round trip, answers included")
    assume_timezone: TimeZone = Field("UTC", description="zone of timestamps that carry none (Stem before 0.2.0)")
    storage: str | None = Field(
        None,
        min_length=1,
        description="id of the extension that keeps how far was read until the next start; with `ownership`, which "
        "keeps that in Redis, it is not used",
    )
    results: RecordsConfig = Field(default_factory=RecordsConfig, description="Stem's result backend")

    @property
    def result_store(self) -> tuple[RedisUrl, RedisTls]:
        """Where result records and heartbeats are: at the broker, unless somebody said otherwise."""
        return (self.results.url, self.results.tls) if self.results.url else (self.url, self.tls)

    def redis_uses(self) -> Iterator[RedisUse]:
        """Yield the broker and the result backend, and the rights to read streams, records and heartbeats."""
        yield RedisUse(self.url, self.tls, self.timeout, tuple(self._of_broker()))
        own = ("results",) if self.results.url else ()
        yield RedisUse(*self.result_store, self.timeout, tuple(self._of_results()), own)

    def _of_results(self) -> Iterator[Right]:
        keys, rule = Keys(self.results.namespace), f"%R~{self.results.namespace}:*"
        yield from on_key(keys.result(_NOBODY), rule, "STRLEN {}", "MGET {}")
        yield from on_key(keys.heartbeats, rule, "SMEMBERS {}", gives="queues that workers subscribe to")
        yield from on_key(keys.heartbeat(_NOBODY), rule, "PTTL {}", gives="queues that workers subscribe to")

    def _of_broker(self) -> Iterator[Right]:
        keys, rule = Keys(self.store_namespace), f"%R~{self.store_namespace}:*"
        stream, group = keys.stream(_NOBODY), keys.group(_NOBODY)
        heard, hidden = "which workers are told by their signals", "how tasks ended that a late record hides"
        speakers = f"{SPEAKERS_PREFIX}{self.namespace}"
        yield Right(("TIME",))
        yield Right(("SCAN", "0", "MATCH", stream, "COUNT", "1"), gives="queues that are not named in `queues`")
        yield from on_key(stream, rule, "XREAD COUNT 1 STREAMS {} 0-0")
        yield from on_key(keys.dead(_NOBODY), rule, "LLEN {}", "LRANGE {} 0 0", gives="dead letters")
        yield from on_key(stream, rule, "XINFO GROUPS {}", f"XPENDING {{}} {group} - + 1", gives=hidden)
        yield from on_key(speakers, f"%R~{SPEAKERS_PREFIX}*", "ZRANGE {} 0 0", gives=heard)

    @field_validator("queues")
    @classmethod
    def _named(cls, queues: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(filter(None, queues)))
