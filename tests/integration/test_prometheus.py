"""The scrape endpoint of a real agent: what it answers to whom, and what Debian's Prometheus makes of it."""

import asyncio
import base64
import gzip
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import redis.asyncio
import trustme
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics

from agent.core.errors import StartupError
from agent.core.ledger import Ledger
from agent.core.status import State, StatusBoard
from agent.correlate.metrics import OTHERS, task_instruments
from agent.exporters.prometheus.config import PrometheusConfig
from agent.exporters.prometheus.exporter import PrometheusExporter
from agent.otlp.batch import Batch
from agent.otlp.levels import Levels
from agent.otlp.metrics import Aggregator, Instrument, InstrumentKind
from agent.otlp.resource import Resource
from agent.receivers.stem_state import instruments as state
from agent.settings.types import HostPort
from agent.telemetry.events import Telemetry
from tests.backends import replace
from tests.conftest import Running, until
from tests.integration.test_whole_path import publish
from tests.prometheus import binary, lint, scraping
from tests.support import Story, envelope
from tests.unit.test_prometheus_exposition import NOW_NS, batch, counted, metric

OPENMETRICS = "application/openmetrics-text; version=1.0.0"
ANYWHERE = HostPort("127.0.0.1", 0)
PROMETHEUS = """
receivers:
  stem_signals: {{url: "{url}", namespace: {namespace}}}
connectors:
  correlate: {{settle: 100ms, metrics_interval: 200ms, results: {{enabled: false}}}}
exporters:
  prometheus: {{endpoint: "127.0.0.1:0"}}
  debug: {{verbosity: basic}}
service:
  pipelines:
    signals: {{receivers: [stem_signals], exporters: [correlate]}}
    traces: {{receivers: [correlate], exporters: [debug]}}
    metrics: {{receivers: [correlate], exporters: [prometheus]}}
"""


class Scraped:
    """An exporter that runs, and somebody who asks it."""

    def __init__(self) -> None:
        self.ledger, self.telemetry, self.board = Ledger(), Telemetry(), StatusBoard(lambda: 1)
        self.exporter: PrometheusExporter
        self.session: aiohttp.ClientSession

    async def start(self, **options: Any) -> PrometheusExporter:
        config = PrometheusConfig(**{"endpoint": ANYWHERE, "metric_expiration": 1e9, **options})
        reports = self.board.of("exporters", "prometheus")
        attributes = {"service.name": "shop", "service.instance.id": "pod-7"}
        self.exporter = PrometheusExporter("prometheus", config, attributes, self.ledger, self.telemetry, reports)
        await self.exporter.start()
        self.board.started("exporters", "prometheus")
        return self.exporter

    async def get(self, path: str = "/metrics", *, tls: Any = None, **headers: str) -> tuple[int, bytes, Any]:
        url = f"{'https' if tls else 'http'}://localhost:{self.exporter.port}{path}"
        async with self.session.get(url, headers=headers, ssl=tls or False) as answer:
            return answer.status, await answer.read(), answer.headers


@pytest.fixture
async def scraped() -> AsyncIterator[Scraped]:
    scraped = Scraped()
    # A connection for each request, so that each has a handshake of its own.
    connector = aiohttp.TCPConnector(force_close=True)
    async with aiohttp.ClientSession(auto_decompress=False, connector=connector) as scraped.session:
        yield scraped
        await scraped.exporter.stop(1)


async def test_the_scraper_gets_the_format_and_the_coding_it_asks_for(scraped: Scraped) -> None:
    exporter = await scraped.start()
    exporter.consume(counted([(("mail", "default"), 3)]))
    _, body, headers = await scraped.get(**{"Accept-Encoding": "identity"})
    assert headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert b"# TYPE stem_tasks_succeeded_total counter" in body
    _, body, headers = await scraped.get(Accept=OPENMETRICS, **{"Accept-Encoding": "gzip"})
    assert headers["Content-Type"] == "application/openmetrics-text; version=1.0.0; charset=utf-8"
    text = gzip.decompress(body).decode()
    assert text.endswith("# EOF\n")
    (sample,) = next(family for family in openmetrics(text) if family.name == "stem_tasks_succeeded").samples
    assert (sample.value, sample.labels["otel_scope_name"]) == (3, "stem-agent")
    assert scraped.telemetry.counted("stem_agent.exporter.requests", signal="metrics", code="200") == 2


async def test_everything_that_is_shown_is_delivered_and_the_rest_dropped_with_its_reason(scraped: Scraped) -> None:
    exporter, ends = await scraped.start(), list[None]()
    scraped.ledger.on_end(lambda: ends.append(None))
    exporter.consume(counted([(("mail", "a"), 3), (("mail", "b"), 1)]))
    account = scraped.ledger.account("prometheus", "metrics")
    assert (account.accepted, account.delivered, account.held) == (2, 2, 0)
    assert ends == [None]
    exporter.consume(batch([metric()], (5,), source="other"))
    assert (account.accepted, account.delivered, account.dropped) == (7, 2, {"unsupported_type": 5})
    (component,) = scraped.board
    assert component.state is State.DEGRADED
    exporter.consume(batch([], source="other"))
    assert component.state is State.DEGRADED
    exporter.consume(counted([(("mail", "a"), 4)]))
    assert component.state is State.OK


