"""What an operator writes about `otlp_grpc`."""

import re
from typing import Annotated, Any, Literal
from urllib.parse import SplitResult, urlsplit

from pydantic import AfterValidator, BeforeValidator, Field

from agent.exporters.otlp.config import OtlpConfig, OtlpTls, SignalOptions, SignalTls
from agent.exporters.otlp.headers import Headers, HeaderValue
from agent.otlp.batch import Kind
from agent.settings.model import Env
from agent.settings.types import Flag, Secret, expected, is_host_alone, refuse_credentials, split_url

DEFAULT_PORT = 4317
_URL_PORTS = {"http": 80, "https": 443}
_METADATA_NAME = re.compile(r"[0-9a-z_.-]+")
_METADATA_VALUE = re.compile(r"[\x20-\x7e]*")


def _with_scheme(endpoint: str) -> str:
    return endpoint if "://" in endpoint else f"//{endpoint}"


def _parse_endpoint(value: Any) -> Any:
    """Check `http://host:port`, `https://host:port` or `host:port`."""
    if not isinstance(value, str):
        return value
    wanted = expected("a URL such as http://localhost:4317 or https://otlp.example.com, or host:port")
    url = split_url(_with_scheme(value), {"", "http", "https"}, wanted)
    refuse_credentials(url)
    if not is_host_alone(url):
        raise expected("a URL without a path: grpc has none (otlp_http has)")
    return value


def _no_zstd(value: Any) -> Any:
    if value == "zstd":
        raise expected("gzip or none (the grpc library has no zstd; otlp_http has)")
    return value


def _verified(value: Any) -> Any:
    if value in {True, "true"}:
        raise expected(
            "false: the grpc library always verifies; trust the certificate itself as ca_file, with the name in it as "
            "server_name_override, or set insecure: true for a connection without tls"
        )
    return value


def _metadata(headers: dict[str, HeaderValue]) -> dict[str, HeaderValue]:
    for name, value in headers.items():
        lower = name.lower()
        if not _METADATA_NAME.fullmatch(lower) or lower.startswith("grpc-") or lower.endswith("-bin"):
            raise expected(f"the name of grpc metadata in place of {name!r}: letters, digits, `-_.`, no grpc-, no -bin")
        if isinstance(value, Secret) and not _METADATA_VALUE.fullmatch(value.get_secret_value()):
            raise expected(f"a value of {name!r} in printable ASCII, as grpc has it")
    return headers


Endpoint = Annotated[str, BeforeValidator(_parse_endpoint)]
Metadata = Annotated[Headers, AfterValidator(_metadata)]
GrpcCompression = Annotated[Literal["gzip", "none"], BeforeValidator(_no_zstd)]
_INSECURE = "no TLS, where the endpoint is host:port; a scheme decides by itself"


class GrpcTls(OtlpTls):
    """TLS towards the destination."""

    insecure: Annotated[Flag, Env("OTEL_EXPORTER_OTLP_INSECURE")] = Field(default=False, description=_INSECURE)
    insecure_skip_verify: Annotated[Flag, BeforeValidator(_verified)] = Field(
        default=False, description="not possible with grpc: the library always verifies"
    )


class GrpcSignalTls(SignalTls):
    """Files for one signal, each in place of the general one."""

    insecure: Annotated[Flag | None, Env("OTEL_EXPORTER_OTLP_{}_INSECURE", unless="tls.insecure")] = Field(
        None, description=_INSECURE
    )


class GrpcSignalOptions(SignalOptions):
    """What holds for one signal in place of the general options."""

    headers: Annotated[Metadata | None, Env("OTEL_EXPORTER_OTLP_{}_HEADERS", unless="headers")] = Field(
        None, description="in place of all general ones"
    )
    compression: Annotated[GrpcCompression | None, Env("OTEL_EXPORTER_OTLP_{}_COMPRESSION", unless="compression")] = (
        Field(None, description="of requests")
    )
    tls: GrpcSignalTls = Field(default_factory=GrpcSignalTls, description="files")


class OtlpGrpcConfig(OtlpConfig):
    """Send to an OTLP/gRPC endpoint: a Collector's, or a vendor's."""

    endpoint: Annotated[Endpoint, Env("STEM_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")] = Field(
        "http://localhost:4317",
        description="`http://host:port` without TLS, `https://host:port` with, `host:port` as `tls.insecure` says; "
        "a URL's port may be left out as usual (80, 443), a bare host's is 4317",
    )
    traces_endpoint: Annotated[Endpoint | None, Env("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", unless="endpoint")] = Field(
        None, description="endpoint for traces"
    )
    metrics_endpoint: Annotated[Endpoint | None, Env("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", unless="endpoint")] = Field(
        None, description="endpoint for metrics"
    )
    logs_endpoint: Annotated[Endpoint | None, Env("OTEL_EXPORTER_OTLP_LOGS_ENDPOINT", unless="endpoint")] = Field(
        None, description="endpoint for logs"
    )
    headers: Annotated[Metadata, Env("OTEL_EXPORTER_OTLP_HEADERS")] = Field(
        default_factory=dict,
        description="sent as metadata with every request, as `name: value` or `name: {file: PATH}`; values stay secret",
    )
    compression: Annotated[GrpcCompression, Env("OTEL_EXPORTER_OTLP_COMPRESSION")] = Field(
        "gzip", description="of requests"
    )
    tls: GrpcTls = Field(default_factory=GrpcTls, description="TLS")
    traces: GrpcSignalOptions = Field(default_factory=GrpcSignalOptions, description="for traces")
    metrics: GrpcSignalOptions = Field(default_factory=GrpcSignalOptions, description="for metrics")
    logs: GrpcSignalOptions = Field(default_factory=GrpcSignalOptions, description="for logs")

    def endpoint_of(self, kind: Kind) -> str:
        """Return `host:port` of `kind`, with the port that its endpoint means where it names none."""
        url = self._url(kind)
        host = f"[{url.hostname}]" if ":" in (url.hostname or "") else url.hostname
        return f"{host}:{url.port or _URL_PORTS.get(url.scheme, DEFAULT_PORT)}"

    def uses_tls(self, kind: Kind) -> bool:
        """Tell whether `kind` goes over TLS: its scheme says so, or else `insecure` (OTLP exporter specification)."""
        own: GrpcSignalOptions = getattr(self, kind)
        insecure = self.tls.insecure if own.tls.insecure is None else own.tls.insecure
        return {"http": False, "https": True}.get(self._url(kind).scheme, not insecure)

    def _url(self, kind: Kind) -> SplitResult:
        return urlsplit(_with_scheme(getattr(self, f"{kind}_endpoint") or self.endpoint))
