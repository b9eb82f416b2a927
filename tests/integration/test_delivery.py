"""Delivery to an endpoint that refuses, hangs, recovers, rejects, or asks for a name and a certificate."""

import asyncio
import ssl
from pathlib import Path

import pytest
import redis.asyncio
import trustme
from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from agent.core.errors import StartupError
from tests.conftest import ObservedSink, Running, until
from tests.integration.test_whole_path import publish
from tests.support import Story


class Answers:
    """Answers with each of `script` once, then lets requests through."""

    def __init__(self, *script: web.Response | None) -> None:
        self.script = list(script)

    async def __call__(self, _: web.Request) -> web.Response | None:
        return self.script.pop(0) if self.script else None


async def test_an_endpoint_that_is_away_gets_everything_when_it_comes_back(
    yaml: str,
    running: Running,
    sink: ObservedSink,
    client: "redis.asyncio.Redis",
    namespace: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    port = sink.port
    await sink.stop()
    async with running(yaml) as agent:
        await publish(client, namespace, Story().run())
        await until(
            lambda: bool(agent.telemetry.counted("stem_agent.exporter.retries", signal="traces", reason="connection"))
        )
        assert agent.ledger.account("otlp_http", "traces").held == 3
        await sink.start(port)
        await sink.until(lambda: len(sink.spans) == 3 and len(sink.logs) == 4)
    assert agent.ledger.lost == 0
    (first, *_) = [record for record in caplog.records if "will retry" in record.getMessage()]
    assert "connection refused" in first.fields["detail"]  # type: ignore[attr-defined]


@pytest.mark.parametrize("status", [429, 502, 503, 504])
async def test_an_endpoint_that_says_later_is_asked_again(
    yaml: str, running: Running, sink: ObservedSink, client: "redis.asyncio.Redis", namespace: str, status: int
) -> None:
    sink.answer = Answers(web.Response(status=status), web.Response(status=status, headers={"Retry-After": "0"}))
    async with running(yaml) as agent:
        await publish(client, namespace, Story().run())
        await sink.until(lambda: len(sink.spans) == 3 and len(sink.logs) == 4)
    assert agent.ledger.lost == 0
    assert agent.telemetry.counted("stem_agent.exporter.requests", code=str(status)) == 2


@pytest.mark.parametrize("status", [400, 413, 500])
async def test_an_endpoint_that_says_no_costs_that_batch_only(
    yaml: str, running: Running, sink: ObservedSink, client: "redis.asyncio.Redis", namespace: str, status: int
) -> None:
    async def refuse_traces(request: web.Request) -> web.Response | None:
        return web.Response(status=status, text="no such thing") if request.path == "/v1/traces" else None

    sink.answer = refuse_traces
    async with running(yaml) as agent:
        await publish(client, namespace, Story().run())
        await sink.until(lambda: len(sink.logs) == 4)
    account = agent.ledger.account("otlp_http", "traces")
    assert dict(account.dropped) == {f"http_{status}": 3}
    assert agent.ledger.account("otlp_http", "logs").delivered == 4


async def test_a_redirect_is_not_followed(
    yaml: str, running: Running, sink: ObservedSink, client: "redis.asyncio.Redis", namespace: str
) -> None:
    elsewhere = ObservedSink()
    await elsewhere.start()

    async def redirect(_: web.Request) -> web.Response:
        return web.Response(status=307, headers={"Location": f"{elsewhere.url}/v1/traces"})

    sink.answer = redirect
    async with running(yaml) as agent:
        await publish(client, namespace, Story().run())
        await until(lambda: bool(agent.ledger.account("otlp_http", "traces").dropped))
    assert dict(agent.ledger.account("otlp_http", "traces").dropped) == {"redirect": 3}
    assert not elsewhere.requests
    await elsewhere.stop()


async def test_partial_success_is_booked_as_rejected(
    yaml: str, running: Running, sink: ObservedSink, client: "redis.asyncio.Redis", namespace: str
) -> None:
    async def reject_one(request: web.Request) -> web.Response | None:
        if request.path != "/v1/traces":
            return None
        response = ExportTraceServiceResponse()
        response.partial_success.rejected_spans = 1
        return web.Response(body=response.SerializeToString(), content_type="application/x-protobuf")

    sink.answer = reject_one
    async with running(yaml) as agent:
        await publish(client, namespace, Story().run())
        await sink.until(lambda: len(sink.logs) == 4)
    account = agent.ledger.account("otlp_http", "traces")
    assert (account.accepted, account.delivered, dict(account.rejected)) == (3, 2, {"partial_success": 1})


async def test_an_answer_that_never_ends_is_cut_off(
    yaml: str, running: Running, sink: ObservedSink, client: "redis.asyncio.Redis", namespace: str
) -> None:
    async def flood(request: web.Request) -> web.Response | None:
        return web.Response(body=b"x" * (5 << 20)) if request.path == "/v1/traces" else None

    sink.answer = flood
    async with running(yaml) as agent:
        await publish(client, namespace, Story().run())
        await sink.until(lambda: len(sink.logs) == 4)
    assert dict(agent.ledger.account("otlp_http", "traces").dropped) == {"response_too_large": 3}


async def test_an_endpoint_that_hangs_times_out_and_holds_up_nothing_else(
    yaml: str, running: Running, sink: ObservedSink, client: "redis.asyncio.Redis", namespace: str
) -> None:
    async def hang(request: web.Request) -> None:
        if request.path == "/v1/traces":
            await asyncio.Event().wait()

    sink.answer = hang
    async with running(yaml.replace("timeout: 2s", "timeout: 100ms"), 0.5) as agent:
        await publish(client, namespace, Story().run())
        await sink.until(lambda: len(sink.logs) == 4 and bool(sink.metrics))
    account = agent.ledger.account("otlp_http", "traces")
    assert dict(account.dropped) == {"shutdown": 3}
    assert agent.telemetry.counted("stem_agent.exporter.requests", code="timeout") >= 1


async def test_each_kind_may_go_to_an_endpoint_of_its_own_with_headers_and_without_gzip(
    yaml: str, running: Running, sink: ObservedSink, client: "redis.asyncio.Redis", namespace: str
) -> None:
    traces = ObservedSink()
    await traces.start()
    options = (
        f"traces_endpoint: {traces.url}/v1/traces\n"
        "    headers: {api-key: hunter2}\n    compression: none\n    max_requests_per_second: 100\n"
    )
    async with running(yaml.replace("    timeout: 2s\n", f"    timeout: 2s\n    {options}")):
        await publish(client, namespace, Story().run())
        await traces.until(lambda: len(traces.spans) == 3)
        await sink.until(lambda: len(sink.logs) == 4)
    assert not sink.spans
    assert {header["api-key"] for header in traces.headers + sink.headers} == {"hunter2"}
    assert not any("Content-Encoding" in header for header in traces.headers)
    await traces.stop()


async def test_tls_is_verified_against_the_ca_file(
    yaml: str, running: Running, client: "redis.asyncio.Redis", namespace: str, sink: ObservedSink, tmp_path: Path
) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("otlp.example.com").configure_cert(context)
    secure = ObservedSink()
    await secure.start(ssl_context=context)
    endpoint = f"https://127.0.0.1:{secure.port}"
    tls = f"tls: {{ca_file: {tmp_path / 'ca.pem'}, server_name_override: otlp.example.com}}"
    text = yaml.replace(sink.url, endpoint)
    async with running(text.replace("    timeout: 2s\n", f"    timeout: 2s\n    {tls}\n")):
        await publish(client, namespace, Story().run())
        await secure.until(lambda: len(secure.spans) == 3)
    async with running(text, 0.2) as distrusting:
        await publish(client, namespace, Story().run())
        await until(lambda: bool(distrusting.telemetry.counted("stem_agent.exporter.retries", reason="connection")))
    assert distrusting.ledger.account("otlp_http", "traces").delivered == 0
    await secure.stop()


async def test_a_certificate_file_that_is_missing_ends_the_start(yaml: str, running: Running) -> None:
    text = yaml.replace("endpoint: http:", "tls: {ca_file: /nowhere/ca.pem}\n    endpoint: https:")
    with pytest.raises(StartupError, match=r"/nowhere/ca\.pem"):
        async with running(text):
            pytest.fail("it started")


async def test_the_resource_processor_changes_what_passes(
    yaml: str, running: Running, sink: ObservedSink, client: "redis.asyncio.Redis", namespace: str
) -> None:
    processor = "processors:\n  resource: {set: {deployment.environment.name: prod}, remove: [host.name]}\nexporters:\n"
    text = yaml.replace("exporters:\n", processor, 1)
    text = text.replace("traces: {receivers: [correlate],", "traces: {receivers: [correlate], processors: [resource],")
    async with running(text):
        await publish(client, namespace, Story().run())
        await sink.until(lambda: len(sink.spans) == 3 and len(sink.logs) == 4)
    assert sink.resources["traces"]["deployment.environment.name"] == "prod"
    assert "host.name" not in sink.resources["traces"]
    assert "deployment.environment.name" not in sink.resources["logs"]


async def test_two_destinations_are_independent(
    yaml: str, running: Running, sink: ObservedSink, client: "redis.asyncio.Redis", namespace: str, unused_tcp_port: int
) -> None:
    text = yaml.replace(
        "exporters:\n", f"exporters:\n  otlp_http/away: {{endpoint: 'http://127.0.0.1:{unused_tcp_port}'}}\n", 1
    ).replace("exporters: [otlp_http]", "exporters: [otlp_http/away, otlp_http]")
    async with running(text, 0.5) as agent:
        await publish(client, namespace, Story().run())
        await sink.until(lambda: len(sink.spans) == 3 and len(sink.logs) == 4)
    assert dict(agent.ledger.account("otlp_http/away", "traces").dropped) == {"shutdown": 3}
    assert agent.ledger.account("otlp_http", "traces").delivered == 3
