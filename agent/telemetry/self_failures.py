"""What the SDK has to say about exporting the agent's own telemetry, and whose telemetry that is."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from opentelemetry.sdk.resources import Resource

from agent import __version__
from agent.telemetry.events import Event, Telemetry


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
