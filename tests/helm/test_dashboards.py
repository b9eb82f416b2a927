"""Dashboards and alerts against a real Prometheus, which scrapes a real agent that hears a fleet at work."""

import asyncio
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from agent.correlate.metrics import OTHERS, task_instruments
from agent.demo.process import spawn
from agent.demo.valkey import embedded_valkey
from agent.exporters.prometheus.exporter import PrometheusExporter
from agent.exporters.prometheus.names import family_name
from agent.otlp.metrics import Instrument, InstrumentKind
from agent.receivers.stem_state import instruments as of_the_fleet
from agent.telemetry.self_metrics import COUNTERS, GAUGES, HISTOGRAMS
from tests.conftest import ObservedSink, Running
from tests.helm.charts import hold_to_kubernetes
from tests.helm.monitoring import alerts, dashboards, monitored, panels
from tests.prometheus import Prometheus, binary, scraping

AGENT = """
receivers:
  stem_signals: {{url: "{url}", canary: {{enabled: true, interval: 500ms}}}}
  stem_state:
    url: "{url}"
    interval: 500ms
    results: {{url: "{url}"}}
    schedules: {{url: "{url}"}}
    workflows: {{url: "{url}"}}
  stem_tail: {{url: "{url}", results: {{url: "{url}"}}}}
connectors:
  correlate: {{settle: 100ms, metrics_interval: 500ms, results: {{url: "{url}"}}}}
extensions:
  file_storage: {{directory: {directory}}}
  memory_limiter: {{limit_mib: 4096}}
  ownership: {{url: "{url}"}}
exporters:
  prometheus: {{endpoint: "127.0.0.1:0"}}
  otlp_http: {{endpoint: {sink}, sending_queue: {{storage: file_storage, batch: {{flush_timeout: 200ms}}}}}}
service:
  extensions: [file_storage, memory_limiter, ownership]
  telemetry: {{metrics: {{exporter: none}}}}
  pipelines:
    signals: {{receivers: [stem_signals, stem_state, stem_tail], exporters: [correlate]}}
    traces: {{receivers: [correlate], exporters: [otlp_http]}}
    metrics: {{receivers: [correlate, stem_state], exporters: [prometheus, otlp_http]}}
    logs: {{receivers: [correlate], exporters: [otlp_http]}}
"""
OPERATORS = {"and", "bool", "on", "or", "unless"}
FUNCTIONS = {"abs", "absent", "avg_over_time", "histogram_quantile", "increase", "rate", "vector"}
AGGREGATIONS = {"count", "max", "min", "sum"}
QUIET = {
    "agent-health": {
        "Lost",
        "Repairs",
        "Evicted, handed over, adjusted",
        "Dropped and rejected",
        "Tail's losses",
        "Configuration",
        "Gaps, repeats, late ones",
        "Polls",
        "Reconnects",
    },
    "tasks": {"Revoked, expired, lost"},
    "workers": {"Attempts lost"},
    "schedules": {"Failed"},
}
"""What shows nothing while nothing goes wrong."""

CALM = {
    *("StemAgentAbsent", "StemAgentBlind", "StemSignalsLost", "StemSubscriberBehind", "StemCardinalityOverflow"),
    *("StemTelemetryDropped", "StemExporterFailing", "StemQueueWithoutWorkers", "StemFleetTooSmall"),
    *("StemWorkerVanished", "StemWorkerClockSkew", "StemSchedulerAbsent", "StemScheduleMissed", "StemTaskHangs"),
}
"""Alerts that have no cause in a fleet whose tasks fail, but whose workers and agent do not."""


