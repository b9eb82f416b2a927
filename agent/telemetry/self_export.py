"""Where the agent's own telemetry goes: each protocol's stock exporter, made anew when a key or certificate changed."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, Literal, Protocol, TypeVar

from opentelemetry.sdk._logs.export import LogRecordExporter
from opentelemetry.sdk.metrics import (
    Counter,
    Histogram,
    ObservableCounter,
    ObservableGauge,
    ObservableUpDownCounter,
    UpDownCounter,
)
from opentelemetry.sdk.metrics.export import AggregationTemporality, MetricExporter

from agent.core.errors import StartupError
from agent.settings.tls import ClientTls
from agent.telemetry.events import FileUnusable, Telemetry

SELF_TELEMETRY = "service.telemetry"


@dataclass(frozen=True, slots=True)
class Destination:
    """Where the agent's own telemetry goes; `timeout` in seconds.

    `endpoint` is a complete URL for HTTP, `host:port` for gRPC. `tls` is None for a plain connection; `version` differs
    from that of any other content of its files.
    """

    protocol: Literal["http", "grpc"]
    endpoint: str
    headers: Mapping[str, str]
    compressed: bool
    timeout: float
    tls: ClientTls | None = None
    server_name: str | None = None
    proxy_url: str | None = None
    temporality: Literal["cumulative", "delta"] = "cumulative"
    version: object = None


class _Stock(Protocol):
    def shutdown(self) -> None: ...


Stock = TypeVar("Stock", bound=_Stock)


class Renewed(Generic[Stock]):
    """The stock exporter of the destination as it is now."""

    def __init__(
        self, destination: Callable[[], Destination], make: Callable[[Destination], Stock], telemetry: Telemetry
    ) -> None:
        self._destination = destination
        self._make = make
        self._telemetry = telemetry
        self._current = destination()
        self._stock = make(self._current)

    def get(self) -> Stock:
        """Return it, made anew if the destination is another; the one before stays if that fails."""
        if (wanted := self._destination()) != self._current:
            try:
                stock = self._make(wanted)
            except StartupError as error:
                self._telemetry.emit(FileUnusable(SELF_TELEMETRY, str(error)))
            else:
                self._stock.shutdown()
                self._current, self._stock = wanted, stock
        return self._stock


def metric_exporter(destination: Destination) -> MetricExporter:
    """Return the stock exporter of metrics. Imported where it is used, as those below: each costs memory."""
    if destination.protocol == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc import metric_exporter as grpc  # noqa: PLC0415

        return grpc.OTLPMetricExporter(**_grpc_options(destination), preferred_temporality=_temporality(destination))
    from opentelemetry.exporter.otlp.proto.http import metric_exporter as http  # noqa: PLC0415

    return http.OTLPMetricExporter(**_http_options(destination), preferred_temporality=_temporality(destination))


def _temporality(destination: Destination) -> dict[type, AggregationTemporality]:
    """Return what each kind of instrument is told as; always all of them, so that nothing is taken from elsewhere."""
    cumulative = AggregationTemporality.CUMULATIVE
    counts = AggregationTemporality.DELTA if destination.temporality == "delta" else cumulative
    return {
        **dict.fromkeys((Counter, ObservableCounter, Histogram), counts),
        **dict.fromkeys((UpDownCounter, ObservableUpDownCounter, ObservableGauge), cumulative),
    }


def log_exporter(destination: Destination) -> LogRecordExporter:
    """Return the stock exporter of log records."""
    if destination.protocol == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc import _log_exporter as grpc  # noqa: PLC0415

        return grpc.OTLPLogExporter(**_grpc_options(destination))
    from opentelemetry.exporter.otlp.proto.http import _log_exporter as http  # noqa: PLC0415

    return http.OTLPLogExporter(**_http_options(destination))


def _http_options(destination: Destination) -> dict[str, Any]:
    import requests  # noqa: PLC0415
    from opentelemetry.exporter.otlp.proto.http import Compression  # noqa: PLC0415
    from requests.adapters import HTTPAdapter  # noqa: PLC0415

    tls, name = destination.tls, destination.server_name
    session = requests.Session()
    session.trust_env = False  # no proxies and no .netrc from the environment: the same road as the exporters'
    if name:
        adapter = HTTPAdapter()
        adapter.init_poolmanager(1, 1, server_hostname=name, assert_hostname=name)
        session.mount("https://", adapter)
    if proxy := destination.proxy_url:
        session.proxies = {"http": proxy, "https": proxy}
    if tls and tls.insecure_skip_verify:
        session.verify = False
    return {
        "session": session,
        "endpoint": destination.endpoint,
        # Never empty: else the stock exporter takes from the environment what the file left out on purpose.
        "headers": {"Accept-Encoding": "identity", **destination.headers},
        "compression": Compression.Gzip if destination.compressed else Compression.NoCompression,
        "timeout": destination.timeout,
        "certificate_file": tls.ca_file if tls else None,
        "client_certificate_file": tls.cert_file if tls else None,
        "client_key_file": tls.key_file if tls else None,
    }


def _grpc_options(destination: Destination) -> dict[str, Any]:
    import grpc  # noqa: PLC0415

    from agent.settings.grpc_tls import credentials  # noqa: PLC0415

    options: list[tuple[str, str | int]] = [("grpc.use_local_subchannel_pool", 1)]
    if destination.server_name:
        options.append(("grpc.ssl_target_name_override", destination.server_name))
    if destination.proxy_url:
        options.append(("grpc.http_proxy", destination.proxy_url))
    else:
        options.append(("grpc.enable_http_proxy", 0))
    return {
        "endpoint": destination.endpoint,
        "insecure": destination.tls is None,
        "credentials": credentials(destination.tls) if destination.tls else None,
        # Never empty, see above.
        "headers": {"x-stem-agent": "self", **{name.lower(): value for name, value in destination.headers.items()}},
        "timeout": destination.timeout,
        "compression": grpc.Compression.Gzip if destination.compressed else grpc.Compression.NoCompression,
        "channel_options": tuple(options),
    }
