"""The pure half of the probes: what a reply says, what it is held against, and how it is shown."""

import io
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from agent.cli.drawing import UNCUT_WIDTH, console, duration, milliseconds, short, table, utc
from agent.cli.probe import Shown, _show
from agent.cli.stores import BadOption, Stores, duration_of, tls_options
from agent.cli.verdict import Verdict, age_limit, limit
from agent.demo.fleet.envelopes import new_envelope, to_fields, to_json, uuid7
from agent.stem.catalogue import TaskState
from agent.stem.client.errors import missing_right
from agent.stem.client.reports import dead_letter_of, moment, workers_of
from agent.stem.client.task_reports import in_flight, task_report
from agent.stem.keys import Keys
from agent.stem.questions.backlog import NO_GROUP, NO_LAG, TOO_OLD, explain_depth, read_next_due
from agent.stem.questions.dead_letters import DeadLetter, read_dead_letters
from agent.stem.questions.deliveries import Delayed, delayed_of
from agent.stem.questions.query import Command, Query, QueryRefusedError, ServerError
from agent.stem.questions.records import MAX_BYTES, TOO_LARGE, read_records
from agent.stem.questions.trail import PAGE, Found, born_ms, find_task
from agent.stem.questions.workers import Heartbeats, read_heartbeats
from agent.stem.status import TaskStatus
from tests.scene import heartbeat
from tests.support import EPOCH, TASK_ID, nanoseconds

KEYS = Keys()
NOW_MS = nanoseconds(EPOCH) // 1_000_000
NO_KEY = ServerError("no such key")


def answer(query: Query[Any], replies: Mapping[str, Any], default: Any = None) -> Any:
    """Let a question have its answer: each command gets the reply that stands under its first words."""
    try:
        commands = next(query)
        while True:
            commands = query.send([reply_to(command, replies, default) for command in commands])
    except StopIteration as end:
        return end.value


def reply_to(command: Command, replies: Mapping[str, Any], default: Any) -> Any:
    words = " ".join(map(str, command))
    return next((reply for start, reply in replies.items() if words.startswith(start)), default)


# --- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reason", "missing"),
    [
        ("NOPERM User probe has no permissions to run the 'xinfo|groups' command", "+xinfo|groups"),
        ("NOPERM this user has no permissions to run the 'scan' command or its subcommand", "+scan"),
        ("NOPERM No permissions to access a key", "%R~stem:*"),
        ("NOPERM this user has no permissions to access one of the keys used as arguments", "%R~stem:*"),
        ("WRONGTYPE Operation against a key holding the wrong kind of value", None),
        ("invalid username-password pair or user is disabled.", None),
    ],
)
def test_a_refusal_names_the_right_that_is_missing(reason: str, missing: str | None) -> None:
    assert missing_right(reason, "stem") == missing


@given(st.text())
def test_a_refusal_in_other_words_names_none_or_a_command(reason: str) -> None:
    assert (missing_right(reason, "stem") or "+").startswith(("+", "%R~stem:"))


# --- what replies say ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("group", "why"),
    [
        ([b"name", b"stem:group:q", b"pending", 0, b"last-delivered-id", b"0-0"], TOO_OLD),
        ([b"name", b"stem:group:q", b"pending", 0, b"last-delivered-id", b"0-0", b"lag", None], NO_LAG),
        ([b"name", b"stem:group:q", b"pending", 0, b"last-delivered-id", b"0-0", b"lag", 3], NO_GROUP),
    ],
)
def test_an_unknown_depth_is_explained_by_what_the_server_tells(group: list[Any], why: str) -> None:
    replies = {"XINFO GROUPS stem:stream:q:p3": [group]}
    assert answer(explain_depth(KEYS, "q"), replies, NO_KEY) == why


def test_the_next_due_time_is_the_score_of_the_first_member() -> None:
    assert answer(read_next_due(KEYS, "q"), {"ZRANGE": [b"{}", b"1776938400123"]}) == 1776938400123
    assert answer(read_next_due(KEYS, "q"), {"ZRANGE": []}) is None
    with pytest.raises(QueryRefusedError):
        answer(read_next_due(KEYS, "q"), {"ZRANGE": ServerError("NOPERM no")})


@given(st.lists(st.binary() | st.just(to_json(new_envelope("x", "q")).encode())))
def test_dead_letters_and_delayed_tasks_of_any_bytes_are_read_or_told_as_unreadable(payloads: list[bytes]) -> None:
    letters = answer(read_dead_letters(KEYS, "q", 10), {"LRANGE": payloads})
    assert len(letters) == len(payloads)
    assert all(isinstance(letter, DeadLetter | str) for letter in letters)
    assert [dead_letter_of("q", letter, NOW_MS, UTC).queue for letter in letters] == ["q"] * len(payloads)
    members = [part for payload in payloads for part in (payload, b"1.5")]
    assert all(isinstance(delayed, Delayed) and delayed.due_ms == 1 for delayed in delayed_of(members))