def declared() -> set[str]:
    """Return the names of all series that an agent can tell."""
    mine = [
        *task_instruments(per_worker=False),
        *OTHERS,
        *(each for each in vars(of_the_fleet).values() if isinstance(each, Instrument)),
    ]
    items = {f"stem_agent.items.{name}" for name in ("accepted", "restored", "delivered", "rejected", "dropped")}
    return {
        *(name for each in mine for name in series(each.name, each.unit, each.kind)),
        *(name for key, (unit, _) in COUNTERS.items() for name in series(key, unit, InstrumentKind.COUNTER)),
        *(name for key, (unit, _) in GAUGES.items() for name in series(key, unit, InstrumentKind.GAUGE)),
        *(name for key, (unit, _) in HISTOGRAMS.items() for name in series(key, unit, InstrumentKind.HISTOGRAM)),
        *(name for key in items for name in series(key, "{item}", InstrumentKind.COUNTER)),
        *series("stem_agent.items.held", "{item}", InstrumentKind.GAUGE),
        *series("stem_agent.process.cpu.time", "s", InstrumentKind.COUNTER),
        *series("stem_agent.process.memory.usage", "By", InstrumentKind.GAUGE),
    }


def series(name: str, unit: str, kind: InstrumentKind) -> Iterator[str]:
    counter, gauge = kind is InstrumentKind.COUNTER, kind is InstrumentKind.GAUGE
    family = family_name(name, unit, counter=counter, gauge=gauge).name
    suffixes = ("_total",) if counter else ("",) if gauge else ("_bucket", "_sum", "_count")
    return (family + suffix for suffix in suffixes)


def words(expression: str) -> set[str]:
    """Return what an expression names: functions and metrics, without labels and durations."""
    bare = re.sub(r"\{[^}]*\}|\[[^\]]*\]|offset \w+", " ", expression)
    bare = re.sub(r"\b(by|on) \([^)]*\)", " ", bare)
    return set(re.findall(r"[a-zA-Z_][a-zA-Z0-9_]*", bare))


def filled_in(expression: str) -> str:
    """Return an expression of a dashboard as Grafana would ask it with everything chosen."""
    return re.sub(r"\$\w+", ".*", expression.replace("$__rate_interval", "5s"))


def all_panels() -> Iterator[tuple[str, Mapping[str, Any]]]:
    return ((name, panel) for name, dashboard in dashboards().items() for panel in panels(dashboard))


def expressions() -> Iterator[str]:
    yield from (alert["expr"] for alert in alerts().values())
    for _, panel in all_panels():
        yield from (filled_in(target["expr"]) for target in panel["targets"])


def variables() -> Iterator[str]:
    """Yield the selectors that the lists of choices are read from."""
    for dashboard in dashboards().values():
        for each in dashboard["templating"]["list"]:
            if each["type"] == "query":
                found = re.fullmatch(r"label_values\((.*), \w+\)", each["definition"])
                assert found, each
                yield filled_in(found[1])


def test_only_what_the_agent_declares_is_named() -> None:
    known = declared()
    for expression in expressions():
        assert words(expression) <= known | OPERATORS | FUNCTIONS | AGGREGATIONS, expression
    for selector in variables():
        names = re.findall(r"stem_\w+", selector)
        assert names
        assert known >= set(names)


def test_every_panel_says_what_it_shows_and_in_which_unit() -> None:
    for name, panel in all_panels():
        assert len(panel["description"]) > 15, (name, panel["title"])
        unit, asked = panel["fieldConfig"]["defaults"]["unit"], " ".join(each["expr"] for each in panel["targets"])
        assert unit in {"s", "bytes", "short", "cps", "percentunit"}, (name, panel["title"])
        assert unit != "s" or "_seconds" in asked, (name, panel["title"])
        assert unit != "bytes" or "_bytes" in asked, (name, panel["title"])
        assert unit != "cps" or "rate(" in asked, (name, panel["title"])
        assert unit != "percentunit" or " / " in asked, (name, panel["title"])


def test_the_overview_shows_the_six_key_indicators_and_each_dashboard_finds_the_others() -> None:
    overview = dashboards()["fleet-overview"]["panels"]
    first = [panel["title"] for panel in overview if panel["type"] == "stat"][:6]
    assert [title.partition(" (")[0] for title in first] == [
        *("Queue depth", "Queue latency", "Retry rate", "Dead letters", "Workers up", "Scheduler drift")
    ]
    found = dashboards()
    assert set(found) == {"fleet-overview", "queues", "tasks", "workers", "schedules", "agent-health"}
    assert len({each["uid"] for each in found.values()}) == len(found)
    for each in found.values():
        assert each["links"][0]["tags"] == each["tags"] == ["stem"]
        ids = [panel["id"] for panel in each["panels"]]
        assert len(set(ids)) == len(ids)


