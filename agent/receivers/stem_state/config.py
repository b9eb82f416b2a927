"""What an operator writes about `stem_state`."""

from collections.abc import Iterator
from typing import Annotated

from pydantic import Field, field_validator

from agent.settings.model import Config, Env
from agent.settings.needs import RedisUse, Right, on_key
from agent.settings.redis_tls import RedisTls
from agent.settings.stem_broker import BrokerConfig
from agent.settings.types import Duration, RedisAddress, RedisUrl, TimeZone
from agent.stem.keys import Keys
from agent.stem.questions.claims import OWNER_PREFIX

_NOBODY = "stem-agent-validate"


class ResultStoreConfig(Config):
    """Where heartbeats and pauses are: Stem's result backend."""

    url: Annotated[RedisAddress | None, Env("STEM_RESULT_BACKEND_URL")] = Field(
        None, description="the Redis that holds the results; absent: the one that holds the queues, and its `tls`"
    )
    tls: RedisTls = Field(default_factory=RedisTls, description="TLS for `rediss://`")
    namespace: str = Field("stem", min_length=1, description="the store's prefix: the part of a key before `:worker:`")


class ScheduleStoreConfig(Config):
    """Where schedules are."""

    url: Annotated[RedisAddress | None, Env("STEM_SCHEDULE_STORE_URL")] = Field(
        None, description="the Redis that holds the schedules; absent: schedules are not read"
    )
    tls: RedisTls = Field(default_factory=RedisTls, description="TLS for `rediss://`")
    namespace: str = Field(
        "stem", min_length=1, description="the store's prefix: the part of a key before `:schedule:`"
    )


class WorkflowStoreConfig(Config):
    """Where workflow runs are."""

    url: Annotated[RedisAddress | None, Env("STEM_WORKFLOW_STORE_URL")] = Field(
        None, description="the Redis that holds the workflow runs; absent: runs are not counted"
    )
    tls: RedisTls = Field(default_factory=RedisTls, description="TLS for `rediss://`")
    namespace: Annotated[str, Env("STEM_WORKFLOW_NAMESPACE")] = Field(
        "stem", min_length=1, description="the store's prefix: the part of a key before `:wf:`"
    )


class StemStateConfig(BrokerConfig):
    """Poll what the fleet is like now: queues, dead letters, workers, schedules, workflow runs. Nothing is written."""

    interval: Duration = Field(10.0, gt=0, description="how often Redis is asked, and the answers are exported")
    timeout: Duration = Field(5.0, gt=0, description="for one round trip, answers included")
    queues: tuple[str, ...] = Field(
        (), description="read these queues only; empty: those that workers subscribe to, and all that are found"
    )
    scan_budget: int = Field(
        10_000, gt=0, description="keys looked at in an interval while looking for queues, or for workflow runs"
    )
    max_queues: int = Field(1000, gt=0, description="queues read; beyond it the others are not, and the status says so")
    max_workers: int = Field(10_000, gt=0, description="the same for workers")
    max_schedules: int = Field(1000, gt=0, description="the same for schedules")
    heartbeat_timeout: Duration = Field(30.0, gt=0, description="a worker silent for this long is down")
    worker_ttl: Duration = Field(600.0, gt=0, description="a worker silent for this long is forgotten")
    assume_timezone: TimeZone = Field("UTC", description="zone of timestamps that carry none (Stem before 0.2.0)")
    results: ResultStoreConfig = Field(
        default_factory=ResultStoreConfig, description="Stem's result backend: heartbeats, pauses"
    )
    schedules: ScheduleStoreConfig = Field(default_factory=ScheduleStoreConfig, description="Stem's schedule store")
    workflows: WorkflowStoreConfig = Field(default_factory=WorkflowStoreConfig, description="Stem's workflow store")

    @property
    def result_store(self) -> tuple[RedisUrl, RedisTls]:
        """Where heartbeats and pauses are: at the broker, unless somebody said otherwise."""
        return (self.results.url, self.results.tls) if self.results.url else (self.url, self.tls)

    def redis_uses(self) -> Iterator[RedisUse]:
        """Yield each store that is named, and the rights to read what is told of it."""
        results, schedules, workflows = self.results, self.schedules, self.workflows
        yield RedisUse(self.url, self.tls, self.timeout, tuple(self._of_broker()))
        own = ("results",) if results.url else ()
        yield RedisUse(*self.result_store, self.timeout, tuple(self._of_results()), own)
        if schedules.url:
            rights = tuple(_of_schedules(schedules.namespace))
            yield RedisUse(schedules.url, schedules.tls, self.timeout, rights, ("schedules",))
        if workflows.url:
            rights = tuple(_of_workflows(workflows.namespace))
            yield RedisUse(workflows.url, workflows.tls, self.timeout, rights, ("workflows",))

    def _of_broker(self) -> Iterator[Right]:
        keys, rule = Keys(self.store_namespace), f"%R~{self.store_namespace}:*"
        stream, group, dead = keys.stream(_NOBODY), keys.group(_NOBODY), keys.dead(_NOBODY)
        yield Right(("SCAN", "0", "MATCH", stream, "COUNT", "1"), gives="queues")
        yield from on_key(stream, rule, "XINFO GROUPS {}", "XRANGE {} - + COUNT 1", gives="queues")
        yield from on_key(keys.delayed(_NOBODY), rule, "ZCARD {}", "ZCOUNT {} -inf 0", gives="queues")
        yield from on_key(dead, rule, "LLEN {}", "LINDEX {} -1", "LRANGE {} 0 0", gives="dead letters")
        yield from on_key(stream, rule, f"XPENDING {{}} {group} - + 1", gives="what ran on workers that vanished")
        owner = f"{OWNER_PREFIX}{self.namespace}:{_NOBODY}"
        yield from on_key(owner, f"%R~{OWNER_PREFIX}*", "EXISTS {}", gives="what ran on workers that vanished")

    def _of_results(self) -> Iterator[Right]:
        keys, rule = Keys(self.results.namespace), f"%R~{self.results.namespace}:*"
        yield from on_key(keys.heartbeats, rule, "SMEMBERS {}", gives="workers")
        yield from on_key(keys.heartbeat(_NOBODY), rule, "MGET {}", "PTTL {}", gives="workers")
        yield from on_key(keys.result(_NOBODY), rule, "STRLEN {}", gives="what ran on workers that vanished")
        pauses = Keys(self.namespace).revokes
        yield from on_key(pauses, f"%R~{self.namespace}:*", f"HMGET {{}} {_NOBODY}", gives="which queues are paused")

    @field_validator("queues")
    @classmethod
    def _named(cls, queues: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(filter(None, queues)))


def _of_schedules(namespace: str) -> Iterator[Right]:
    keys, rule, gives = Keys(namespace), f"%R~{namespace}:*", "schedules"
    yield from on_key(keys.schedules, rule, "ZRANGE {} 0 0", gives=gives)
    yield from on_key(keys.schedule(_NOBODY), rule, "HMGET {} taskName", gives=gives)
    yield from on_key(keys.schedule_history(_NOBODY), rule, "XREVRANGE {} + -", "XRANGE {} - +", gives=gives)


def _of_workflows(namespace: str) -> Iterator[Right]:
    keys, rule, gives = Keys(namespace), f"%R~{namespace}:*", "workflow runs"
    yield Right(("SCAN", "0", "MATCH", keys.workflow(_NOBODY), "COUNT", "1"), gives=gives)
    yield from on_key(keys.workflow(_NOBODY), rule, "HMGET {} status", gives=gives)
