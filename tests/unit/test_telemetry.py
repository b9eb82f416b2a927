"""Events, log lines and the names of the agent's own metrics."""

import io
import json
import logging
import pkgutil
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import ClassVar
from urllib.parse import quote

import pytest

import agent
from agent.app import _LOST_COUNTERS
from agent.core.masking import Masker
from agent.exporters.sending.events import ItemsDropped
from agent.telemetry import logs
from agent.telemetry.events import LINE_INTERVAL_NS, Event, Telemetry
from agent.telemetry.self_metrics import COUNTERS, GAUGES, HISTOGRAMS


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
    assert "suppressed_amount" not in lines(stream)[-1], "each line would have told of one"
    assert telemetry.counted("test.broken") == 1002


def test_lines_left_out_are_told_also_when_none_comes_after_them(stream: io.StringIO) -> None:
    now = 0
    telemetry = Telemetry(lambda: now)
    for items in (5, 7, 11):
        telemetry.emit(ItemsDropped("otlp_http", "traces", "queue_overflow", items, "full"))
    telemetry.tell_left_out()
    assert len(lines(stream)) == 1, "its time has not come"
    now = LINE_INTERVAL_NS
    telemetry.tell_left_out()
    telemetry.tell_left_out()
    _, told = lines(stream)
    assert (told["message"], told["level"]) == ("dropped telemetry", "ERROR")
    assert (told["exporter"], told["reason"]) == ("otlp_http", "queue_overflow")
    assert (told["suppressed"], told["suppressed_amount"]) == (2, 18)
    telemetry.emit(ItemsDropped("otlp_http", "traces", "queue_overflow", 1, "full"))
    telemetry.tell_left_out(all_of_it=True)
    assert lines(stream)[-1]["suppressed"] == 1, "at the end nothing is kept back"


WARNINGS = {
    # Unexpected, and nothing of what was accepted is lost.
    "CanaryMissed",
    "CanaryUnpublished",
    "ConnectFailed",
    "DeliveryRetried",
    "DestinationWarned",
    "Disconnected",
    "EmittersLost",
    "KeptShed",  # an owner processes them, or a gap tells of them
    "LeaderLost",
    "LeasesLapsed",
    "LeasesUnreachable",
    "MemorySpilling",
    "MemoryUnknown",
    "NewsUnheard",
    "PollFailed",
    "PollIncomplete",
    "PollLate",
    "ResultUnreadable",
    "ResultsUnavailable",
    "SelfLogsFailed",
    "SelfMetricsFailed",
    "SeriesShadowed",  # the other one is shown
    "SignalNotOwned",  # another agent's, or a gap tells of them
    "SignalOversize",  # bad input, like the next: what the agent never took
    "SignalUndecodable",
    "SignalsMissing",  # lost before the agent, and repaired where there is a record
    "StepDeclined",
    "AttemptsOverlooked",
    "NotificationsFailed",
    "RecordAmbiguous",
    "RecordsHidden",
    "TailFailed",
    "TotalsInterrupted",
}
ERRORS = {
    # Accepted data is lost, or a person is needed.
    "AttemptsDropped",
    "ConfigRejected",
    "ConfigRolledBack",
    "FactFailed",
    "FileUnusable",
    "ItemsDropped",
    "ItemsRejected",
    "MemoryCramped",
    "MemoryShedding",
    "MemoryUnwatched",
    "ScrapeFailed",
    "SetAside",
    "SignalShed",
    "SignalUnread",
    "StateNotKept",
    "StateRefused",
    "StorageFailed",
    "EntryUndecodable",
    "NotesRefused",
    "RecordUnreadable",
    "TasksDropped",
}
INFOS = {
    "AttemptsKept",
    "AttemptsRestored",
    "BecameLeader",
    "ConfigReloaded",
    "ConfigUnchanged",
    "EmittersReleased",
    "EmittersTaken",
    "LeaderResigned",
    "MemoryCalm",
    "SeriesTakenUp",
    "StorageRecovered",
    "Subscribed",
    "NotificationsOff",
    "NotificationsOn",
    "TailBegins",
    "TotalsGoOn",
}


