"""The agent's own metrics go where its telemetry goes, by the same protocol, with keys and certificates as they are."""

import asyncio
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio
import trustme
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

from agent.core.ledger import Ledger
from agent.demo.sink import attributes
from agent.otlp.batch import Kind
from agent.registry import EXPORTERS
from agent.self_telemetry import _destination
from agent.settings.substitution import read
from agent.settings.validate import validate
from agent.telemetry.events import Telemetry
from agent.telemetry.self_failures import hear_failures
from agent.telemetry.self_metrics import SelfMetrics
from tests.backends import Request, Tls, backend_of, replace, write_tls
from tests.conftest import until
from tests.integration.conftest import Start
from tests.integration.test_whole_path import publish
from tests.sending import GRPC, HTTP
from tests.support import Story

BOTH = pytest.mark.parametrize("transport", [HTTP, GRPC])


def names(request: Request) -> set[str]:
    """The service and the metrics of a request."""
    found = set()
    for entry in ExportMetricsServiceRequest.FromString(request.body).resource_metrics:
        found.add(attributes(entry.resource.attributes)["service.name"])
        found |= {metric.name for scope in entry.scope_metrics for metric in scope.metrics}
    return found


class Own:
    """Self metrics of an agent with one exporter, exported when asked."""

    def __init__(self, transport: str, options: dict[str, Any]) -> None:
        document = read("", "agent.yaml", {})
        config: Any = validate(EXPORTERS[transport].config, options, ("exporters", transport), document, {})
        assert document.problems == []
        self.telemetry = Telemetry()
        hear_failures(self.telemetry)
        destination = _destination(config, Kind.METRICS, self.telemetry)
        self.metrics = SelfMetrics(self.telemetry, Ledger(), {"service.name": "shop"}, destination, interval=3600)

    async def export(self) -> None:
        await asyncio.to_thread(self.metrics._provider.force_flush, 5000)


@pytest.fixture
async def own() -> AsyncIterator[Any]:
    made: list[Own] = []

    def make(transport: str, options: dict[str, Any]) -> Own:
        made.append(Own(transport, options))
        return made[-1]

    yield make
    for each in made:
        await asyncio.to_thread(each.metrics.shutdown, 1.0)


@BOTH
async def test_a_rotated_key_and_a_replaced_certificate_are_used_by_the_next_export(
    transport: str, own: Any, tmp_path: Path
) -> None:
    old, new = trustme.CA(), trustme.CA()
    files = write_tls(tmp_path, old, old.issue_cert("agent"))
    key = tmp_path / "key"
    key.write_text("first")
    async with backend_of(transport, tls=Tls(old.issue_cert("localhost"), old)) as backend:
        options = {
            "endpoint": f"https://localhost:{backend.port}",
            "headers": {"api-key": {"file": str(key)}},
            "reload_interval": "1ms",
            "tls": {**files, "reload_interval": "1ms"},
            "compression": "none",
        }
        exporter = own(transport, options)
        await exporter.export()
        port = backend.port
        await backend.stop()
        replace(key, b"second")
        write_tls(tmp_path, new, new.issue_cert("agent"))
        await backend.start(port, Tls(new.issue_cert("localhost"), new))
        await exporter.export()
    assert [request.headers["api-key"] for request in backend.requests] == ["first", "second"]
    assert all({"stem-agent", "stem_agent.process.cpu.time"} <= names(request) for request in backend.requests)


@BOTH
async def test_a_name_other_than_the_hosts_may_be_verified(transport: str, own: Any, tmp_path: Path) -> None:
    authority = trustme.CA()
    files = write_tls(tmp_path, authority, authority.issue_cert("agent"))
    async with backend_of(transport, tls=Tls(authority.issue_cert("otlp.example.com"))) as backend:
        tls = {"ca_file": files["ca_file"], "server_name_override": "otlp.example.com"}
        await own(transport, {"endpoint": f"https://127.0.0.1:{backend.port}", "tls": tls}).export()
        assert len(backend.requests) == 1


@BOTH
async def test_a_failed_export_is_told_and_counted(transport: str, own: Any, unused_tcp_port: int) -> None:
    exporter = own(transport, {"endpoint": f"http://127.0.0.1:{unused_tcp_port}", "timeout": "100ms"})
    await exporter.export()
    assert exporter.telemetry.counted("stem_agent.self_metrics.failures") >= 1


async def test_without_a_file_the_whole_agent_speaks_grpc_and_exits_with_0(
    start: Start, redis_url: str, client: "redis.asyncio.Redis", namespace: str, tmp_path: Path
) -> None:
    async with backend_of(GRPC) as backend:
        agent = await start(
            "run",
            STEM_BROKER_URL=redis_url,
            STEM_RESULT_BACKEND_URL=redis_url,
            STEM_WORKER_NAMESPACE=namespace,
            STEM_OTLP_ENDPOINT=f"http://127.0.0.1:{backend.port}",
            OTEL_EXPORTER_OTLP_PROTOCOL="grpc",
            OTEL_EXPORTER_OTLP_HEADERS="api-key=hunter2",
        )
        await agent.until("stem-agent running")
        await publish(client, namespace, Story(namespace=namespace).run())
        await until(lambda: sum(len(request.names) for request in backend.requests) == 3)
        assert await agent.end(signal.SIGTERM) == 0, agent.output
    assert "lost=0" in agent.lines[-1]
    assert {request.kind for request in backend.requests} == {"traces", "metrics", "logs"}
    services = [names(request) for request in backend.requests if request.kind == "metrics"]
    assert any("stem-agent" in found for found in services), "its own metrics"
    assert any("stem.tasks.succeeded" in found for found in services)
    assert {request.headers["api-key"] for request in backend.requests} == {"hunter2"}
    assert not [line for line in agent.lines if "grpc" in line.lower() and "INFO" not in line], (
        "no lines of the library"
    )
