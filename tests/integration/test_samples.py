"""The sample files are run: what a vendor asks for arrives at its paths, with its headers, as differences or totals."""

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import redis.asyncio
from aiohttp import web
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.metrics.v1 import metrics_pb2 as pb

from agent.demo.valkey import free_port
from tests.conftest import PATIENCE_SECONDS, ObservedSink
from tests.integration.conftest import Child, Start
from tests.integration.test_whole_path import publish
from tests.samples import GATEWAY, SIDECAR, VENDORS, vendor_file
from tests.support import Story, envelope, found

QUICK = [
    *("--set", "connectors.correlate.settle=100ms", "--set", "connectors.correlate.metrics_interval=100ms"),
    *("--set", "exporters.otlp_http.sending_queue.batch.flush_timeout=50ms"),
]
CUMULATIVE, DELTA = pb.AGGREGATION_TEMPORALITY_CUMULATIVE, pb.AGGREGATION_TEMPORALITY_DELTA
KINDS = ("traces", "metrics", "logs")


@dataclass(frozen=True)
class Vendor:
    """What a vendor's documentation asks for: `variable` has the URL, `headers` hold for every kind that has no own."""

    variable: str
    base: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    own: dict[str, dict[str, str]] = field(default_factory=dict)
    encoding: str | None = "gzip"
    temporality: int = CUMULATIVE


WANTED = {
    "datadog": Vendor(
        "DATADOG_OTLP_ENDPOINT",
        headers={"dd-api-key": "dd-secret"},
        own={
            "traces": {"dd-api-key": "dd-secret", "compute_stats": "true"},
            "metrics": {"dd-api-key": "dd-secret", "dd-otel-metric-config": '{"resource_attributes_as_tags": true}'},
        },
        temporality=DELTA,
    ),
    "dynatrace": Vendor("DT_ENDPOINT", "/api/v2/otlp", {"Authorization": "Api-Token dt-secret"}, temporality=DELTA),
    "elastic": Vendor("ELASTIC_OTLP_ENDPOINT", headers={"Authorization": "ApiKey es-secret"}),
    "google-cloud": Vendor("STEM_OTLP_ENDPOINT"),
    "grafana-cloud": Vendor("GRAFANA_CLOUD_OTLP_ENDPOINT", "/otlp", {"Authorization": "Basic MTpzZWNyZXQ="}),
    "honeycomb": Vendor(
        "HONEYCOMB_ENDPOINT",
        headers={"x-honeycomb-team": "hc-secret"},
        own={"metrics": {"x-honeycomb-team": "hc-secret", "x-honeycomb-dataset": "stem-metrics"}},
    ),
    "local-collector": Vendor("STEM_OTLP_ENDPOINT", encoding=None),
    "new-relic": Vendor(
        "NEW_RELIC_OTLP_ENDPOINT", headers={"api-key": "nr-secret"}, encoding="zstd", temporality=DELTA
    ),
}
SECRETS = ("dd-secret", "dt-secret", "es-secret", "MTpzZWNyZXQ=", "hc-secret", "nr-secret")
THEIRS = {name for each in WANTED.values() for headers in (each.headers, *each.own.values()) for name in headers}
"""Every header that some vendor asks for: what is none of its own, a vendor does not get."""


