"""What an operator writes about either OTLP exporter, and what of it holds for one kind."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from agent.exporters.otlp.headers import Headers, HeaderValue, SecretFile
from agent.exporters.sending.config import QueueConfig, RetryConfig
from agent.otlp.batch import Kind
from agent.settings.model import Config, Env
from agent.settings.tls import CA_FILE, CERT_FILE, KEY_FILE, ClientTls
from agent.settings.types import Duration, Secret, expected, is_host_alone, split_url

Compression = Literal["gzip", "zstd", "none"]


class OtlpTls(ClientTls):
    """TLS towards the destination."""

    ca_file: Annotated[str | None, Env("OTEL_EXPORTER_OTLP_CERTIFICATE")] = CA_FILE
    cert_file: Annotated[str | None, Env("OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE")] = CERT_FILE
    key_file: Annotated[str | None, Env("OTEL_EXPORTER_OTLP_CLIENT_KEY")] = KEY_FILE
    server_name_override: str | None = Field(None, description="verify the certificate against this name")
    reload_interval: Duration = Field(
        10.0, gt=0, description="how often the files are looked at; changed ones are used by new connections"
    )


class SignalTls(Config):
    """Files for one signal, each in place of the general one."""

    ca_file: Annotated[str | None, Env("OTEL_EXPORTER_OTLP_{}_CERTIFICATE", unless="tls.ca_file")] = CA_FILE
    cert_file: Annotated[str | None, Env("OTEL_EXPORTER_OTLP_{}_CLIENT_CERTIFICATE", unless="tls.cert_file")] = (
        CERT_FILE
    )
    key_file: Annotated[str | None, Env("OTEL_EXPORTER_OTLP_{}_CLIENT_KEY", unless="tls.key_file")] = KEY_FILE


class SignalOptions(Config):
    """What holds for one signal in place of the general options."""

    headers: Annotated[Headers | None, Env("OTEL_EXPORTER_OTLP_{}_HEADERS", unless="headers")] = Field(
        None, description="in place of all general ones"
    )
    compression: Annotated[Compression | None, Env("OTEL_EXPORTER_OTLP_{}_COMPRESSION", unless="compression")] = Field(
        None, description="of requests"
    )
    timeout: Annotated[Duration | None, Env("OTEL_EXPORTER_OTLP_{}_TIMEOUT", unless="timeout", unit="ms")] = Field(
        None, gt=0, description="for one request, answer included"
    )
    tls: SignalTls = Field(default_factory=SignalTls, description="files")


def _checked_proxy(value: Any) -> Any:
    if not isinstance(value, Secret):
        return value
    wanted = expected("a URL such as http://proxy.example.com:3128 or http://user:password@proxy.example.com:3128")
    if not is_host_alone(split_url(value.get_secret_value(), {"http"}, wanted)):
        raise wanted
    return value


def _lower(value: Any) -> Any:
    return value.lower() if isinstance(value, str) else value  # the specification's enums know no case


@dataclass(frozen=True, slots=True)
class Route:
    """What holds for one kind: `endpoint` as the transport wants it, `timeout` in seconds."""

    endpoint: str
    headers: Mapping[str, HeaderValue]
    compression: Compression
    timeout: float
    tls: OtlpTls


class OtlpConfig(Config, ABC):
    """Options that both transports have; each says what its endpoints are."""

    endpoint: str = Field("", description="for all signals")
    traces_endpoint: str | None = Field(None, description="for traces")
    metrics_endpoint: str | None = Field(None, description="for metrics")
    logs_endpoint: str | None = Field(None, description="for logs")
    headers: Annotated[Headers, Env("OTEL_EXPORTER_OTLP_HEADERS")] = Field(
        default_factory=dict,
        description="sent with every request, as `name: value` or `name: {file: PATH}`; values stay secret",
    )
    reload_interval: Duration = Field(
        10.0, gt=0, description="how often header files are looked at; a changed one is used by the next request"
    )
    compression: Annotated[Compression, Env("OTEL_EXPORTER_OTLP_COMPRESSION")] = Field(
        "gzip", description="of requests"
    )
    timeout: Annotated[Duration, Env("OTEL_EXPORTER_OTLP_TIMEOUT", unit="ms")] = Field(
        10.0, gt=0, description="for one request, answer included; a bare number in a variable is in milliseconds"
    )
    tls: OtlpTls = Field(default_factory=OtlpTls, description="TLS")
    proxy_url: Annotated[Secret | None, AfterValidator(_checked_proxy)] = Field(
        None, description="HTTP proxy to go through, `http://[user:password@]host:port`; the environment's are not used"
    )
    traces: SignalOptions = Field(default_factory=SignalOptions, description="for traces")
    metrics: SignalOptions = Field(default_factory=SignalOptions, description="for metrics")
    logs: SignalOptions = Field(default_factory=SignalOptions, description="for logs")
    sending_queue: QueueConfig = Field(default_factory=QueueConfig, description="batching and queueing")
    retry_on_failure: RetryConfig = Field(default_factory=RetryConfig, description="retrying")
    auth_grace: Duration = Field(
        600.0,
        ge=0,
        description="how long a destination may refuse us (key, right, path) before its data is dropped; "
        "0: dropped at once, as the specification has it",
    )
    temporality: Annotated[
        Literal["cumulative", "delta"],
        BeforeValidator(_lower),
        Env("OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE"),
    ] = Field(
        "cumulative",
        description="counters and histograms as totals since they began, or as what came since they were told last, "
        "which is what Datadog, Dynatrace and New Relic want",
    )
    max_requests_per_second: int = Field(0, ge=0, description="for all kinds together; 0: as many as it takes")

    @abstractmethod
    def endpoint_of(self, kind: Kind) -> str:
        """Return where `kind` goes, as the transport wants it."""

    @abstractmethod
    def uses_tls(self, kind: Kind) -> bool:
        """Tell whether `kind` goes over TLS."""

    def route(self, kind: Kind) -> Route:
        """Return what holds for `kind`: its own options first, then the general ones."""
        own: SignalOptions = getattr(self, kind)
        files = {name: value for name, value in own.tls if value is not None}
        return Route(
            endpoint=self.endpoint_of(kind),
            headers=self.headers if own.headers is None else own.headers,
            compression=own.compression or self.compression,
            timeout=own.timeout or self.timeout,
            tls=self.tls.model_copy(update=files),
        )

    def check_files(self) -> None:
        """Read every file that is named; raises `StartupError` for the first that cannot be used."""
        for kind in Kind:
            route = self.route(kind)
            for value in route.headers.values():
                if isinstance(value, SecretFile):
                    value.read()
            if self.uses_tls(kind):
                route.tls.context()
