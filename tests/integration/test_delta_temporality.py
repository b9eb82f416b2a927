"""Delta temporality, from signals to an endpoint, as Datadog's OTLP intake wants it; and the agent's own metrics."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.metrics.v1 import metrics_pb2 as pb

from tests.backends import backend_of
from tests.conftest import ObservedSink, Running
from tests.integration.test_self_metrics import Own, own
from tests.integration.test_whole_path import publish
from tests.sending import GRPC, HTTP
from tests.support import Story, envelope

__all__ = ["own"]  # a fixture
DELTA = pb.AGGREGATION_TEMPORALITY_DELTA


async def test_datadogs_otlp_intake_gets_its_key_and_differences(
    yaml: str, running: Running, sink: ObservedSink, client: "redis.asyncio.Redis", namespace: str, tmp_path: Path
) -> None:
    key = tmp_path / "dd-api-key"
    key.write_text("0123456789abcdef\n")
    text = yaml.replace(
        "timeout: 2s", f"timeout: 2s\n    temporality: delta\n    headers: {{dd-api-key: {{file: {key}}}}}"
    )
    told: list[Any] = []
    changed = sink.on_request

    def take() -> None:
        told.extend(metric for name in list(sink.metrics) if (metric := sink.metrics.pop(name)))
        changed()

    def succeeded() -> list[int]:
        points = [metric.sum.data_points for metric in told if metric.name == "stem.tasks.succeeded"]
        return [point.as_int for each in points for point in each]

    sink.on_request = take
    async with running(text) as agent:
        story = Story(namespace=namespace)
        for count in (7, 3):
            before = sum(succeeded())
            payloads = [each for index in range(count) for each in story.run(task=envelope(id=f"{count}-{index}"))]
            await publish(client, namespace, payloads)
            await sink.until(lambda expected=before + count: sum(succeeded()) == expected)  # type: ignore[misc]
    assert sum(succeeded()) == 10
    counting = [metric for metric in told if metric.WhichOneof("data") != "gauge"]
    assert {getattr(metric, metric.WhichOneof("data")).aggregation_temporality for metric in counting} == {DELTA}
    assert (
        sum(
            point.count
            for metric in told
            for point in metric.histogram.data_points
            if metric.name == "stem.task.duration"
        )
        == 10
    )
    assert {header["dd-api-key"] for header in sink.headers} == {"0123456789abcdef"}
    account = agent.ledger.account("otlp_http", "metrics")
    assert account.accepted == account.delivered


@pytest.mark.parametrize("transport", [HTTP, GRPC])
async def test_the_agents_own_metrics_are_differences_too(transport: str, own: Any) -> None:
    async with backend_of(transport) as backend:
        mine: Own = own(transport, {"endpoint": f"http://127.0.0.1:{backend.port}", "temporality": "delta"})
        latency = mine.telemetry.histogram("stem_agent.pipeline.latency")
        for count in (3, 2, 0):
            mine.telemetry.count("stem_agent.signals.gaps", count)
            latency.observe(0.3, count)
            await mine.export()
        await asyncio.sleep(0)
        told: dict[str, list[Any]] = {}
        for request in backend.requests:
            for entry in ExportMetricsServiceRequest.FromString(request.body).resource_metrics:
                for metric in (metric for scope in entry.scope_metrics for metric in scope.metrics):
                    told.setdefault(metric.name, []).append(metric)
    gaps, latencies = told["stem_agent.signals.gaps"], told["stem_agent.pipeline.latency"]
    assert [metric.sum.data_points[0].as_int for metric in gaps] == [3, 2, 0]
    assert {metric.sum.aggregation_temporality for metric in gaps} == {DELTA}
    points = [metric.histogram.data_points[0] for metric in latencies]
    assert [(point.count, round(point.sum, 6)) for point in points] == [(3, 0.9), (2, 0.6)]
    assert points[1].start_time_unix_nano == points[0].time_unix_nano
    assert {metric.histogram.aggregation_temporality for metric in latencies} == {DELTA}
    assert not points[0].HasField("min")
