"""Where the agent's own telemetry goes, and what the SDK has to say about getting there."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import requests
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.sdk.resources import Resource

from agent import __version__
from agent.telemetry.events import Event, Telemetry


@dataclass(frozen=True, slots=True)
class Destination:
    """A destination in the stock exporters' terms; `url` is complete, `timeout` in seconds."""

    url: str
    headers: Mapping[str, str]
    gzip: bool
    timeout: float
    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None
    insecure_skip_verify: bool = False

    def options(self) -> dict[str, Any]:
        """Return what a stock OTLP/HTTP exporter is made with, to take the same road as the agent's exporters."""
        session = requests.Session()
        session.trust_env = False  # no proxies and no .netrc from the environment
        if self.insecure_skip_verify:
            session.verify = False
        return {
            "session": session,
            "endpoint": self.url,
            # Never empty: else the stock exporter takes from the environment what the file left out on purpose.
            "headers": {"Accept-Encoding": "identity", **self.headers},
            "compression": Compression.Gzip if self.gzip else Compression.NoCompression,
            "timeout": self.timeout,
            "certificate_file": self.ca_file,
            "client_certificate_file": self.cert_file,
            "client_key_file": self.key_file,
        }


def own_resource(attributes: Mapping[str, str]) -> Resource:
    """Return the resource of the agent itself; `attributes` are those of what it tells about."""
    return Resource({**attributes, "service.name": "stem-agent", "service.version": __version__})


@dataclass(frozen=True, slots=True)
class SelfMetricsFailed(Event):
    """The agent's own metrics could not be exported."""

    logger: str

    phrase: ClassVar[str] = "failed to export the agent's own metrics"
    counter: ClassVar[str | None] = "stem_agent.self_metrics.failures"
    labels: ClassVar[tuple[str, ...]] = ("logger",)


@dataclass(frozen=True, slots=True)
class SelfLogsFailed(Event):
    """The agent's own log lines could not be exported; standard error has them."""

    logger: str

    phrase: ClassVar[str] = "failed to export the agent's own log lines"
    counter: ClassVar[str | None] = "stem_agent.self_logs.failures"
    labels: ClassVar[tuple[str, ...]] = ("logger",)


class _FailureHandler(logging.Handler):
    """Turns the SDK's log lines into one event: their text may quote a header's value, and comes once a retry."""

    def __init__(self, telemetry: Telemetry) -> None:
        super().__init__(logging.WARNING)
        self._telemetry = telemetry

    def emit(self, record: logging.LogRecord) -> None:
        event = SelfLogsFailed if "log" in record.name else SelfMetricsFailed
        self._telemetry.emit(event(record.name))


def hear_failures(telemetry: Telemetry) -> None:
    """Have failures of the SDK told as events."""
    library = logging.getLogger("opentelemetry")
    library.handlers[:] = [_FailureHandler(telemetry)]
    library.propagate = False
