"""The agent as operators meet it: a process, its exit code, and what it prints."""

import asyncio
import signal
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import aiohttp
import pytest
import redis.asyncio

from agent.demo.valkey import free_port
from tests.conftest import ObservedSink
from tests.integration.conftest import Start
from tests.integration.test_datadog import unix
from tests.integration.test_whole_path import publish
from tests.support import Story, ToldTime, found
from tests.tcp import serving

Write = Callable[[str], Path]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_stop_delivers_everything_and_exits_with_0(
    start: Start,
    write: Write,
    yaml: str,
    sink: ObservedSink,
    client: "redis.asyncio.Redis",
    namespace: str,
    number: signal.Signals,
) -> None:
    slow = f"otlp_http/slow: {{endpoint: '{sink.url}', sending_queue: {{batch: {{flush_timeout: 1h}}}}}}"
    text = yaml.replace("exporters:\n", f"exporters:\n  {slow}\n", 1)
    text = text.replace(
        "traces: {receivers: [correlate], exporters: [otlp_http]",
        "traces: {receivers: [correlate], exporters: [otlp_http/slow]",
    )
    agent = await start("run", "--config", str(write(text)))
    await agent.until("stem-agent running")
    await publish(client, namespace, Story().run())
    await sink.until(lambda: len(sink.logs) == 4)
    assert not sink.spans
    assert await agent.end(number) == 0
    assert len(sink.spans) == 3
    assert len(sink.logs) == 4
    assert sink.sums("stem.tasks.succeeded").total() == 1
    assert "lost=0" in agent.lines[-1]


async def test_what_cannot_be_delivered_is_told_and_exits_with_4(
    start: Start,
    write: Write,
    yaml: str,
    sink: ObservedSink,
    client: "redis.asyncio.Redis",
    namespace: str,
) -> None:
    await sink.stop()
    text = yaml.replace("service:\n", "service:\n  shutdown_timeout: 500ms\n")
    agent = await start("run", "-c", str(write(text)))
    await agent.until("stem-agent running")
    await publish(client, namespace, Story().run())
    await agent.until("delivery failed; will retry")
    assert await agent.end(signal.SIGTERM) == 4
    assert "not delivered before shutdown_timeout" in agent.output
    assert "signal=traces accepted=3 delivered=0 rejected=0" in agent.output


async def test_open_attempts_are_told_at_the_stop(
    start: Start,
    write: Write,
    yaml: str,
    sink: ObservedSink,
    client: "redis.asyncio.Redis",
    namespace: str,
) -> None:
    agent = await start("run", "-c", str(write(yaml)))
    await agent.until("stem-agent running")
    await publish(client, namespace, Story().run()[:2])
    await sink.until(lambda: len(sink.logs) == 2)
    assert await agent.end(signal.SIGTERM) == 4
    assert "dropped open attempts; their spans will be missing" in agent.output


async def test_a_second_signal_ends_the_drain(
    start: Start,
    write: Write,
    yaml: str,
    sink: ObservedSink,
    client: "redis.asyncio.Redis",
    namespace: str,
) -> None:
    await sink.stop()
    agent = await start("run", "-c", str(write(yaml.replace("service:\n", "service:\n  shutdown_timeout: 1h\n"))))
    await agent.until("stem-agent running")
    await publish(client, namespace, Story().run())
    await agent.until("delivery failed; will retry")
    agent.process.send_signal(signal.SIGTERM)
    await agent.until("stopping: draining")
    assert await agent.end(signal.SIGTERM) == 4
    assert "signal=traces accepted=3 delivered=0 rejected=0" in agent.output
    assert "dropped=shutdown:3 held=0" in agent.output
    assert "Unclosed" not in agent.output
    assert "stem-agent stopped" in agent.lines[-1]


async def test_a_stop_while_redis_keeps_silent_ends_at_once(
    start: Start, write: Write, yaml: str, redis_url: str
) -> None:
    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async with serving(say_nothing) as port:
        text = yaml.replace(redis_url, f"redis://127.0.0.1:{port}").replace(
            "ping_interval", "connect_timeout: 1h, ping_interval"
        )
        agent = await start("run", "-c", str(write(text)))
        await agent.until("stem-agent starting")
        assert await agent.end(signal.SIGTERM) == 0


