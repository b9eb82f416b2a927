"""Events, log lines and the names of the agent's own metrics."""

import io
import json
import logging
import pkgutil
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import ClassVar

import pytest

import agent
from agent.telemetry import logs
from agent.telemetry.events import LINE_INTERVAL_NS, Event, Telemetry
from agent.telemetry.self_metrics import COUNTERS


@dataclass(frozen=True, slots=True)
class Broke(Event):
    what: str
    detail: str
    phrase: ClassVar[str] = "something broke"
    counter: ClassVar[str | None] = "test.broken"
    labels: ClassVar[tuple[str, ...]] = ("what",)


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    before = root.handlers[:], root.level
    stream = io.StringIO()
    logs.configure("INFO", "json", stream)
    yield stream
    root.handlers[:], level = before
    root.setLevel(level)


def lines(stream: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_an_event_is_a_line_and_a_count(stream: io.StringIO) -> None:
    telemetry = Telemetry(lambda: 0)
    telemetry.emit(Broke("disk", "sector 7"))
    (line,) = lines(stream)
    assert (line["message"], line["level"], line["what"], line["detail"]) == (
        "something broke",
        "WARNING",
        "disk",
        "sector 7",
    )
    assert telemetry.counted("test.broken", what="disk") == 1


def test_a_flood_is_one_line_an_interval_and_every_event_is_counted(stream: io.StringIO) -> None:
    now = 0
    telemetry = Telemetry(lambda: now)
    for _ in range(1000):
        telemetry.emit(Broke("disk", "again"))
    telemetry.emit(Broke("fan", "other places have lines of their own"))
    assert len(lines(stream)) == 2
    now = LINE_INTERVAL_NS
    telemetry.emit(Broke("disk", "still"))
    assert lines(stream)[-1]["suppressed"] == 999
    assert telemetry.counted("test.broken") == 1002


def test_a_console_line_is_a_phrase_and_quoted_fields(stream: io.StringIO) -> None:
    logs.configure("INFO", "console", stream)
    Telemetry(lambda: 0).emit(Broke("disk", "two words\nand a line"))
    line = stream.getvalue()
    assert line.count("\n") == 1
    assert line.rstrip().endswith('WARN  something broke  what=disk detail="two words\\nand a line"')


def test_every_counter_of_an_event_is_declared_as_an_instrument() -> None:
    for module in pkgutil.walk_packages(agent.__path__, "agent."):
        if not module.name.endswith("__main__"):
            import_module(module.name)
    used = {event.counter for event in Event.__subclasses__() if event.counter and event is not Broke}
    used -= {"test.broken"}
    assert used <= set(COUNTERS), f"not declared: {used - set(COUNTERS)}"
    assert len(used) > 3
