"""A real OTLP/HTTP endpoint that remembers what it received: for the demo, and for the tests."""

import gzip
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from operator import add
from typing import Any

from aiohttp import web
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest, ExportLogsServiceResponse
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue

Values = dict[str, Any]
Answer = Callable[[web.Request], Awaitable[web.StreamResponse | None]]
"""What a test wants answered instead of success; None lets the request through."""

MAX_REQUEST = 64 << 20


def plain(value: AnyValue) -> Any:
    """Return an attribute's value as Python has it."""
    which = value.WhichOneof("value")
    if which == "array_value":
        return [plain(item) for item in value.array_value.values]
    return getattr(value, which) if which else None


def attributes(pairs: "Any") -> Values:
    """Return attributes as a dict."""
    return {pair.key: plain(pair.value) for pair in pairs if isinstance(pair, KeyValue)}


class Sink:
    """Listens on localhost; `spans`, `logs` and `metrics` hold what came, in the order of arrival.

    `resources` maps each kind to the resource attributes seen last; `requests` counts requests by kind, `batches`
    has the number of items of each request that was accepted. `answer` may refuse. Metrics are cumulative; after
    `next_sender`, what the sender before had counted is added to what the next one says.
    """

    def __init__(self) -> None:
        self.spans: list[Any] = []
        self.logs: list[Any] = []
        self.metrics: dict[str, Any] = {}
        self.own_metrics: dict[str, Any] = {}
        self._latest: dict[tuple[bool, str], dict[str, Any]] = {}
        self._counted: tuple[dict[str, Any], dict[str, Any]] = ({}, {})
        self.resources: dict[str, Values] = {}
        self.scopes: set[tuple[str, str]] = set()
        self.headers: list[dict[str, str]] = []
        self.requests: Counter[str] = Counter()
        self.batches: list[tuple[str, int]] = []
        self.answer: Answer | None = None
        self.on_request: Callable[[], None] | None = None
        self._runner: web.AppRunner | None = None
        self.port = 0

    @property
    def url(self) -> str:
        """The base URL to send to."""
        return f"http://127.0.0.1:{self.port}"

    async def start(self, port: int = 0, ssl_context: Any = None) -> None:
        """Listen on `port`, or on a free one."""
        app = web.Application(client_max_size=MAX_REQUEST)
        app.router.add_post("/v1/traces", self._traces)
        app.router.add_post("/v1/metrics", self._metrics)
        app.router.add_post("/v1/logs", self._logs)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", port, ssl_context=ssl_context, reuse_address=True)
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        """Stop listening; what was received stays."""
        if self._runner:
            await self._runner.cleanup()
            self._runner = None

    def next_sender(self) -> None:
        """Note that the sender has ended; the next one begins to count from zero, or goes on from where it was."""
        self._counted = (dict(self.metrics), dict(self.own_metrics))
        self._latest.clear()

    async def _receive(self, request: web.Request, kind: str) -> bytes | web.StreamResponse:
        self.requests[kind] += 1
        self.headers.append(dict(request.headers))
        # aiohttp's server inflates gzip bodies itself where the header says so.
        body = await request.read()
        if self.answer and (answer := await self.answer(request)):
            return answer
        return gzip.decompress(body) if body[:2] == b"\x1f\x8b" else body

    async def _traces(self, request: web.Request) -> web.StreamResponse:
        body = await self._receive(request, "traces")
        if not isinstance(body, bytes):
            return body
        spans: list[Any] = []
        for entry in ExportTraceServiceRequest.FromString(body).resource_spans:
            self.resources["traces"] = attributes(entry.resource.attributes)
            for scope in entry.scope_spans:
                self.scopes.add((scope.scope.name, scope.schema_url))
                spans.extend(scope.spans)
        self.spans.extend(spans)
        return self._accept("traces", len(spans), ExportTraceServiceResponse())

    async def _logs(self, request: web.Request) -> web.StreamResponse:
        body = await self._receive(request, "logs")
        if not isinstance(body, bytes):
            return body
        records: list[Any] = []
        for entry in ExportLogsServiceRequest.FromString(body).resource_logs:
            self.resources["logs"] = attributes(entry.resource.attributes)
            for scope in entry.scope_logs:
                records.extend(scope.log_records)
        self.logs.extend(records)
        return self._accept("logs", len(records), ExportLogsServiceResponse())

    async def _metrics(self, request: web.Request) -> web.StreamResponse:
        body = await self._receive(request, "metrics")
        if not isinstance(body, bytes):
            return body
        count = 0
        for entry in ExportMetricsServiceRequest.FromString(body).resource_metrics:
            resource = attributes(entry.resource.attributes)
            own = resource.get("service.name") == "stem-agent"
            self.resources["own_metrics" if own else "metrics"] = resource
            for scope in entry.scope_metrics:
                for metric in scope.metrics:
                    count += len(points(metric))
                    senders = self._latest.setdefault((own, metric.name), {})
                    senders[resource.get("service.instance.id", "")] = metric
                    latest = _together(list(senders.values()))
                    if before := self._counted[own].get(metric.name):
                        _add(latest, before)
                    (self.own_metrics if own else self.metrics)[metric.name] = latest
        return self._accept("metrics", count, ExportMetricsServiceResponse())

    def _accept(self, kind: str, count: int, response: Any) -> web.Response:
        self.batches.append((kind, count))
        if self.on_request:
            self.on_request()
        return web.Response(body=response.SerializeToString(), content_type="application/x-protobuf")

    def named(self, role: str) -> Iterator[Any]:
        """Yield the spans whose name begins with `role`: `process`, `wait`, `send`."""
        return (span for span in self.spans if span.name.startswith(f"{role} "))

    def sums(self, name: str, *keys: str) -> Counter[tuple[Any, ...]]:
        """Return a counter's last values by the given attributes."""
        return _totals(self.metrics.get(name), keys)

    def own(self, name: str, *keys: str) -> Counter[tuple[Any, ...]]:
        """Return one of the agent's own counters or gauges by the given attributes."""
        return _totals(self.own_metrics.get(name), keys)


