"""The agent's own metrics at the moment they are asked for, as OTLP messages."""

from collections.abc import Mapping

from opentelemetry.exporter.otlp.proto.common.metrics_encoder import encode_metrics
from opentelemetry.proto.metrics.v1.metrics_pb2 import Metric
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from agent.core.ledger import Ledger
from agent.telemetry.events import Telemetry
from agent.telemetry.self_failures import own_resource
from agent.telemetry.self_metrics import own_provider, with_histograms


class SelfScrape:
    """Reads counters, gauges, histograms and the ledger; nothing runs between two readings."""

    def __init__(self, attributes: Mapping[str, str], telemetry: Telemetry, ledger: Ledger) -> None:
        self.resource: Mapping[str, object] = dict(own_resource(attributes).attributes)
        self._telemetry = telemetry
        self._reader = InMemoryMetricReader()
        self._provider = own_provider(self._reader, attributes, telemetry, ledger)

    def read(self) -> list[Metric]:
        """Return all metrics, cumulative since the agent began; may be called in any thread, one at a time."""
        if (collected := self._reader.get_metrics_data()) is None:
            return []
        request = encode_metrics(with_histograms(collected, self._telemetry))
        return [
            metric for entry in request.resource_metrics for scope in entry.scope_metrics for metric in scope.metrics
        ]

    def close(self) -> None:
        """Stop; may be called once."""
        self._provider.shutdown()