def test_panels_do_not_lie_on_each_other() -> None:
    for name, dashboard in dashboards().items():
        taken: set[tuple[int, int]] = set()
        for panel in dashboard["panels"]:
            at = panel["gridPos"]
            cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
            assert at["x"] + at["w"] <= 24
            assert not cells & taken, (name, panel["title"])
            taken |= cells


def test_each_dashboard_is_a_config_map_that_grafanas_sidecar_finds() -> None:
    options = {"enabled": True, "annotations": {"grafana_folder": "Stem"}}
    made = [each for each in monitored(dashboards=options) if each["metadata"]["name"] != "shop-stem-agent-sidecar"]
    hold_to_kubernetes(made, "1.33")
    found = {name: text for each in made for name, text in each["data"].items()}
    assert set(found) == {f"{name}.json" for name in dashboards()}
    for each in made:
        assert each["metadata"]["labels"]["grafana_dashboard"] == "1"
        assert each["metadata"]["annotations"] == {"grafana_folder": "Stem"}
    source = Path(__file__).parents[2] / "helm" / "stem-agent" / "dashboards" / "tasks.json"
    assert found["tasks.json"].strip() == source.read_text(encoding="utf-8").strip()


async def shows(prometheus: Prometheus, panel: Mapping[str, Any]) -> bool:
    """Ask for a panel: an error of Prometheus is one here, and so is a legend that names what is not there."""
    found = False
    for target in panel["targets"]:
        result = (await prometheus.ask("query", query=filled_in(target["expr"])))["result"]
        labels = {label for each in result for label in each["metric"]}
        assert not result or labels >= set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])), (
            panel["title"],
            labels,
        )
        found = found or bool(result)
    return found


async def empty(prometheus: Prometheus) -> set[tuple[str, str]]:
    """Return the panels that show nothing, though they should."""
    return {
        (name, panel["title"])
        for name, panel in all_panels()
        if panel["title"] not in QUIET.get(name, ()) and not await shows(prometheus, panel)
    }


@pytest.mark.skipif(not binary("prometheus"), reason="no prometheus here")
@pytest.mark.timeout(120)
async def test_prometheus_answers_every_expression_and_every_panel_shows_the_fleet(
    running: Running, sink: ObservedSink, tmp_path: Path
) -> None:
    truth = tmp_path / "truth.json"
    with embedded_valkey() as server:
        url = f"{server.connection_url}/0"
        fleet = ["agent.demo.fleet", "--url", url, "--rate", "30", "--truth", str(truth)]
        async with (
            running(AGENT.format(url=url, sink=sink.url, directory=tmp_path / "disk")) as agent,
            spawn("fleet", fleet, tmp_path) as process,
        ):
            await process.announced(truth.with_suffix(".ready"))
            exporter = dict(agent.graph.stages)["exporters"]["prometheus"]
            assert isinstance(exporter, PrometheusExporter)
            async with scraping(tmp_path, exporter.port, "/metrics", "/metrics/agent") as prometheus:
                await prometheus.until("increase(stem_tasks_started_total[5s]) > 0")
                await prometheus.until("stem_worker_up == 1")
                async with asyncio.timeout(60):
                    while left := await empty(prometheus):
                        process.check()
                        print(left)  # noqa: T201 - shown where the time is over
                        await asyncio.sleep(0.5)
                for selector in variables():
                    assert (await prometheus.ask("query", query=selector))["result"], selector
                for alert in alerts().values():
                    answer = await prometheus.ask("query", query=alert["expr"])
                    assert answer["resultType"] == "vector", alert
                    assert not answer["result"] or alert["alert"] not in CALM, answer
            await process.stop()