def points(metric: Any) -> Any:
    """Return a metric's data points, whatever its kind."""
    return metric.sum.data_points or metric.gauge.data_points or metric.histogram.data_points


def _together(metrics: list[Any]) -> Any:
    """Return the points of all senders as one metric: an agent's own, and the fleet's."""
    if len(metrics) == 1:
        return metrics[0]
    told = type(metrics[0])()
    told.CopyFrom(metrics[0])
    for other in metrics[1:]:
        points(told).extend(points(other))
    return told


def _add(metric: Any, before: Any) -> None:
    """Add to a counter or histogram, point by point, what an earlier sender had counted."""
    if metric.WhichOneof("data") == "gauge":
        return
    known = {_series(point): point for point in points(metric)}
    for point in points(before):
        mine = known.get(_series(point))
        if mine is None:
            points(metric).add().CopyFrom(point)
        elif mine.start_time_unix_nano == point.start_time_unix_nano:
            continue  # it goes on: what was counted before is in it
        elif hasattr(mine, "as_int"):
            mine.as_int += point.as_int
        else:
            mine.count += point.count
            mine.sum += point.sum
            mine.bucket_counts[:] = map(add, mine.bucket_counts, point.bucket_counts)


def _series(point: Any) -> tuple[tuple[str, str], ...]:
    return tuple(sorted((pair.key, str(plain(pair.value))) for pair in point.attributes))


def _totals(metric: Any, keys: tuple[str, ...]) -> Counter[tuple[Any, ...]]:
    totals: Counter[tuple[Any, ...]] = Counter()
    for point in points(metric) if metric else ():
        found = attributes(point.attributes)
        histogram = not hasattr(point, "as_int")
        value = point.count if histogram else point.as_int or int(point.as_double)
        totals[tuple(found.get(key) for key in keys)] += value
    return totals
