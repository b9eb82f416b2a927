"""The `datadog` exporter towards real sockets: what an agent reads, and what becomes of it when there is none."""

import asyncio
import re
import socket
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.metrics.v1 import metrics_pb2 as pb

from agent.core.ledger import Ledger
from agent.core.status import State, StatusBoard
from agent.exporters.datadog.config import DatadogConfig
from agent.exporters.datadog.exporter import DatadogExporter
from agent.otlp.batch import Batch, Kind
from agent.otlp.levels import Levels
from agent.otlp.resource import Resource
from agent.telemetry.events import Telemetry
from tests.conftest import until
from tests.unit.test_deltas import MAIL, OTHER, Told
from tests.unit.test_prometheus_exposition import DEPTH, LATENCY, POD

LINE = re.compile(r"(?P<name>[\w.]+):(?P<values>[^|]+)\|(?P<type>[a-z]+)(\|#(?P<tags>[^|]*))?(\|[a-z]:[^|]*)*")


@dataclass
class Agent:
    """A Datadog agent's socket, and what was read from it."""

    where: Any
    socket: socket.socket
    lines: list[dict[str, Any]] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)

    def read(self) -> None:
        """Take what came; DogStatsD's grammar, strictly."""
        try:
            while data := self.socket.recv(65536):
                self.sizes.append(len(data))
                for line in data.decode().splitlines():
                    found = LINE.fullmatch(line)
                    assert found, line
                    self.lines.append({**found.groupdict(), "tags": set((found["tags"] or "").split(","))})
        except BlockingIOError:
            pass

    def total(self, name: str) -> float:
        """Return the sum of the values of a metric."""
        return sum(float(value) for line in self.of(name) for value in line["values"].split(":"))

    def of(self, name: str) -> list[dict[str, Any]]:
        """Return the lines of a metric."""
        self.read()
        return [line for line in self.lines if line["name"] == name]


def udp() -> Agent:
    listening = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
    listening.bind(("127.0.0.1", 0))
    listening.settimeout(0)
    return Agent({"host": "127.0.0.1", "port": listening.getsockname()[1]}, listening)


def unix(path: Path) -> Agent:
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    listening.bind(str(path))
    listening.settimeout(0)
    return Agent({"url": f"unix://{path}"}, listening)


class Exported:
    """An exporter, its books, and how it is."""

    def __init__(self, where: Any, **options: Any) -> None:
        self.ledger, self.telemetry, self.board = Ledger(), Telemetry(lambda: 0), StatusBoard(lambda: 1)
        config = DatadogConfig(**where, **options)
        self.exporter = DatadogExporter(
            "datadog", config, self.ledger, self.telemetry, self.board.of("exporters", "datadog")
        )

    async def start(self) -> "Exported":
        await self.exporter.start()
        self.board.started("exporters", "datadog")
        return self

    async def take(self, batch: Batch) -> None:
        """Have a batch written, or given up."""
        self.exporter.consume(batch)
        await until(lambda: not self.account.held)

    @property
    def account(self) -> Any:
        return self.ledger.account("datadog", "metrics")

    @property
    def component(self) -> Any:
        (component,) = self.board
        return component


Make = Callable[..., Any]
Listen = Callable[[], Agent]


@pytest.fixture
async def exported() -> AsyncIterator[Make]:
    made: list[Exported] = []

    async def make(agent: Agent, **options: Any) -> Exported:
        made.append(await Exported(agent.where, **options).start())
        return made[-1]

    yield make
    for each in made:
        await each.exporter.stop(5)


@pytest.fixture
def listen(tmp_path: Path) -> Iterator[Callable[[], Agent]]:
    """Makes agents that listen on a socket in the file system, always the same."""
    made: list[Agent] = []

    def make() -> Agent:
        made.append(unix(tmp_path / "dsd.socket"))
        return made[-1]

    yield make
    for each in made:
        each.socket.close()


