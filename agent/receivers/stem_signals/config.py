"""What an operator writes about `stem_signals`."""

from collections.abc import Iterator
from typing import Annotated

from pydantic import Field, field_validator

from agent.settings.model import Config, Env
from agent.settings.needs import RedisUse, Right
from agent.settings.redis_tls import RedisTls
from agent.settings.types import ByteSize, Duration, Flag, RedisAddress, RedisUrl, TimeZone, expected
from agent.stem.channels import heartbeat_channel, signal_channel, signal_pattern

CANARY_PREFIX = "stem-agent:canary:"
"""Of the channel that an agent publishes to itself on."""


class CanaryConfig(Config):
    """Publish to ourselves, to notice a subscription that stands but hears nothing."""

    enabled: Flag = Field(default=False, description="publish and listen for canaries; needs the right to publish them")
    interval: Duration = Field(10.0, gt=0, description="from one canary to the next")
    timeout: Duration = Field(
        5.0, gt=0, description="a canary not heard for this long, while nothing else is, ends the session"
    )


class StemSignalsConfig(Config):
    """Listen to the signals of Stem's workers on Redis pub/sub."""

    url: Annotated[RedisAddress, Env("STEM_BROKER_URL")] = Field(
        default_factory=lambda: RedisUrl("redis://localhost:6379/0"),
        description="the Redis that the workers publish to",
    )
    namespace: Annotated[str, Env("STEM_WORKER_NAMESPACE")] = Field(
        "stem", min_length=1, description="the worker namespace: the part of the channel's name after `stem:signals:`"
    )
    emitters: Annotated[tuple[str, ...], Env("STEM_EMITTER")] = Field(
        (), description="listen to these emitters only (sidecar); empty: to all, and to Stem's heartbeats (gateway)"
    )
    tls: RedisTls = Field(default_factory=RedisTls, description="TLS for `rediss://`")
    backlog: ByteSize = Field(
        256 << 20,
        gt=0,
        description="raw signals held while the agent is busy; beyond it the oldest are shed and counted",
    )
    max_payload: ByteSize = Field(1 << 20, gt=0, description="larger signals are counted as lost, not decoded")
    assume_timezone: TimeZone = Field("UTC", description="zone of timestamps that carry none (Stem before 0.2.0)")
    connect_timeout: Duration = Field(5.0, gt=0, description="time for one attempt to connect and subscribe")
    ping_interval: Duration = Field(
        10.0, gt=0, description="a connection that says nothing for twice this long is half-open, and is made anew"
    )
    storage: str | None = Field(
        None,
        min_length=1,
        description="id of the extension that keeps the numbering from a stop to the next start; absent: nobody does",
    )
    canary: CanaryConfig = Field(default_factory=CanaryConfig, description="publish to ourselves, and listen for it")
    initial_backoff: Duration = Field(0.1, gt=0, description="first delay before a reconnect; doubles, with jitter")
    max_backoff: Duration = Field(10.0, gt=0, description="longest delay before a reconnect")

    @field_validator("emitters")
    @classmethod
    def _no_colons(cls, emitters: tuple[str, ...]) -> tuple[str, ...]:
        for number, emitter in enumerate(emitters, 1):
            if ":" in emitter or not emitter.isprintable() or not emitter:
                why = f"number {number} has one, or is empty; a colon ends the namespace in a channel's name"
                raise expected(f"names without a colon ({why})")
        return emitters

    def redis_uses(self) -> Iterator[RedisUse]:
        """Yield the server that the workers publish to, and the right to listen there."""
        yield RedisUse(self.url, self.tls, self.connect_timeout, tuple(self._rights()))

    def _rights(self) -> Iterator[Right]:
        yield Right(("PING",))
        yield Right(("TIME",), gives="clocks that are told against that of redis")
        if self.canary.enabled:
            canary = f"{CANARY_PREFIX}validate"
            yield Right(("PUBLISH", canary, ""), f"&{CANARY_PREFIX}*", "the canary")
            yield Right(("SUBSCRIBE", canary), f"&{CANARY_PREFIX}*", "the canary")
        if self.emitters:
            channels = (signal_channel(self.namespace, emitter) for emitter in self.emitters)
            yield from (Right(("SUBSCRIBE", channel), f"&{channel}") for channel in channels)
            return
        # A pattern has to be granted as it is.
        pattern, beats = signal_pattern(self.namespace), heartbeat_channel(self.namespace)
        yield Right(("PSUBSCRIBE", pattern), f"&{pattern}")
        yield Right(("SUBSCRIBE", beats), f"&{beats}", "Stem's own heartbeats")