def events(base: type[Event] = Event) -> Iterator[type[Event]]:
    """Every event that can be told, however deep it stands."""
    for event in base.__subclasses__():
        if hasattr(event, "phrase"):
            yield event
        yield from events(event)


def test_the_level_of_every_event_is_what_it_means() -> None:
    import_everything()
    by_level: dict[int, set[str]] = {}
    for event in events():
        if event.__module__.startswith("agent."):
            by_level.setdefault(event.level, set()).add(event.__name__)
    assert by_level == {logging.INFO: INFOS, logging.WARNING: WARNINGS, logging.ERROR: ERRORS}


def test_what_makes_the_exit_code_tell_of_loss_is_an_error() -> None:
    lost = {(name, tuple(labels.items())) for name, labels in _LOST_COUNTERS}
    for event in events():
        if event.counter and {(event.counter, event.constant), (event.counter, ())} & lost:
            assert event.level == logging.ERROR, event


SECRETS = ("hunter2-s3cr3t", 'quo"ted\\s3cr3t', "ümläut-s3cr3t", "a b/c?d=s3cr3t")


@pytest.mark.parametrize("style", ["console", "json"])
@pytest.mark.parametrize("secret", SECRETS)
def test_no_line_shows_a_secret_however_it_is_written(stream: io.StringIO, style: logs.Format, secret: str) -> None:
    logs.configure("INFO", style, stream, Masker([secret]))
    for text in (secret, repr(secret), json.dumps(secret), quote(secret), quote(secret, safe=""), secret.upper()):
        Telemetry(lambda: 0).emit(Broke("key", f"refused {text} for good"))
    try:
        int(secret)
    except ValueError:
        logging.getLogger("asyncio").exception("failed with %s", secret)
    written = stream.getvalue().lower()
    assert written.count("***") >= 8
    assert "s3cr3t" not in written


def test_short_values_are_no_secrets_to_the_mask() -> None:
    assert Masker(["redis", ""])("connecting to redis") == "connecting to redis"


def test_a_key_that_is_learnt_later_is_hidden_beside_the_first() -> None:
    mask = Masker(["first-key"])
    mask.learn(["second-key"])
    assert mask("first-key or second-key") == "*** or ***"


def test_a_console_line_is_a_phrase_and_quoted_fields(stream: io.StringIO) -> None:
    logs.configure("INFO", "console", stream)
    Telemetry(lambda: 0).emit(Broke("disk", "two words\nand a line"))
    line = stream.getvalue()
    assert line.count("\n") == 1
    assert line.rstrip().endswith('WARN  something broke  what=disk detail="two words\\nand a line"')


def import_everything() -> None:
    for module in pkgutil.walk_packages(agent.__path__, "agent."):
        if not module.name.endswith("__main__"):
            import_module(module.name)


def test_every_name_of_a_metric_in_the_code_is_declared_and_none_is_left_over() -> None:
    source = "".join(path.read_text(encoding="utf-8") for path in Path(agent.__path__[0]).rglob("*.py"))
    named = Counter(re.findall(r'"(stem_agent\.[a-z_.]+[a-z])"', source))
    ours = ("stem_agent.process.", "stem_agent.items.")  # declared where they are read
    declared = {*COUNTERS, *GAUGES, *HISTOGRAMS}
    assert {name for name in named if not name.startswith(ours)} == declared
    assert {name for name in declared if named[name] < 2} == set(), "declared, but measured nowhere"


def test_every_counter_of_an_event_is_declared_as_an_instrument() -> None:
    import_everything()
    used = {event.counter for event in events() if event.counter and event is not Broke}
    used -= {"test.broken"}
    assert used <= set(COUNTERS), f"not declared: {used - set(COUNTERS)}"
    assert len(used) > 3
