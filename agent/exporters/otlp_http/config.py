"""What an operator writes about `otlp_http`."""

import re
from typing import Annotated, Any, Literal
from urllib.parse import unquote

from pydantic import AfterValidator, BeforeValidator, Field, field_validator

from agent.exporters.sending.config import QueueConfig, RetryConfig
from agent.otlp.batch import Kind
from agent.settings.model import Config, Env
from agent.settings.tls import CA_FILE, CERT_FILE, KEY_FILE, ClientTls
from agent.settings.types import Duration, HttpUrl, Secret, expected


class OtlpTls(ClientTls):
    """TLS towards the destination, used when the URL says `https://`."""

    ca_file: Annotated[str | None, Env("OTEL_EXPORTER_OTLP_CERTIFICATE")] = CA_FILE
    cert_file: Annotated[str | None, Env("OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE")] = CERT_FILE
    key_file: Annotated[str | None, Env("OTEL_EXPORTER_OTLP_CLIENT_KEY")] = KEY_FILE
    server_name_override: str | None = Field(None, description="verify the certificate against this name")


def parse_headers(value: Any) -> Any:
    """Turn `k=v,k2=v2` into a mapping: W3C Baggage form, percent-encoded, as `OTEL_EXPORTER_OTLP_HEADERS` has it."""
    if not isinstance(value, str):
        return value
    pairs = [part.partition("=") for part in value.split(",") if part.strip()]
    if not all(name.strip() and equals for name, equals, _ in pairs):
        raise expected("pairs such as name=value,other=value")
    return {unquote(name.strip()): unquote(text.strip()) for name, _, text in pairs}


# RFC 9110, sections 5.1 and 5.5: what a field name and a field value may consist of.
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_HEADER_VALUE = re.compile(r"[\x21-\x7e\x80-\xff](?:[\t\x20-\x7e\x80-\xff]*[\x21-\x7e\x80-\xff])?|")


def _checked_headers(headers: dict[str, Secret]) -> dict[str, Secret]:
    for name, secret in headers.items():
        if not _HEADER_NAME.fullmatch(name):
            raise expected(f"a header name in place of {name!r}")
        if not _HEADER_VALUE.fullmatch(secret.get_secret_value()):
            raise expected(f"a value of {name!r} without line breaks, control characters or white space at its ends")
    return headers


class OtlpHttpConfig(Config):
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
    headers: Annotated[
        dict[str, Secret],
        Env("OTEL_EXPORTER_OTLP_HEADERS"),
        BeforeValidator(parse_headers),
        AfterValidator(_checked_headers),
    ] = Field(default_factory=dict, description="sent with every request; values stay secret")
    compression: Annotated[Literal["gzip", "none"], Env("OTEL_EXPORTER_OTLP_COMPRESSION")] = Field(
        "gzip", description="of request bodies"
    )
    timeout: Duration = Field(10.0, gt=0, description="for one request, answer included")
    tls: OtlpTls = Field(default_factory=OtlpTls, description="TLS for `https://`")
    sending_queue: QueueConfig = Field(default_factory=QueueConfig, description="batching and queueing")
    retry_on_failure: RetryConfig = Field(default_factory=RetryConfig, description="retrying")
    max_requests_per_second: int = Field(0, ge=0, description="for all kinds together; 0: as many as it takes")

    @field_validator("endpoint")
    @classmethod
    def _is_a_base(cls, endpoint: str) -> str:
        base, _, signal = endpoint.rstrip("/").rpartition("/v1/")
        if base and signal in set(Kind):
            raise expected(f"a base URL such as {base} (/v1/{signal} is appended; or set {signal}_endpoint)")
        return endpoint

    def url(self, kind: Kind) -> str:
        """Return where `kind` goes (OTLP specification, "Endpoint URLs for OTLP/HTTP")."""
        own: str | None = getattr(self, f"{kind}_endpoint")
        return own or f"{self.endpoint.rstrip('/')}/v1/{kind}"