@given(st.lists(st.binary(max_size=80) | st.none() | st.just(b'{"id":"t","state":"running"}'), max_size=5))
def test_records_of_any_bytes_are_read_or_told_as_unreadable(payloads: list[bytes | None]) -> None:
    ids = [f"t{index}" for index in range(len(payloads))]
    kept = [payload for payload in payloads if payload]
    sizes = {f"STRLEN stem:result:t{index}": len(payload or b"") for index, payload in enumerate(payloads)}
    found = answer(read_records(KEYS, ids), {**sizes, "MGET": kept})
    assert list(found) == [task_id for task_id, payload in zip(ids, payloads, strict=True) if payload]
    assert all(isinstance(record, TaskStatus | str) for record in found.values())


def test_a_record_that_is_too_large_or_no_string_is_never_fetched() -> None:
    replies = {"STRLEN stem:result:big": MAX_BYTES + 1, "STRLEN stem:result:odd": ServerError("WRONGTYPE Operation")}
    assert answer(read_records(KEYS, ["big", "odd"]), replies) == {"big": TOO_LARGE, "odd": "not a string"}


def test_a_heartbeat_kept_for_longer_than_stems_minute_is_aged_by_its_own_clock() -> None:
    beat = heartbeat("w", timestamp="2026-04-23T10:00:00.123456Z").encode()
    replies = {"SMEMBERS": [b"w"], "MGET": [beat], "PTTL": 3_600_000}
    found: Heartbeats = answer(read_heartbeats(KEYS, 10), replies)
    (worker,) = workers_of(found, NOW_MS + 4000, UTC)
    assert (worker.age_ms, worker.clock_skew_ms) == (4000, None)
    (worker,) = workers_of(answer(read_heartbeats(KEYS, 10), {**replies, "PTTL": 57_000}), NOW_MS + 4000, UTC)
    assert (worker.age_ms, worker.clock_skew_ms) == (3000, -1000)


# --- tasks -----------------------------------------------------------------------------------------------------------


@given(st.datetimes(datetime(2000, 1, 1), datetime(2200, 1, 1)))  # noqa: DTZ001 - made aware below
def test_the_time_of_an_id_is_when_it_was_made(made: datetime) -> None:
    made = made.replace(tzinfo=UTC)
    assert born_ms(uuid7(made)) == int(made.timestamp() * 1000)


@pytest.mark.parametrize("other", ["order-77", "", "00000000-0000-4000-8000-000000000000"])
def test_other_ids_tell_no_time(other: str) -> None:
    assert born_ms(other) is None


def on_one_stream(query: Query[Found], entries: list[Any], group: list[Any]) -> Found:
    """Let a search have its answer from a server that has one stream, of priority 0, and nothing else."""

    def reply(command: Command) -> Any:
        if command[0] == "XREVRANGE":
            end = next((at for at, entry in enumerate(entries) if f"({entry[0].decode()}" == command[2]), len(entries))
            return entries[:end][::-1][: int(command[-1])]
        if command[0] == "XINFO":
            return [group] if command[2] == "stem:stream:q" else NO_KEY
        return [b"0", []] if command[0] == "ZSCAN" else []

    try:
        commands = next(query)
        while True:
            commands = query.send([reply(command) for command in commands])
    except StopIteration as end:
        found: Found = end.value
        return found


@given(st.text(min_size=1, max_size=10), st.lists(st.text(max_size=10), max_size=30))
def test_a_task_is_found_among_any_others_on_a_stream_and_no_other_is(wanted: str, others: list[str]) -> None:
    ids = [*others, *["x"] * PAGE, wanted, *others]
    fields = [part.encode() for field in to_fields(new_envelope("x", "q")).items() for part in field]
    entries = [[b"%d-0" % (1000 + at), [*fields[:1], task_id.encode(), *fields[2:]]] for at, task_id in enumerate(ids)]
    group = [b"name", b"stem:group:q", b"pending", 0, b"last-delivered-id", b"1000-0", b"lag", 1]
    found = on_one_stream(find_task(KEYS, "q", wanted, 10_000), entries, group)
    assert [delivery.envelope.id for delivery in found.deliveries] == [wanted] * ids.count(wanted)
    assert [delivery.delivered for delivery in found.deliveries] == [d.entry == "1000-0" for d in found.deliveries]
    assert found.complete


def test_a_copy_of_another_attempt_is_no_extended_lease() -> None:
    task = new_envelope("x", "q")
    (copy,) = delayed_of([to_json(task).encode(), b"1"])
    for attempt, tasks in ((0, 1), (1, 0)):
        record = TaskStatus(id=task["id"], state=TaskState.RUNNING, attempt=attempt)
        assert len(in_flight("q", [], [copy], {task["id"]: record}, NOW_MS, UTC)) == tasks
    done = TaskStatus(id=task["id"], state=TaskState.SUCCEEDED, attempt=0)
    assert in_flight("q", [], [copy], {task["id"]: done}, NOW_MS, UTC) == []