async def test_the_agent_tells_about_itself_over_otlp(
    start: Start,
    write: Write,
    yaml: str,
    sink: ObservedSink,
    client: "redis.asyncio.Redis",
    namespace: str,
) -> None:
    text = yaml.replace("metrics: {exporter: none}", "metrics: {interval: 200ms}, logs: {format: json}")
    agent = await start("run", "-c", str(write(text)))
    await agent.until('"message": "stem-agent running"')
    story = Story(time=ToldTime(datetime.now(UTC) - timedelta(seconds=1)))
    await publish(client, namespace, [b"nonsense", *story.run()])
    await sink.until(lambda: sink.own("stem_agent.signals.lost").total() == 1)
    await sink.until(lambda: sink.own("stem_agent.items.delivered", "signal")[("traces",)] == 3)
    assert sink.own("stem_agent.signals.lost", "reason") == {("decode",): 1}
    await sink.until(lambda: sink.own("stem_agent.pipeline.latency", "signal")[("traces",)] == 3)
    told = sink.own_metrics["stem_agent.pipeline.latency"].histogram.data_points
    latency = {found(point)["signal"]: point for point in told}
    assert latency["logs"].count == 4
    assert sum(latency["logs"].bucket_counts) == 4
    assert len(latency["logs"].bucket_counts) == len(latency["logs"].explicit_bounds) + 1
    assert 0.9 < latency["logs"].min <= latency["logs"].max < 20
    assert "metrics" not in latency, "a snapshot tells of no one signal"
    assert sink.own("stem_agent.exporter.duration", "exporter", "signal")[("otlp_http", "traces")] == 1
    assert sink.own("stem_agent.exporter.queue.capacity", "signal")[("logs",)] == 64 << 20
    assert "stem_agent.exporter.queue.oldest_age" in sink.own_metrics
    assert sink.resources["own_metrics"]["service.name"] == "stem-agent"
    assert "stem_agent.process.memory.usage" in sink.own_metrics
    assert await agent.end(signal.SIGTERM) == 0


async def test_the_agents_log_lines_are_exported_when_that_is_asked_for(
    start: Start, write: Write, yaml: str, sink: ObservedSink, client: "redis.asyncio.Redis", namespace: str
) -> None:
    text = yaml.replace("exporter: none}", "exporter: none}, logs: {exporter: otlp_http}")
    agent = await start("run", "-c", str(write(text)), OTEL_BLRP_SCHEDULE_DELAY="50")
    await agent.until("stem-agent running")
    await publish(client, namespace, [b"nonsense"])
    await sink.until(lambda: any(log.body.string_value == "signal could not be decoded" for log in sink.logs))
    assert await agent.end(signal.SIGTERM) == 0
    by_phrase = {log.body.string_value: log for log in sink.logs}
    whole_life = {"stem-agent starting", "subscribed to signals", "stem-agent running", "stem-agent stopped"}
    assert whole_life <= set(by_phrase)
    bad = by_phrase["signal could not be decoded"]
    assert (bad.severity_text, bad.severity_number) == ("WARN", 13)
    assert found(bad)["emitter"] == "pod-1"
    assert sink.resources["logs"]["service.name"] == "stem-agent"


async def test_log_lines_that_cannot_be_exported_are_told_once_and_hold_nothing_up(
    start: Start, write: Write, yaml: str, unused_tcp_port: int
) -> None:
    away = f"otlp_http/away: {{endpoint: 'http://127.0.0.1:{unused_tcp_port}', timeout: 100ms}}"
    text = yaml.replace("exporters:\n", f"exporters:\n  {away}\n", 1)
    text = text.replace("exporter: none}", "exporter: none}, logs: {exporter: otlp_http/away}")
    agent = await start("run", "-c", str(write(text)), OTEL_BLRP_SCHEDULE_DELAY="20")
    await agent.until("failed to export the agent's own log lines")
    assert await agent.end(signal.SIGTERM) == 0
    assert agent.output.count("failed to export the agent's own log lines") == 1


async def test_without_a_file_stems_variables_are_enough(
    start: Start,
    sink: ObservedSink,
    client: "redis.asyncio.Redis",
    namespace: str,
    redis_url: str,
) -> None:
    agent = await start(
        "run",
        STEM_BROKER_URL=redis_url,
        STEM_WORKER_NAMESPACE=namespace,
        STEM_EMITTER="pod-1",
        STEM_OTLP_ENDPOINT=sink.url,
        OTEL_RESOURCE_ATTRIBUTES="team=payments",
    )
    await agent.until("stem-agent running")
    await publish(client, namespace, Story().run())
    await sink.until(lambda: len(sink.spans) == 3)
    assert await agent.end(signal.SIGTERM) == 0
    assert sink.resources["traces"]["team"] == "payments"