class Intake:
    """An OTLP endpoint that takes whatever comes to whatever path, and remembers it."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, dict[str, str], bytes]] = []
        self._came = asyncio.Event()

    async def take(self, request: web.Request) -> web.Response:
        body = await request.read()  # aiohttp's server inflates bodies itself where the header says so
        self.requests.append((request.path, dict(request.headers), body))
        self._came.set()
        return web.Response(content_type="application/x-protobuf")

    def spans(self) -> list[Any]:
        bodies = [body for path, _, body in self.requests if path.endswith("/v1/traces")]
        resources = [each for body in bodies for each in ExportTraceServiceRequest.FromString(body).resource_spans]
        return [span for resource in resources for scope in resource.scope_spans for span in scope.spans]

    def logs(self) -> list[Any]:
        bodies = [body for path, _, body in self.requests if path.endswith("/v1/logs")]
        resources = [each for body in bodies for each in ExportLogsServiceRequest.FromString(body).resource_logs]
        return [record for resource in resources for scope in resource.scope_logs for record in scope.log_records]

    def metrics(self) -> list[Any]:
        bodies = [body for path, _, body in self.requests if path.endswith("/v1/metrics")]
        resources = [each for body in bodies for each in ExportMetricsServiceRequest.FromString(body).resource_metrics]
        return [metric for resource in resources for scope in resource.scope_metrics for metric in scope.metrics]

    def all_there(self) -> bool:
        """Tell whether one task is there in all three kinds: its spans, its start and end, its count."""
        names = {metric.name for metric in self.metrics()}
        return len(self.spans()) == 3 and len(self.logs()) >= 2 and "stem.tasks.succeeded" in names

    async def until_all_there(self) -> None:
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not self.all_there():
                self._came.clear()
                await self._came.wait()


@pytest.fixture
async def intake() -> AsyncIterator[tuple[Intake, str]]:
    mine, app = Intake(), web.Application()
    app.router.add_post("/{path:.*}", mine.take)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield mine, f"http://127.0.0.1:{runner.addresses[0][1]}"
    await runner.cleanup()


def test_every_vendor_is_run() -> None:
    assert set(WANTED) == set(VENDORS)


@pytest.mark.parametrize("name", WANTED)
async def test_a_vendor_gets_what_it_asks_for(
    name: str,
    start: Start,
    intake: tuple[Intake, str],
    client: "redis.asyncio.Redis",
    redis_url: str,
    namespace: str,
) -> None:
    (mine, url), wanted = intake, WANTED[name]
    environ = {**VENDORS[name], "STEM_BROKER_URL": redis_url, "STEM_WORKER_NAMESPACE": namespace}
    if "temporality: " in vendor_file(name).read_text(encoding="utf-8"):
        # What was set for other programs does not change what the vendor needs.
        other = "cumulative" if wanted.temporality == DELTA else "delta"
        environ["OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE"] = other
    environ[wanted.variable] = f"{url}{wanted.base}"
    agent: Child = await start("run", "--config", str(vendor_file(name)), *QUICK, **environ)
    await agent.until("stem-agent running")
    await publish(client, namespace, Story(namespace=namespace).run())
    await mine.until_all_there()
    assert await agent.end(signal.SIGTERM) == 0
    assert {path for path, _, _ in mine.requests} == {f"{wanted.base}/v1/{kind}" for kind in KINDS}
    for path, headers, _ in mine.requests:
        own = {name: value for name, value in headers.items() if name in THEIRS}
        assert own == wanted.own.get(path.rpartition("/")[2], wanted.headers)
        assert headers["Content-Type"] == "application/x-protobuf"
    ours = [headers for _, headers, _ in mine.requests if headers["User-Agent"].startswith("stem-agent/")]
    assert {headers.get("Content-Encoding") for headers in ours} == {wanted.encoding}
    counting = [metric for metric in mine.metrics() if metric.WhichOneof("data") != "gauge"]
    assert {"stem.tasks.succeeded", "stem.task.duration", "stem_agent.items.delivered"} <= {m.name for m in counting}
    told = {
        getattr(metric, metric.WhichOneof("data")).aggregation_temporality for metric in counting if only_rises(metric)
    }
    assert told == {wanted.temporality}
    assert not [secret for secret in SECRETS if secret in agent.output]


def only_rises(metric: Any) -> bool:
    """Tell whether temporality matters: sums that also fall are told as they are."""
    return metric.WhichOneof("data") == "histogram" or metric.sum.is_monotonic


@contextlib.asynccontextmanager
async def answered(port: int) -> AsyncIterator[aiohttp.ClientResponse]:
    async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{port}/readyz") as response:
        yield response


async def test_a_sidecar_tells_of_its_own_worker_only(
    start: Start, sink: ObservedSink, client: "redis.asyncio.Redis", redis_url: str, namespace: str
) -> None:
    port = free_port()
    agent = await start(
        *("run", "--config", str(SIDECAR), *QUICK, "--set", f"extensions.health.endpoint=127.0.0.1:{port}"),
        STEM_BROKER_URL=redis_url,
        STEM_WORKER_NAMESPACE=namespace,
        STEM_OTLP_ENDPOINT=sink.url,
        STEM_EMITTER="pod-1",
    )
    await agent.until("stem-agent running")
    async with answered(port) as response:
        assert response.status == 200
    other = Story("worker-2", "pod-2", namespace).run(task=envelope(id="other"))
    await publish(client, namespace, other, emitter="pod-2")
    await publish(client, namespace, Story(namespace=namespace).run())
    await sink.until(lambda: len(sink.spans) == 3)
    assert await agent.end(signal.SIGTERM) == 0
    assert {found(span)["stem.worker.id"] for span in sink.named("process")} == {"worker-1"}


async def test_a_gateway_keeps_on_its_disk_what_was_not_delivered(
    start: Start, sink: ObservedSink, client: "redis.asyncio.Redis", redis_url: str, namespace: str, tmp_path: Path
) -> None:
    port = free_port()
    command = ["run", "--config", str(GATEWAY), *QUICK, "--set", f"extensions.health.endpoint=127.0.0.1:{port}"]
    environ = {
        "STEM_BROKER_URL": redis_url,
        "STEM_WORKER_NAMESPACE": namespace,
        "STEM_OTLP_ENDPOINT": sink.url,
        "STEM_AGENT_DIRECTORY": str(tmp_path),
        "OTEL_RESOURCE_ATTRIBUTES": "service.instance.id=gateway-1",
    }
    at = sink.port
    await sink.stop()
    agent = await start(*command, "--set", "service.shutdown_timeout=1s", **environ)
    await agent.until("stem-agent running")
    async with answered(port) as response:
        assert response.status == 200
    await publish(client, namespace, Story(namespace=namespace).run())
    await agent.until("delivery failed; will retry")
    assert await agent.end(signal.SIGTERM) == 3
    await sink.start(at)
    agent = await start(*command, **environ)
    await agent.until("stem-agent running")
    await sink.until(lambda: len(sink.spans) == 3)
    assert await agent.end(signal.SIGTERM) == 0
    assert sink.sums("stem.tasks.succeeded").total() == 1
    assert sink.resources["traces"]["service.instance.id"] == "gateway-1"