async def test_the_agents_own_metrics_have_a_path_of_their_own(scraped: Scraped) -> None:
    exporter = await scraped.start()
    exporter.consume(counted([(("mail", "default"), 3)]))
    scraped.telemetry.histogram("stem_agent.pipeline.latency").observe(0.3)
    status, body, _ = await scraped.get("/metrics/agent", Accept=OPENMETRICS, **{"Accept-Encoding": "identity"})
    assert status == 200
    found = {family.name: family for family in openmetrics(body.decode())}
    (sample,) = found["stem_agent_items_delivered"].samples
    assert (sample.value, sample.labels["exporter"], sample.labels["job"]) == (1, "prometheus", "stem-agent")
    assert sample.labels["instance"] == "pod-7"
    assert found["stem_agent_pipeline_latency_seconds"].type == "histogram"
    (target,) = found["target"].samples
    assert target.labels["service_name"] == "stem-agent"
    assert not [name for name in found if name.startswith("stem_tasks")]
    assert (await scraped.get("/metrics/"))[0] == 404


async def test_a_variable_that_the_sdk_refuses_costs_the_agents_own_metrics_only(
    scraped: Scraped, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OTEL_METRICS_EXEMPLAR_FILTER", "nonsense")
    exporter = await scraped.start()
    assert "failed to start /metrics/agent" in caplog.text
    exporter.consume(counted([(("mail", "default"), 3)]))
    assert b"stem_tasks_succeeded_total" in (await scraped.get(**{"Accept-Encoding": "identity"}))[1]
    assert (await scraped.get("/metrics/agent", Accept=OPENMETRICS))[0] == 200


async def test_two_sources_of_one_series_are_told_of(scraped: Scraped) -> None:
    exporter = await scraped.start()
    exporter.consume(counted([(("mail", "default"), 3)], source="one"))
    exporter.consume(counted([(("mail", "default"), 3)], source="two"))
    assert (await scraped.get())[0] == 200
    assert scraped.telemetry.counted("stem_agent.exporter.series_shadowed") == 1


def authorization(credentials: str) -> dict[str, str]:
    return {"Authorization": f"Basic {base64.b64encode(credentials.encode()).decode()}"}


async def test_only_who_knows_the_password_is_let_in_and_a_changed_one_holds(scraped: Scraped, tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text("old secret\n")
    await scraped.start(
        basic_auth={"username": "prometheus", "password": {"file": str(file)}}, reload_interval=0.000001
    )
    for wrong in (
        {},
        authorization("prometheus:wrong"),
        authorization("other:old secret"),
        {"Authorization": "Basic ?"},
    ):
        status, _, headers = await scraped.get(**wrong)
        assert (status, headers["WWW-Authenticate"]) == (401, 'Basic realm="stem-agent", charset="UTF-8"')
    assert (await scraped.get(**authorization("prometheus:old secret")))[0] == 200
    replace(file, b"new secret")
    assert (await scraped.get(**authorization("prometheus:old secret")))[0] == 401
    assert (await scraped.get("/metrics/agent", **authorization("prometheus:new secret")))[0] == 200
    assert "new secret" not in scraped.telemetry.mask("it is new secret")


async def test_scrapes_are_encrypted_and_a_renewed_certificate_serves_the_next_one(
    scraped: Scraped, tmp_path: Path
) -> None:
    old, new = trustme.CA(), trustme.CA()
    certificate = tmp_path / "server.pem"
    replace(certificate, old.issue_cert("localhost").private_key_and_cert_chain_pem.bytes())
    await scraped.start(tls={"cert_file": str(certificate), "reload_interval": 0.000001})
    assert (await scraped.get(tls=trusting(old)))[0] == 200
    replace(certificate, new.issue_cert("localhost").private_key_and_cert_chain_pem.bytes())
    assert (await scraped.get(tls=trusting(new)))[0] == 200
    with pytest.raises(aiohttp.ClientConnectorError):
        await scraped.get(tls=trusting(old))


async def test_clients_may_have_to_show_a_certificate(scraped: Scraped, tmp_path: Path) -> None:
    authority, clients = trustme.CA(), trustme.CA()
    certificate, trusted = tmp_path / "server.pem", tmp_path / "clients.pem"
    certificate.write_bytes(authority.issue_cert("localhost").private_key_and_cert_chain_pem.bytes())
    clients.cert_pem.write_to_path(trusted)
    await scraped.start(tls={"cert_file": str(certificate), "client_ca_file": str(trusted)})
    context = trusting(authority)
    with pytest.raises(aiohttp.ClientError):
        await scraped.get(tls=context)
    clients.issue_cert("prometheus").configure_cert(context)
    assert (await scraped.get(tls=context))[0] == 200


def trusting(authority: trustme.CA) -> Any:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


async def test_a_taken_port_and_a_bad_certificate_name_the_option(scraped: Scraped, tmp_path: Path) -> None:
    first = await scraped.start()
    other = Scraped()
    with pytest.raises(StartupError, match=r"prometheus: failed to listen on 127.0.0.1:\d+: address already in use; "):
        await other.start(endpoint=HostPort("127.0.0.1", first.port))
    with pytest.raises(StartupError, match=r"failed to load tls files /nowhere\.pem"):
        await other.start(tls={"cert_file": "/nowhere.pem"})
    with pytest.raises(StartupError, match="failed to read /nowhere: no such file"):
        await other.start(basic_auth={"username": "u", "password": {"file": "/nowhere"}})


async def test_what_is_asked_for_at_once_beyond_a_measure_is_refused(scraped: Scraped) -> None:
    exporter = await scraped.start()
    gate = asyncio.Event()
    loop = asyncio.get_running_loop()
    # The one thread that makes expositions is busy until the gate opens.
    busy = loop.run_in_executor(
        exporter._executor, lambda: asyncio.run_coroutine_threadsafe(gate.wait(), loop).result(20)
    )
    waiting = [asyncio.create_task(scraped.get()) for _ in range(8)]
    await until(lambda: exporter._waiting == 8)
    assert (await scraped.get())[0] == 503
    gate.set()
    assert {status for status, _, _ in await asyncio.gather(*waiting)} == {200}
    await busy


@pytest.mark.skipif(not binary("promtool"), reason="no promtool here")
async def test_promtool_finds_nothing_to_say(scraped: Scraped) -> None:
    exporter = await scraped.start(created_series=True)
    for each in told():
        exporter.consume(each)
    for path in ("/metrics", "/metrics/agent"):
        _, body, _ = await scraped.get(path, **{"Accept-Encoding": "identity"})
        assert await lint(body.decode()) == ""


def told() -> list[Batch]:
    """Everything that an agent can tell: each instrument once."""
    found = {
        each.name: each
        for each in (*task_instruments(per_worker=True), *OTHERS, *vars(state).values())
        if isinstance(each, Instrument)
    }
    aggregator, levels = Aggregator(now_ns=NOW_NS, cardinality_limit=10, series_ttl=60), Levels(NOW_NS)
    for each in found.values():
        values = tuple("x" for _ in each.keys)
        if each.kind is InstrumentKind.COUNTER:
            aggregator.add(each, values, NOW_NS)
        elif each.kind is InstrumentKind.GAUGE:
            levels.set(each, values, 1.5)
        else:
            aggregator.record(each, values, NOW_NS, 1.5)
    assert len(found) > 35
    fleet = Resource({"service.name": "shop"}).of_the_fleet()
    return [batch(*aggregator.collect(NOW_NS)), batch(*levels.collect(), fleet, "stem_state")]


@pytest.mark.skipif(not binary("prometheus"), reason="no prometheus here")
async def test_debians_prometheus_scrapes_the_agent(
    running: Running, client: "redis.asyncio.Redis", namespace: str, redis_url: str, tmp_path: Path
) -> None:
    async with running(PROMETHEUS.format(url=redis_url, namespace=namespace)) as agent:
        exporter = dict(agent.graph.stages)["exporters"]["prometheus"]
        assert isinstance(exporter, PrometheusExporter)
        story = Story(namespace=namespace)
        for index in range(7):
            story.run(task=envelope(id=f"task-{index}"))
        await publish(client, namespace, story.payloads)
        async with scraping(tmp_path, exporter.port, "/metrics", "/metrics/agent") as prometheus:
            (succeeded,) = await prometheus.until("stem_tasks_succeeded_total == 7")
            instance = succeeded["metric"]["instance"]
            assert succeeded["metric"]["job"] == f"{namespace}/{namespace}"
            (joined,) = await prometheus.until(
                "stem_tasks_succeeded_total * on (job, instance) group_left (telemetry_distro_name) target_info"
            )
            assert joined["metric"]["telemetry_distro_name"] == "stem-otel-agent"
            (own,) = await prometheus.until('stem_agent_items_delivered_total{signal="metrics"} > 0')
            assert (own["metric"]["job"], own["metric"]["instance"]) == (f"{namespace}/stem-agent", instance)
            (quantile,) = await prometheus.until("histogram_quantile(0.5, stem_task_duration_seconds_bucket)")
            assert 0.025 < float(quantile["value"][1]) < 0.05
            window = {"start": str(story.time.now.timestamp() - 3600), "end": "4102444800"}
            exemplars = await prometheus.ask("query_exemplars", query="stem_task_duration_seconds_bucket", **window)
            assert {each["labels"]["trace_id"] for each in exemplars[0]["exemplars"]}
            metadata = await prometheus.ask("metadata", metric="stem_queue_latency_seconds")
            assert metadata["stem_queue_latency_seconds"][0]["type"] == "histogram"
    assert agent.ledger.account("prometheus", "metrics").held == 0
