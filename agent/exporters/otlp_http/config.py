"""What an operator writes about `otlp_http`."""

from typing import Annotated

from pydantic import Field, field_validator

from agent.exporters.otlp.config import OtlpConfig
from agent.otlp.batch import Kind
from agent.settings.model import Env
from agent.settings.types import HttpUrl, expected


class OtlpHttpConfig(OtlpConfig):
    """Send to an OTLP/HTTP endpoint: a Collector's, or a vendor's."""

    endpoint: Annotated[HttpUrl, Env("STEM_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")] = Field(
        "http://localhost:4318", description="base URL; `/v1/traces`, `/v1/metrics`, `/v1/logs` are appended"
    )
    traces_endpoint: Annotated[HttpUrl | None, Env("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", unless="endpoint")] = Field(
        None, description="URL for traces, used as it is"
    )
    metrics_endpoint: Annotated[HttpUrl | None, Env("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", unless="endpoint")] = Field(
        None, description="URL for metrics, used as it is"
    )
    logs_endpoint: Annotated[HttpUrl | None, Env("OTEL_EXPORTER_OTLP_LOGS_ENDPOINT", unless="endpoint")] = Field(
        None, description="URL for logs, used as it is"
    )

    @field_validator("endpoint")
    @classmethod
    def _is_a_base(cls, endpoint: str) -> str:
        base, _, signal = endpoint.rstrip("/").rpartition("/v1/")
        if base and signal in set(Kind):
            raise expected(f"a base URL such as {base} (/v1/{signal} is appended; or set {signal}_endpoint)")
        return endpoint

    def endpoint_of(self, kind: Kind) -> str:
        """Return the URL of `kind` (OTLP specification, "Endpoint URLs for OTLP/HTTP")."""
        own: str | None = getattr(self, f"{kind}_endpoint")
        return own or f"{self.endpoint.rstrip('/')}/v1/{kind}"

    def uses_tls(self, kind: Kind) -> bool:
        """Tell whether the URL of `kind` says `https://`."""
        return self.endpoint_of(kind).startswith("https:")