@pytest.fixture(params=["udp", "unix"])
def agent(request: pytest.FixtureRequest, listen: Listen) -> Iterator[Agent]:
    agent = udp() if request.param == "udp" else listen()
    yield agent
    agent.socket.close()


async def test_counters_are_differences_histograms_distributions_and_gauges_levels(
    agent: Agent, exported: Make
) -> None:
    told, exporter = Told(), await exported(agent, tags=("team:mail",))
    told.add(MAIL, 3)
    for value in (0.03, 0.04, 7.0):
        told.aggregator.record(LATENCY, MAIL, told.now_ns, value)
    told.pass_time()
    await exporter.take(told.batch())
    told.add(MAIL, 2)
    told.pass_time()
    await exporter.take(told.batch())
    levels = Levels(told.now_ns)
    levels.set(DEPTH, ("default",), 7)
    items, counts = levels.collect()
    await exporter.take(Batch(Kind.METRICS, POD.of_the_fleet(), items, 1, counts=counts, source="stem_state"))
    first, second = agent.of("stem.tasks.succeeded")
    assert (first["values"], first["type"], second["values"]) == ("3", "c", "2")
    assert first["tags"] == {"task:mail", "queue:default", "service:shop", "team:mail"}
    (latency,) = agent.of("stem.queue.latency")
    assert latency["type"] == "d"
    assert latency["values"].count(":") == 2
    assert agent.total("stem.queue.latency") == pytest.approx(7.07)
    (depth,) = agent.of("stem.queue.depth")
    assert (depth["values"], depth["type"]) == ("7", "g")
    assert depth["tags"] == {"queue:default", "service:shop", "team:mail", "instance:fleet"}
    assert (exporter.account.accepted, exporter.account.delivered) == (5, 5)
    assert exporter.component.state is State.OK


async def test_large_batches_travel_in_packets_that_fit(agent: Agent, exported: Make) -> None:
    told, exporter = Told(), await exported(agent)
    for index in range(40):
        told.add((f"task-{index}", "default"), index)
        for _ in range(200):
            told.aggregator.record(LATENCY, (f"task-{index}", "default"), told.now_ns, 0.3)
    told.pass_time()
    exporter.exporter.consume(told.batch())
    async with asyncio.timeout(20):
        while exporter.account.held:
            agent.read()  # as an agent does: a socket holds few packets
            await asyncio.sleep(0)
    assert exporter.account.delivered == 80
    assert agent.total("stem.tasks.succeeded") == sum(range(40))
    assert sum(line["values"].count(":") + 1 for line in agent.of("stem.queue.latency")) == 40 * 200
    assert max(agent.sizes) <= (1432 if "host" in agent.where else 8192)


async def test_what_came_while_there_was_no_agent_is_told_when_there_is_one(listen: Listen, exported: Make) -> None:
    agent = listen()
    path = Path(agent.where["url"].removeprefix("unix://"))
    told, exporter = Told(), await exported(agent)
    told.add(MAIL, 3)
    told.pass_time()
    await exporter.take(told.batch())
    assert agent.total("stem.tasks.succeeded") == 3
    agent.socket.close()
    path.unlink()
    told.add(MAIL, 4)
    told.add(OTHER, 1)
    told.pass_time()
    await exporter.take(told.batch())
    assert exporter.component.state is State.RECOVERING
    assert exporter.component.reason.startswith(f"failed to write to unix://{path}: ")
    assert exporter.account.dropped == {"output_failed": 2}
    again = listen()
    told.add(OTHER, 5)
    told.pass_time()
    await exporter.take(told.batch())
    assert again.total("stem.tasks.succeeded") == 4 + 1 + 5
    assert exporter.component.state is State.OK
    assert exporter.account.held == 0


