"""What an operator writes about `prometheus`."""

from collections.abc import Iterator
from typing import Annotated

from pydantic import Field, model_validator

from agent.core.errors import StartupError
from agent.exporters.otlp.headers import SecretFile, SecretValue
from agent.settings.model import Config, Env
from agent.settings.tls import ServerTls
from agent.settings.types import Duration, Flag, HostPort, ListenAddress, expected


class BasicAuth(Config):
    """Whom to let in (RFC 7617). Without TLS a password can be read on its way."""

    username: str | None = Field(None, min_length=1, pattern=r"^[^:]+$", description="absent: everybody is let in")
    password: SecretValue | None = Field(None, description="as it is, or `{file: PATH}`")

    @model_validator(mode="after")
    def _has_both(self) -> "BasicAuth":
        if (self.username is None) != (self.password is None):
            raise expected("both a username and a password")
        return self


class PrometheusConfig(Config):
    """Let Prometheus scrape: `/metrics`, and the agent's own metrics under `/metrics/agent`."""

    endpoint: Annotated[ListenAddress, Env("STEM_PROMETHEUS_ENDPOINT")] = Field(
        default_factory=lambda: HostPort("127.0.0.1", 9464),
        description="`host:port` to listen on; a Prometheus outside of the pod needs `${env:POD_IP}:9464`",
    )
    metric_expiration: Duration = Field(
        60.0,
        gt=0,
        description="for how long the last word of a source that fell silent is shown, or three times as long as it "
        "took to tell before, if that is longer. What a source no longer tells is gone at once",
    )
    scope_labels: Flag = Field(
        default=True, description="`otel_scope_name` and `otel_scope_version` on every series, as the specification has"
    )
    created_series: Flag = Field(
        default=False, description="in OpenMetrics, a series `_created` beside each counter and histogram: its start"
    )
    basic_auth: BasicAuth = Field(default_factory=BasicAuth, description="whom to let in")
    tls: ServerTls = Field(default_factory=ServerTls, description="TLS")
    reload_interval: Duration = Field(
        10.0, gt=0, description="how often the password's file is looked at; a changed one holds for the next request"
    )

    def missing_here(self) -> Iterator[str]:
        """Yield why a file that is named cannot be used."""
        try:
            if isinstance(self.basic_auth.password, SecretFile):
                self.basic_auth.password.read()
            if self.tls.cert_file:
                self.tls.context()
        except StartupError as error:
            yield str(error)
