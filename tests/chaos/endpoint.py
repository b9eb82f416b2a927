"""A real OTLP/HTTP endpoint with moods. It counts every batch once, and recognises repeats by their id."""

import asyncio
import contextlib
import hashlib
import random
from dataclasses import dataclass, field
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

from agent.demo.sink import points
from agent.exporters.sending.sealed import BATCH_ID
from tests.chaos.faults import What

RUN = "chaos-run"
"""Header by which an agent process says which of them it is."""
SLOW_SECONDS = (0.1, 2.5)


@dataclass(slots=True)
class Acceptance:
    """One time that a batch was accepted: when its request had arrived, and whether the answer was all written."""

    run: int
    at: float
    answered: bool = False


@dataclass(slots=True)
class Receipt:
    """A batch that was accepted, as it was the first time: `rejected` of its `items` are not wanted."""

    kind: str
    items: int
    rejected: int
    acceptances: list[Acceptance] = field(default_factory=list)


class Endpoint:
    """Listens on localhost, unless it `refuses`. Times are the event loop's."""

    def __init__(self, seed: int) -> None:
        self.receipts: dict[str, Receipt] = {}
        self.differing: set[str] = set()
        self.mood: What | None = None
        self.busy = False
        """Whether it takes nothing, whatever its mood."""
        self.port = 0
        self._chance = random.Random(seed)
        self._digests: dict[str, tuple[str, bytes]] = {}
        self._changed = asyncio.Event()
        self._runner: web.AppRunner | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def start(self) -> None:
        app = web.Application(client_max_size=64 << 20)
        app.router.add_post("/v1/{kind}", self._receive)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port, reuse_address=True).start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        if self._runner:
            await self._runner.cleanup()
            self._runner = None

    async def turn(self, mood: What | None) -> None:
        """Be in another mood, and let go of those who wait."""
        self.mood = mood
        self._changed.set()
        self._changed = asyncio.Event()
        if mood is What.REFUSES:
            await self.stop()
        elif not self._runner:
            await self.start()

    async def _receive(self, request: web.Request) -> web.StreamResponse:
        kind, body, at = request.match_info["kind"], await request.read(), asyncio.get_running_loop().time()
        batch_id, run = request.headers[BATCH_ID], int(request.headers[RUN])
        digest = (kind, hashlib.sha256(body).digest())  # aiohttp has inflated it
        if self._digests.setdefault(batch_id, digest) != digest:
            self.differing.add(batch_id)
        mood = What.BUSY if self.busy else self.mood
        match mood:
            case What.HANGS:
                await self._changed.wait()
                return _hang_up(request)
            case What.BUSY:
                return web.Response(status=503)
            case What.LATER:
                return web.Response(status=503, headers={"Retry-After": "1"})
            case What.DENIES:
                return web.Response(status=401, text="no such key")
            case What.SLOW if self._chance.random() < 0.5:
                await asyncio.sleep(self._chance.uniform(*SLOW_SECONDS))
        receipt = self._accept(kind, body, batch_id, partly=mood is What.PARTLY)
        acceptance = Acceptance(run, at)
        receipt.acceptances.append(acceptance)
        if mood is What.LOSES:
            return _hang_up(request)
        if mood is What.SLOW:
            await asyncio.sleep(self._chance.uniform(*SLOW_SECONDS))
        response = web.Response(body=_answer(kind, receipt.rejected), content_type="application/x-protobuf")
        with contextlib.suppress(ConnectionError):
            await response.prepare(request)
            await response.write_eof()
            acceptance.answered = request.transport is not None and not request.transport.is_closing()
        return response

    def _accept(self, kind: str, body: bytes, batch_id: str, *, partly: bool) -> Receipt:
        receipt = self.receipts.get(batch_id)
        if receipt is None:
            items = count(kind, body)
            rejected = self._chance.randint(1, items) if partly else 0
            receipt = self.receipts[batch_id] = Receipt(kind, items, rejected)
        return receipt


def _hang_up(request: web.Request) -> web.Response:
    if request.transport:
        request.transport.abort()
    return web.Response()


def count(kind: str, body: bytes) -> int:
    """Return the spans, log records or data points of a request."""
    match kind:
        case "traces":
            traces = ExportTraceServiceRequest.FromString(body).resource_spans
            return sum(len(scope.spans) for entry in traces for scope in entry.scope_spans)
        case "logs":
            logs = ExportLogsServiceRequest.FromString(body).resource_logs
            return sum(len(scope.log_records) for entry in logs for scope in entry.scope_logs)
    metrics = ExportMetricsServiceRequest.FromString(body).resource_metrics
    scopes = (scope for entry in metrics for scope in entry.scope_metrics)
    return sum(len(points(metric)) for scope in scopes for metric in scope.metrics)


def _answer(kind: str, rejected: int) -> bytes:
    answer: Any
    match kind:
        case "traces":
            answer = ExportTraceServiceResponse()
            answer.partial_success.rejected_spans = rejected
        case "logs":
            answer = ExportLogsServiceResponse()
            answer.partial_success.rejected_log_records = rejected
        case _:
            answer = ExportMetricsServiceResponse()
            answer.partial_success.rejected_data_points = rejected
    return bytes(answer.SerializeToString()) if rejected else b""