async def test_every_metric_exporter_of_stems_guide_works_without_a_file(
    start: Start, sink: ObservedSink, redis_url: str, namespace: str, client: "redis.asyncio.Redis", tmp_path: Path
) -> None:
    datadog, port = unix(tmp_path / "dsd.socket"), free_port()
    agent = await start(
        "run",
        STEM_BROKER_URL=redis_url,
        STEM_WORKER_NAMESPACE=namespace,
        STEM_OTLP_ENDPOINT=sink.url,
        STEM_METRIC_EXPORTERS=f"otlp:{sink.url}/v1/metrics,prometheus,datadog,console",
        STEM_PROMETHEUS_ENDPOINT=f"127.0.0.1:{port}",
        DD_DOGSTATSD_URL=datadog.where["url"],
    )
    await agent.until("stem-agent running")
    await publish(client, namespace, Story(namespace=namespace).run())
    await sink.until(lambda: len(sink.spans) == 3)
    async with aiohttp.ClientSession() as session, asyncio.timeout(20):
        text = ""
        while 'task="email.send"' not in text:
            async with session.get(f"http://127.0.0.1:{port}/metrics") as answer:
                text = await answer.text()
            await asyncio.sleep(0.05)
    assert await agent.end(signal.SIGTERM) == 0
    assert sink.sums("stem.tasks.succeeded").total() == 1
    assert datadog.total("stem.tasks.succeeded") == 1
    assert agent.process.stdout
    printed = (await agent.process.stdout.read()).decode()
    assert "METRIC stem.tasks.succeeded: 1 (+1)  task=email.send" in printed
    assert "SPAN" not in printed, "traces go where they went"
    books = {line.split("exporter=")[1].split()[0] for line in agent.lines if " ledger " in line}
    assert books == {"console", "datadog", "otlp_http", "prometheus"}
    datadog.socket.close()


async def test_a_refused_password_exits_with_78_and_one_line(
    start: Start, write: Write, yaml: str, redis_url: str
) -> None:
    text = yaml.replace("redis://", "redis://nobody:hunter2@")
    agent = await start("run", "-c", str(write(text)))
    assert await agent.end() == 78
    assert "error: stem_signals: redis 127.0.0.1:" in agent.lines[-1]
    assert "refused user nobody: WRONGPASS" in agent.lines[-1]
    assert "hunter2" not in agent.output
    assert "Traceback" not in agent.output


BROKEN = [
    ("", "expected the keys receivers"),
    ("receivers: [", "not valid YAML"),
    ("receivers: {stem_signals: {url: 7}}\nservice: 5\n", "service: found '5', expected a mapping"),
    ("\x00", "not valid YAML"),
    ("service: {pipelines: {signals: [a]}}", "service.pipelines.signals: found a list, expected a mapping"),
    ("service: {telemetry: {metrics: {exporter: nope}}}", "service.pipelines: required, but missing"),
]


@pytest.mark.parametrize(("text", "expected"), BROKEN)
@pytest.mark.parametrize("command", ["run", "validate"])
async def test_a_broken_file_exits_with_78_and_no_traceback(
    start: Start, write: Write, text: str, expected: str, command: str
) -> None:
    agent = await start(command, "--config", str(write(text)))
    assert await agent.end() == 78
    assert expected in agent.output
    assert "agent.yaml:1:" in agent.output or "agent.yaml:2:" in agent.output
    assert "Traceback" not in agent.output


async def test_a_good_file_is_valid(start: Start, write: Write, yaml: str) -> None:
    no_results = ("--set", "connectors.correlate.results.enabled=false")
    agent = await start("validate", "--config", str(write(yaml)), *no_results)
    assert await agent.end() == 0, agent.output
    assert agent.process.stdout
    assert (await agent.process.stdout.read()).decode().endswith("agent.yaml: ok\n")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ("headers: {api-key: {file: /nowhere/key}}", "failed to read /nowhere/key: no such file or directory"),
        ("logs_endpoint: 'https://h'\n    tls: {ca_file: /nowhere/ca}", "failed to load tls files /nowhere/ca"),
    ],
)
@pytest.mark.parametrize("exporter", ["otlp_http", "otlp_grpc"])
async def test_a_file_that_cannot_be_read_is_not_valid(
    start: Start, write: Write, yaml: str, exporter: str, options: str, told: str
) -> None:
    text = yaml.replace("otlp_http", exporter).replace("    timeout: 2s\n", f"    timeout: 2s\n    {options}\n")
    agent = await start("validate", "--config", str(write(text)))
    assert await agent.end() == 78
    assert f"agent.yaml:7:3: exporters.{exporter}: {told}" in agent.output


async def test_an_unknown_self_metrics_exporter_is_an_error(start: Start, write: Write, yaml: str) -> None:
    agent = await start("validate", "-c", str(write(yaml.replace("exporter: none", "exporter: nope"))))
    assert await agent.end() == 78
    assert "service.telemetry.metrics.exporter: found 'nope'" in agent.output


async def test_an_endpoint_that_hangs_does_not_hold_up_the_exit(
    start: Start, write: Write, yaml: str, sink: ObservedSink
) -> None:
    asked = asyncio.Event()

    async def hang(_: object) -> None:
        asked.set()
        await asyncio.Event().wait()

    sink.answer = hang  # type: ignore[assignment]
    text = yaml.replace("timeout: 2s", "timeout: 1h").replace("metrics: {exporter: none}", "metrics: {interval: 100ms}")
    agent = await start("run", "-c", str(write(text.replace("service:\n", "service:\n  shutdown_timeout: 300ms\n"))))
    await agent.until("stem-agent running")
    await asked.wait()
    assert await agent.end(signal.SIGTERM) == 0  # only the agent's own metrics were under way