async def test_an_agent_that_takes_nothing_holds_up_nobody_and_costs_no_counts(listen: Listen, exported: Make) -> None:
    agent = listen()
    told, exporter = Told(limit=10_000), await exported(agent, timeout=0.2)
    for index in range(8000):
        told.add((f"task-{index}", "default"), 1)
    told.pass_time()
    exporter.exporter.consume(told.batch())
    turns = 0
    async with asyncio.timeout(20):
        while exporter.account.held:
            turns += 1
            await asyncio.sleep(0)
    assert turns > 10, "the loop turned while the thread waited for the socket"
    assert 0 < exporter.account.dropped["output_failed"] < 8000
    tasks: Counter[str] = Counter()
    async with asyncio.timeout(20):
        while len(tasks) < 8000:
            told.pass_time()
            exporter.exporter.consume(told.batch())
            while exporter.account.held:
                agent.read()
                await asyncio.sleep(0)
            lines = agent.of("stem.tasks.succeeded")
            tasks = Counter(next(tag for tag in line["tags"] if tag.startswith("task:")) for line in lines)
    assert set(tasks.values()) == {1}


async def test_a_later_word_of_a_source_takes_the_place_of_one_that_waits(listen: Listen, exported: Make) -> None:
    agent = listen()
    told, exporter = Told(), await exported(agent)
    for _ in range(3):
        told.add(MAIL, 2)
        told.pass_time()
        exporter.exporter.consume(told.batch())
    await until(lambda: not exporter.account.held)
    assert agent.total("stem.tasks.succeeded") == 6
    assert (exporter.account.delivered, exporter.account.dropped) == (1, {"superseded": 2})


async def test_a_stop_writes_what_waits_and_counts_what_it_cannot(listen: Listen) -> None:
    agent = listen()
    told, exporter = Told(), await Exported(agent.where).start()
    told.add(MAIL, 2)
    told.pass_time()
    exporter.exporter.consume(told.batch())
    await exporter.exporter.stop(5)
    assert agent.total("stem.tasks.succeeded") == 2
    late = await Exported(agent.where).start()
    late.exporter.consume(told.batch())
    await late.exporter.stop(0)
    assert late.account.dropped == {"shutdown": 1}


async def test_what_dogstatsd_has_no_place_for_is_told_by_reason(listen: Listen, exported: Make) -> None:
    agent = listen()
    exporter = await exported(agent)
    summary = pb.Metric(name="m", summary=pb.Summary(data_points=[pb.SummaryDataPoint()] * 2)).SerializeToString()
    await exporter.take(Batch(Kind.METRICS, POD, [summary], 2, counts=[2]))
    await exporter.take(Batch(Kind.METRICS, POD, [b"\xff"], 1, source="other"))
    assert exporter.account.dropped == {"unsupported_type": 2, "undecodable": 1}


async def test_what_is_a_difference_already_is_told_as_it_is(listen: Listen, exported: Make) -> None:
    agent = listen()
    exporter = await exported(agent)
    delta = pb.AGGREGATION_TEMPORALITY_DELTA
    counter = pb.Sum(data_points=[pb.NumberDataPoint(as_int=4)], aggregation_temporality=delta, is_monotonic=True)
    level = pb.Sum(data_points=[pb.NumberDataPoint(as_double=2.5)], aggregation_temporality=delta)
    point = pb.HistogramDataPoint(count=2, sum=3)
    histogram = pb.Histogram(data_points=[point], aggregation_temporality=delta)
    metrics = [
        pb.Metric(name="a", sum=counter),
        pb.Metric(name="b", sum=level),
        pb.Metric(name="c", histogram=histogram),
    ]
    items = [metric.SerializeToString() for metric in metrics]
    for _ in range(2):
        await exporter.take(Batch(Kind.METRICS, Resource({}), items, 3))
    agent.read()
    assert [(line["name"], line["values"], line["type"]) for line in agent.lines] == [
        ("a", "4", "c"),
        ("b", "2.5", "g"),
        ("c", "1.5:1.5", "d"),
    ] * 2
