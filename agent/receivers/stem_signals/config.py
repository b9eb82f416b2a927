"""What an operator writes about `stem_signals`."""

import ssl
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, field_validator

from agent.core.errors import StartupError
from agent.settings.model import Config, Env
from agent.settings.types import ByteSize, Duration, Flag, RedisAddress, RedisUrl, expected


def _as_stem_reads_it(value: Any) -> Any:
    """Stem takes `1` for true in this variable (`packages/stem/lib/src/security/tls.dart`)."""
    return {"1": "true", "0": "false"}.get(value, value) if isinstance(value, str) else value


class RedisTls(Config):
    """TLS towards Redis, used when the URL says `rediss://`. The server's certificate is verified by default."""

    ca_file: Annotated[str | None, Env("STEM_TLS_CA_CERT")] = Field(
        None, description="PEM file of the certificate authorities to trust; the system's when absent"
    )
    cert_file: Annotated[str | None, Env("STEM_TLS_CLIENT_CERT")] = Field(
        None, description="PEM file of the client's certificate"
    )
    key_file: Annotated[str | None, Env("STEM_TLS_CLIENT_KEY")] = Field(
        None, description="PEM file of the client's private key"
    )
    insecure_skip_verify: Annotated[Flag, Env("STEM_TLS_ALLOW_INSECURE"), BeforeValidator(_as_stem_reads_it)] = Field(
        default=False, description="accept any certificate; for tests only"
    )

    def context(self) -> ssl.SSLContext:
        """Build the TLS context; raises `StartupError` naming the file that cannot be used."""
        try:
            context = ssl.create_default_context(cafile=self.ca_file)
            if self.cert_file:
                context.load_cert_chain(self.cert_file, self.key_file)
        except (OSError, ssl.SSLError) as error:
            files = ", ".join(filter(None, (self.ca_file, self.cert_file, self.key_file)))
            raise StartupError(f"failed to load tls files {files}: {error}") from error
        if self.insecure_skip_verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context


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
    assume_timezone: str = Field("UTC", description="zone of timestamps that carry none (Stem before 0.2.0)")
    connect_timeout: Duration = Field(5.0, gt=0, description="time for one attempt to connect and subscribe")
    ping_interval: Duration = Field(
        10.0, gt=0, description="a connection that says nothing for twice this long is half-open, and is made anew"
    )
    initial_backoff: Duration = Field(0.1, gt=0, description="first delay before a reconnect; doubles, with jitter")
    max_backoff: Duration = Field(10.0, gt=0, description="longest delay before a reconnect")

    @field_validator("emitters")
    @classmethod
    def _no_colons(cls, emitters: tuple[str, ...]) -> tuple[str, ...]:
        if any(":" in emitter or not emitter for emitter in emitters):
            raise expected("names without a colon (a colon ends the namespace in the channel's name)")
        return emitters

    @field_validator("assume_timezone")
    @classmethod
    def _known_zone(cls, name: str) -> str:
        from zoneinfo import ZoneInfo, ZoneInfoNotFoundError  # noqa: PLC0415 - needed when configured only

        try:
            ZoneInfo(name)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            raise expected("a time zone name such as UTC or Europe/Berlin") from None
        return name