def test_a_running_task_has_run_until_now_and_a_revoked_one_until_its_record() -> None:
    running = TaskStatus(id=TASK_ID, state=TaskState.RUNNING, started_at=EPOCH - timedelta(seconds=3))
    assert task_report(TASK_ID, running, [], NOW_MS, UTC, whole=True).run_ms == 3000
    cancelled = TaskStatus(
        id=TASK_ID, state=TaskState.CANCELLED, started_at=EPOCH - timedelta(seconds=3), updated_at=EPOCH
    )
    assert task_report(TASK_ID, cancelled, [], NOW_MS + 9999, UTC, whole=True).run_ms == 3000


def test_nothing_known_is_not_found() -> None:
    report = task_report(TASK_ID, None, [], NOW_MS, UTC, whole=False)
    assert (report.found, report.state, report.complete) == (False, None, False)
    assert task_report(TASK_ID, TOO_LARGE, [], NOW_MS, UTC, whole=True).record_unreadable == TOO_LARGE


@given(st.integers(-(1 << 63), 1 << 63))
def test_any_score_is_a_time(unix_ms: int) -> None:
    assert moment(unix_ms).tzinfo is UTC


# --- verdicts --------------------------------------------------------------------------------------------------------


@given(st.integers(0, 10), st.integers(0, 10))
def test_a_value_is_critical_only_above_its_threshold(value: int, most: int) -> None:
    verdict = Verdict()
    verdict.at_most("depth", value, limit("--max-depth", most))
    assert verdict.exit_code == (2 if value > most else 0)
    assert verdict.lines == ([f"critical: depth {value} is above --max-depth {most}"] if value > most else [])


def test_without_a_threshold_nothing_is_judged_and_what_is_critical_outweighs_what_is_unknown() -> None:
    verdict = Verdict()
    verdict.at_most("depth", None, None)
    assert verdict.exit_code == 0
    verdict.at_most("depth", None, limit("--max-depth", 1), why="the server has lost count")
    assert (verdict.exit_code, verdict.lines) == (3, ["unknown: depth is not known: the server has lost count"])
    verdict.at_least("workers", 1, limit("--min-workers", 2))
    assert verdict.exit_code == 2


@pytest.mark.parametrize("text", ["", "0", "soon", "-1s", "5"])
def test_a_duration_that_is_none_is_refused_by_name(text: str) -> None:
    with pytest.raises(BadOption, match="--max-age"):
        age_limit("--max-age", text)


def test_ages_are_held_in_milliseconds_and_named_as_they_were_written() -> None:
    five_minutes = age_limit("--max-age", "5m")
    assert five_minutes is not None
    assert (five_minutes.value, five_minutes.text) == (300_000, "5m")
    assert duration_of("--watch", "250ms") == 0.25


def test_stems_variables_of_tls_are_taken_as_stem_takes_them() -> None:
    told = {"STEM_TLS_CA_CERT": "ca.pem", "STEM_TLS_ALLOW_INSECURE": "1", "STEM_TLS_CLIENT_KEY": ""}
    assert tls_options(told) == {
        "ca_file": "ca.pem",
        "cert_file": None,
        "key_file": None,
        "insecure_skip_verify": True,
    }
    with pytest.raises(BadOption, match="STEM_TLS_ALLOW_INSECURE"):
        tls_options({"STEM_TLS_ALLOW_INSECURE": "perhaps"})


# --- drawing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "-"), (0, "0 ms"), (999, "999 ms"), (1234, "1.2 s"), (-59_999, "-60.0 s"), (250_000, "4 m 10 s")],
)
def test_durations_read_as_people_say_them(value: int | None, text: str) -> None:
    assert milliseconds(value) == text


@given(st.floats(0, 1e9))
def test_a_duration_has_at_most_two_units(seconds: float) -> None:
    assert len(duration(seconds).split()) in {2, 4}


@given(st.text())
def test_a_long_text_becomes_one_short_line(text: str) -> None:
    assert len(short(text)) <= 100
    assert len(short(text).splitlines()) <= 1


def test_times_are_in_utc() -> None:
    assert utc(datetime(2026, 4, 23, 12, tzinfo=timezone(timedelta(hours=2)))) == "2026-04-23 10:00:00Z"
    assert utc(None) == "-"


def test_a_dumb_terminal_cuts_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert console().is_dumb_terminal
    assert console().width == UNCUT_WIDTH


def test_what_is_redrawn_takes_one_line_a_row_however_narrow_the_terminal_is() -> None:
    rows = [(f"worker-{number}", "x" * 200) for number in range(3)]
    shown = Shown(rows, lambda: [table(("worker", "queues"), rows)], notes=["a note that is longer than the terminal"])
    stores = Stores("", None, None, "stem", "stem", "5s", as_json=False)
    narrow = Console(file=io.StringIO(), width=30)
    _show(stores, shown, narrow.print)
    lines = narrow.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert len(lines) == 1 + 1 + len(rows) + 1, "headings, a rule, the rows, the note"
    assert max(map(len, lines)) <= 30
