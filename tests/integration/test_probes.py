"""`stem-agent observe` and `task`: a fleet whose truth is known is told exactly, and nothing in Redis changes."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import redis
from typer.testing import CliRunner

from agent.cli import app
from agent.demo.fleet.beat import Beat
from agent.demo.fleet.envelopes import new_envelope, to_json
from agent.demo.fleet.fleet import Fleet
from agent.demo.fleet.kinds import Schedule
from agent.demo.truth import Truth
from agent.demo.valkey import free_port
from agent.emit import iso, utc_now
from agent.stem.catalogue import TaskState
from tests.scene import SECRET, Known, Scene, Writers, known_fleet
from tests.servers import VALKEY, Server, binaries, running

PROBES = (
    *(("observe", what) for what in ("queues", "workers", "schedules", "dlq", "tasks", "metrics")),
    ("task", "01a20a2f-d00c-7e5c-a83e-04bca63517cf"),
)


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("STEM_")]:
        monkeypatch.delenv(name)


KNOW_LAG = [name for name in (VALKEY, *binaries()) if name != "redis-6.2"]


@pytest.fixture(scope="module", params=KNOW_LAG)
def modern(request: pytest.FixtureRequest) -> Iterator[Server]:
    """Each kind of server that can tell a depth."""
    with running(request.param) as server:
        yield server


@pytest.fixture
def both(modern: Server, namespace: str) -> Scene:
    return Scene(modern.database(), namespace)


@pytest.fixture
def scene(redis_url: str, namespace: str) -> Scene:
    return Scene(redis_url, namespace)


# --- queues ----------------------------------------------------------------------------------------------------------


def test_a_queue_whose_truth_is_known_is_told_exactly(both: Scene) -> None:
    known = both.arrange(known_fleet)
    before = both.now_ms()
    (told,) = both.told("observe", "queues")
    after = both.now_ms()
    assert before - known.first_ready_ms <= told.pop("oldestAgeMs") <= after - known.first_ready_ms
    assert known.overdue_ms - after <= told.pop("nextDueInMs") <= known.overdue_ms - before
    assert 0 <= told.pop("oldestDeadAgeMs") <= after - known.first_ready_ms + 60_000
    assert told == {
        "queue": "default",
        "depth": 5,
        "inflight": 2,
        "delayed": 4,
        "dead": 1,
        "overdue": 1,
        "paused": False,
        "depthUnknown": None,
        "enqueued": 10,
        "delivered": 5,
    }


def test_a_paused_queue_is_told_as_paused_in_its_worker_namespace(scene: Scene) -> None:
    async def paused(writers: Writers) -> None:
        await writers.publish("default")
        await writers.backend.pause(f"{scene.namespace}-workers", "default")

    scene.arrange(paused)
    assert [queue["paused"] for queue in scene.told("observe", "queues")] == [False]
    workers = ("--namespace", f"{scene.namespace}-workers")
    assert [queue["paused"] for queue in scene.told("observe", "queues", *workers)] == [True]


def test_colons_and_names_like_priorities_are_told_apart(both: Scene) -> None:
    async def work(writers: Writers) -> None:
        await writers.publish("a:b", 1)
        await writers.publish("x:p3", 2)
        await writers.publish("y", 3, priority=3)
        await writers.publish("y:p3:p3", 1)
        await writers.publish("stem.control.worker.worker-1", 4)

    both.arrange(work)
    depths = {queue["queue"]: queue["depth"] for queue in both.told("observe", "queues")}
    assert depths == {"a:b": 1, "x:p3": 2, "y": 3, "y:p3:p3": 1}
    assert [queue["depth"] for queue in both.told("observe", "queues", "--queue", "x:p3")] == [2]


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        ("delete", "the server has lost count: entries were deleted, or the consumer group began in the middle"),
        ("middle", "the server has lost count: entries were deleted, or the consumer group began in the middle"),
        ("no group", "entries wait on a stream that no worker ever read"),
    ],
)
def test_a_depth_that_nobody_knows_is_null_and_says_why(both: Scene, damage: str, why: str) -> None:
    async def work(writers: Writers) -> None:
        await writers.publish("default", 3)
        stream, group = both.keys.stream("default"), both.keys.group("default")
        entries = [entry for entry, _ in await writers.client.xrange(stream)]
        if damage == "delete":
            await writers.client.xdel(stream, entries[1])
            return
        await writers.client.xgroup_destroy(stream, group)
        if damage == "middle":
            await writers.client.xgroup_create(stream, group, entries[1])

    both.arrange(work)
    (told,) = both.told("observe", "queues")
    assert (told["depth"], told["depthUnknown"]) == (None, why)
    shown = both.probe("observe", "queues")
    assert (shown.exit_code, shown.stderr) == (0, f"queue default: depth is not known: {why}\n")
    judged = both.probe("observe", "queues", "--max-depth", "100")
    assert (judged.exit_code, judged.stderr) == (3, f"unknown: queue default: depth is not known: {why}\n")


@pytest.mark.parametrize(
    ("options", "exit_code", "said"),
    [
        (("--max-depth", "5"), 0, ""),
        (("--max-depth", "4"), 2, "critical: queue default: depth 5 is above --max-depth 4\n"),
        (("--max-inflight", "1"), 2, "critical: queue default: inflight 2 is above --max-inflight 1\n"),
        (("--max-overdue", "0"), 2, "critical: queue default: overdue 1 is above --max-overdue 0\n"),
        (("--max-dead", "0"), 2, "critical: queue default: dead 1 is above --max-dead 0\n"),
        (("--max-age", "1h"), 0, ""),
        (("--queue", "nope"), 3, "unknown: queue nope: there is no such queue\n"),
    ],
)
def test_thresholds_of_queues(scene: Scene, options: tuple[str, ...], exit_code: int, said: str) -> None:
    scene.arrange(known_fleet)
    result = scene.probe("observe", "queues", *options)
    assert (result.exit_code, result.stderr) == (exit_code, said)


def test_what_waits_for_too_long_is_critical(scene: Scene) -> None:
    async def work(writers: Writers) -> None:
        (task,) = await writers.publish("default")
        await writers.client.delete(scene.keys.stream("default"))
        fields = {key: value if isinstance(value, str) else to_json(value) for key, value in task.items()}
        await writers.client.xadd(scene.keys.stream("default"), fields, id=f"{await writers.now_ms() - 400_000}-0")
        await writers.client.xgroup_create(scene.keys.stream("default"), scene.keys.group("default"), "0")

    scene.arrange(work)
    result = scene.probe("observe", "queues", "--max-age", "5m")
    assert result.exit_code == 2
    assert result.stderr.startswith("critical: queue default: age of the oldest ready task 6 m ")
    assert result.stderr.endswith("s is above --max-age 5m\n")


def test_an_empty_redis_is_no_good_news(scene: Scene) -> None:
    note = f"no queue has a key under {scene.namespace}: in redis {scene.url.split('/')[2]}\n"
    assert scene.told("observe", "queues") == []
    assert scene.probe("observe", "queues").stderr == note
    judged = scene.probe("observe", "queues", "--max-depth", "1")
    assert (judged.exit_code, judged.stderr) == (3, f"unknown: {note}")


# --- workers ---------------------------------------------------------------------------------------------------------


async def some_workers(writers: Writers) -> None:
    await writers.beat("worker-1")
    await writers.beat("worker-2", namespace="revenue")
    await writers.client.sadd(writers.keys.heartbeats, "worker-3", "worker-4")
    await writers.client.set(writers.keys.heartbeat("worker-4"), "[]")


def test_workers_are_told_by_their_heartbeats_and_the_gone_by_their_ids(both: Scene) -> None:
    both.arrange(some_workers)
    up, gone, odd = both.told("observe", "workers", exit_code=3)
    assert 0 <= up.pop("ageMs") <= 60_000
    assert abs(up.pop("clockSkewMs")) < 60_000
    assert up.pop("timestamp").endswith("Z")
    assert up == {
        "workerId": "worker-1",
        "up": True,
        "namespace": "stem",
        "inflight": 2,
        "isolateCount": 1,
        "concurrency": 8,
        "maxConcurrency": 8,
        "prefetch": 16,
        "queues": {"default": 2},
        "subscriptions": {"queues": ["default"], "broadcasts": []},
        "host": "pod-7",
        "pid": 7,
        "memoryBytes": 64 << 20,
        "startedAt": "2026-04-23T10:00:00Z",
        "started": 12,
        "completed": 9,
        "failed": 1,
        "unreadable": None,
    }
    assert (gone["workerId"], gone["up"], gone["ageMs"]) == ("worker-3", False, None)
    assert (odd["workerId"], odd["up"], odd["unreadable"]) == ("worker-4", False, "not_an_object")
    shown = both.probe("observe", "workers")
    assert "left out, of namespace revenue: 1 (--namespace revenue)\n" in shown.stderr
    assert [
        worker["workerId"] for worker in both.told("observe", "workers", "--namespace", "revenue", exit_code=3)
    ] == [
        *("worker-2", "worker-3", "worker-4"),
    ]


def test_a_clock_that_is_wrong_shows_and_makes_no_age_wrong(scene: Scene) -> None:
    late = {"timestamp": "2020-01-01T00:00:00.000000Z"}
    scene.arrange(lambda writers: writers.beat("worker-1", **late))
    (told,) = scene.told("observe", "workers", "--max-age", "1m")
    assert told["ageMs"] < 60_000
    assert told["clockSkewMs"] < -365 * 86_400_000


@pytest.mark.parametrize(
    ("options", "exit_code", "said"),
    [
        (("--min-workers", "1"), 0, ""),
        (("--min-workers", "2"), 2, "critical: workers that are up 1 is below --min-workers 2\n"),
        (("--max-gone", "1"), 0, ""),
        (("--max-gone", "0"), 2, "critical: workers that are gone 1 is above --max-gone 0\n"),
    ],
)
def test_thresholds_of_workers(scene: Scene, options: tuple[str, ...], exit_code: int, said: str) -> None:
    async def work(writers: Writers) -> None:
        await writers.beat("worker-1")
        await writers.client.sadd(writers.keys.heartbeats, "worker-3")

    scene.arrange(work)
    result = scene.probe("observe", "workers", *options)
    assert (result.exit_code, result.stderr) == (exit_code, said)


@pytest.mark.parametrize(
    ("options", "exit_code", "said"),
    [
        ((), 0, ""),
        (("--min-workers", "1"), 2, "critical: workers that are up 0 is below --min-workers 1\n"),
        (("--max-age", "30s"), 3, "unknown: "),
        (("--max-gone", "0"), 3, "unknown: "),
    ],
)
def test_where_no_worker_ever_was_a_threshold_is_not_kept(
    scene: Scene, options: tuple[str, ...], exit_code: int, said: str
) -> None:
    nobody = "no worker of namespace elsewhere has left a heartbeat\n"
    result = scene.probe("observe", "workers", "--namespace", "elsewhere", *options)
    assert (result.exit_code, result.stderr) == (exit_code, said + nobody)


def test_the_age_of_heartbeats_that_have_all_expired_is_unknown(scene: Scene) -> None:
    scene.arrange(lambda writers: writers.client.sadd(writers.keys.heartbeats, "worker-3"))
    result = scene.probe("observe", "workers", "--max-age", "30s")
    assert result.exit_code == 3
    assert result.stderr.startswith("unknown: no worker of namespace stem is up")


def test_an_old_heartbeat_is_critical(scene: Scene) -> None:
    async def work(writers: Writers) -> None:
        await writers.beat("worker-1")
        await writers.client.pexpire(writers.keys.heartbeat("worker-1"), 15_000)

    scene.arrange(work)
    result = scene.probe("observe", "workers", "--max-age", "30s")
    assert result.exit_code == 2
    assert result.stderr.startswith("critical: worker worker-1: heartbeat ")


# --- schedules, three databases --------------------------------------------------------------------------------------


async def some_schedules(writers: Writers) -> None:
    fleet = Fleet("redis://unused", namespace="stem", rate=1, workers=0, seed=1)
    fleet.redis, fleet.keys = writers.client, writers.keys
    beat = Beat(fleet)
    for schedule in (
        Schedule("nightly", "report.daily", 3600),
        Schedule("late", "sessions.clean", -300),
        Schedule("off", "email.send", -300, enabled=False),
    ):
        await beat._enter(schedule)
    due = utc_now()
    await beat._mark_executed(Schedule("nightly", "report.daily", 3600), due, due, "RoutingError: no queue")
    await beat.emitter.close()


def test_schedules_are_told_from_their_own_database(both: Scene) -> None:
    server = both.url.rpartition("/")[0]
    both.arrange(some_schedules, f"{server}/2")
    both.arrange(lambda writers: writers.beat("worker-1"), f"{server}/1")
    both.arrange(lambda writers: writers.publish("default"))
    stores = {"STEM_RESULT_BACKEND_URL": f"{server}/1", "STEM_SCHEDULE_STORE_URL": f"{server}/2"}
    entries = {entry["id"]: entry for entry in both.told("observe", "schedules", **stores)}
    late, off, nightly = entries["late"], entries["off"], entries["nightly"]
    assert (late["enabled"], 299_000 < late["overdueMs"] < 400_000) == (True, True)
    assert (off["enabled"], off["overdueMs"]) == (False, 0)
    assert (nightly["overdueMs"], nightly["totalRunCount"], nightly["driftMs"]) == (0, 1, 0)
    assert (nightly["task"], nightly["queue"], nightly["lastError"]) == (
        *("report.daily", "maintenance", "RoutingError: no queue"),
    )
    result = both.probe("observe", "schedules", "--max-overdue", "1m", **stores)
    assert result.exit_code == 2
    assert result.stderr.startswith("critical: schedule late: overdue 5 m ")
    assert [worker["workerId"] for worker in both.told("observe", "workers", **stores)] == ["worker-1"]
    metrics = {told["metric"]: told["value"] for told in both.told("observe", "metrics", **stores)}
    assert (metrics["stem.queue.depth"], metrics["stem.worker.up"]) == (1, 1)
    assert metrics["stem.schedule.overdue"] >= 299


def test_without_a_schedule_store_the_variable_to_set_is_named(scene: Scene) -> None:
    result = scene.probe("observe", "schedules")
    assert result.exit_code == 3
    assert result.stderr == "error: no schedule store is named: set STEM_SCHEDULE_STORE_URL, or give --schedules URL\n"


# --- dead letters, tasks ---------------------------------------------------------------------------------------------


def test_dead_letters_are_told_newest_first_with_their_reasons(both: Scene) -> None:
    async def work(writers: Writers) -> list[str]:
        await writers.publish("default", 3)
        for index, delivery in enumerate(await writers.take("default", 3)):
            await writers.broker.dead_letter(delivery, "max-retries-exhausted", {"error": f"error {index}"})
        await writers.client.rpush(writers.keys.dead("default"), "not json")
        return []

    both.arrange(work)
    told = both.told("observe", "dlq")
    assert [(letter["error"], letter["reason"], letter["unreadable"]) for letter in told] == [
        ("error 2", "max-retries-exhausted", None),
        ("error 1", "max-retries-exhausted", None),
        ("error 0", "max-retries-exhausted", None),
        (None, None, "not_json"),
    ]
    assert {(letter["queue"], letter["task"], letter["attempt"], letter["maxRetries"]) for letter in told[:3]} == {
        ("default", "email.send", 0, 3)
    }
    few = both.probe("observe", "dlq", "--limit", "1", "--max-dead", "3")
    assert few.exit_code == 2
    assert few.stderr == (
        "critical: queue default: dead 4 is above --max-dead 3\n"
        "queue default: 4 dead letters, the newest 1 of them shown (--limit)\n"
    )


def test_tasks_in_flight_are_what_runs_what_was_prefetched_and_what_extended_its_lease(both: Scene) -> None:
    known = both.arrange(known_fleet)
    told = {task["id"]: task for task in both.told("observe", "tasks")}
    assert set(told) == {known.running["id"], known.prefetched["id"], known.extended["id"]}
    running, waiting, extended = (told[t["id"]] for t in (known.running, known.prefetched, known.extended))
    assert (running["state"], running["consumer"], running["deliveries"]) == ("running", "worker-1", 1)
    assert running["runningMs"] is not None
    assert (waiting["state"], waiting["runningMs"], waiting["worker"]) == ("queued", None, "worker-1")
    assert (extended["leaseExtended"], extended["consumer"], extended["state"]) == (True, None, "running")
    assert both.probe("observe", "tasks", "--max-age", "1h").exit_code == 0


def test_a_task_that_a_worker_holds_for_too_long_is_critical(scene: Scene) -> None:
    async def work(writers: Writers) -> None:
        (task,) = await writers.publish("default")
        await writers.take("default")
        await writers.run(task, startedAt="2020-01-01T00:00:00.000000Z")

    scene.arrange(work)
    result = scene.probe("observe", "tasks", "--max-age", "5m")
    assert result.exit_code == 2
    assert "on worker-1:" in result.stderr
    assert result.stderr.endswith("is above --max-age 5m\n")


def test_a_pending_entry_that_somebody_deleted_is_told_all_the_same(scene: Scene) -> None:
    async def work(writers: Writers) -> None:
        await writers.publish("default")
        (delivery,) = await writers.take("default")
        await writers.client.xdel(delivery.stream, delivery.entry_id)

    scene.arrange(work)
    (told,) = scene.told("observe", "tasks")
    assert (told["id"], told["consumer"]) == (None, "worker-1")


# --- one task --------------------------------------------------------------------------------------------------------


def where(told: Any) -> list[tuple[str, int]]:
    return [(trace["where"], trace["attempt"]) for trace in told["traces"]]


def test_a_task_is_found_wherever_it_is(both: Scene) -> None:
    known = both.arrange(known_fleet)
    for task, places, state in (
        (known.ready[0], [("waiting", 0)], "queued"),
        (known.ready[4], [("waiting", 0)], "queued"),
        (known.running, [("pending", 0)], "running"),
        (known.done, [("acknowledged", 0)], "succeeded"),
        (known.dead, [("acknowledged", 0), ("dead", 0)], "queued"),
        (known.extended, [("acknowledged", 0), ("delayed", 0)], "running"),
        (known.later[1], [("delayed", 0)], "queued"),
    ):
        told = both.told("task", task["id"])
        assert (where(told), told["state"]) == (places, state)
        assert (told["task"], told["queue"], told["found"], told["complete"]) == ("email.send", "default", True, True)
        assert told["traceId"] == task["id"].replace("-", "")
        assert told["lookedAt"] == ["default"]
    dead = both.told("task", known.dead["id"])["traces"][1]
    assert (dead["reason"], dead["error"]) == ("max-retries-exhausted", "SocketException: Connection refused")
    pending = both.told("task", known.running["id"])["traces"][0]
    assert (pending["consumer"], pending["deliveries"]) == ("worker-1", 1)


def test_a_retried_task_shows_each_attempt_and_the_trace_of_its_header(scene: Scene) -> None:
    trace = "0af7651916cd43dd8448eb211c80319c"

    async def work(writers: Writers) -> str:
        headers = {"traceparent": f"00-{trace}-b7ad6b7169203331-01"}
        (task,) = await writers.publish("default", headers=headers)
        (delivery,) = await writers.take("default")
        await writers.broker.send_back(delivery, -1, attempt=1)
        (again,) = await writers.take("default")
        error = {"type": "TimeoutException", "message": "too late", "stack": SECRET, "retryable": False, "meta": {}}
        started = utc_now() + timedelta(seconds=5)
        times = {"startedAt": iso(started), "failedAt": iso(started + timedelta(seconds=1.25))}
        meta = {"worker": "worker-1", "queue": "default", **times}
        await writers.backend.write(again.envelope, TaskState.FAILED, meta, error=error)
        return str(task["id"])

    told = scene.told("task", scene.arrange(work))
    assert where(told) == [("acknowledged", 0), ("pending", 1)]
    assert (told["traceId"], told["attempt"], told["worker"]) == (trace, 1, "worker-1")
    assert told["error"] == {"type": "TimeoutException", "message": "too late", "stack": None, "retryable": False}
    assert told["waitMs"] >= 5000
    assert told["runMs"] == 1250


def test_a_task_without_a_record_is_looked_for_in_every_queue(scene: Scene) -> None:
    async def work(writers: Writers) -> None:
        await writers.broker.publish({**new_envelope("x", "reports"), "id": 'order "77" [*]'})
        await writers.publish("default")

    scene.arrange(work)
    told = scene.told("task", 'order "77" [*]')
    assert (where(told), told["state"], told["queue"]) == ([("waiting", 0)], None, "reports")
    assert told["lookedAt"] == ["default", "reports"]


def test_a_budget_that_is_too_small_is_told_and_the_time_of_the_id_still_finds_the_task(scene: Scene) -> None:
    async def work(writers: Writers) -> str:
        (task,) = await writers.publish("default")
        await writers.publish("default", 20)
        return str(task["id"])

    task_id = scene.arrange(work)
    told = scene.told("task", task_id, "--budget", "5")
    assert (where(told), told["complete"]) == ([("waiting", 0)], False)
    assert (
        "not every entry was looked at; --budget looks at more" in scene.probe("task", task_id, "--budget", "5").stderr
    )


def test_a_task_that_is_nowhere_is_unknown_and_it_is_said_where_was_looked(scene: Scene) -> None:
    scene.arrange(lambda writers: writers.publish("default"))
    result = scene.probe("task", "nope")
    assert (result.exit_code, result.stderr) == (
        3,
        "unknown: task nope: not found; looked at its record and through default\n",
    )


# --- what holds for all ----------------------------------------------------------------------------------------------


async def everything(writers: Writers) -> Known:
    known = await known_fleet(writers)
    await some_workers(writers)
    await some_schedules(writers)
    return known


def test_no_probe_changes_anything_or_shows_an_argument_or_result(both: Scene) -> None:
    known = both.arrange(everything)
    before = both.contents()
    assert before
    tasks = [("task", task["id"]) for task in (known.done, known.running, known.dead, known.later[0], known.ready[0])]
    for words in (*PROBES, *tasks, ("observe", "queues", "--queue", "misspelt"), ("task", "misspelt")):
        for form in ((), ("--json",)):
            result = both.probe(*words, *form, STEM_SCHEDULE_STORE_URL=both.url)
            assert SECRET not in result.output
            assert "Traceback" not in result.output
    assert both.contents() == before


def test_tables_have_every_number_and_are_not_cut_where_there_is_no_terminal(scene: Scene) -> None:
    name = "a-queue-with-a-name-that-goes-on-and-on-" * 5

    async def work(writers: Writers) -> None:
        await writers.publish(name, 7)
        await writers.take(name, 2)

    scene.arrange(work)
    lines = scene.probe("observe", "queues").stdout.splitlines()
    assert lines[0].split()[:6] == ["queue", "depth", "inflight", "delayed", "overdue", "dead"]
    assert lines[2].split()[:6] == [name, "5", "2", "0", "0", "0"]


def test_a_threshold_on_schedules_where_there_is_none_is_unknown(scene: Scene) -> None:
    words = ("observe", "schedules", "--schedules", scene.url)
    nothing = f"there is no schedule under {scene.namespace}:\n"
    for options, exit_code, said in ((), 0, nothing), (("--max-overdue", "1m"), 3, f"unknown: {nothing}"):
        result = scene.probe(*words, *options)
        assert (result.exit_code, result.stderr) == (exit_code, said)


@pytest.mark.parametrize("words", PROBES)
def test_a_server_that_is_away_is_unknown_in_one_line(words: tuple[str, ...], scene: Scene) -> None:
    url = f"redis://user:hunter2@127.0.0.1:{free_port()}/0"
    result = scene.probe(*words, STEM_BROKER_URL=url, STEM_SCHEDULE_STORE_URL=url)
    server = url.split("@")[1].partition("/")[0]
    assert result.exit_code == 3
    assert result.stderr == (
        f"error: failed to ask the broker at redis {server}: connection refused;"
        " --broker, or STEM_BROKER_URL, names another\n"
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ("--broker", "http://user:hunter2@host"),
            "error: the broker's address is none: expected a URL such as redis://",
        ),
        (("--timeout", "soon"), "error: --timeout: found 'soon', expected a duration such as 250ms"),
        (("--max-age", "0"), "error: --max-age: expected a duration above zero"),
        (("--max-dpth", "3"), "Usage: "),
    ],
)
def test_a_wrong_option_is_unknown_and_not_critical(words: tuple[str, ...], said: str, scene: Scene) -> None:
    result = scene.probe("observe", "queues", *words)
    assert result.exit_code == 3
    assert result.stderr.startswith(said)
    assert "hunter2" not in result.output


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("observe",), "Usage: "),
        (("observe", "queue"), "No such command 'queue'"),
        (("worker", "stat"), "No such command 'stat'"),
        (("task",), "Missing argument 'TASK_ID'"),
        (("status", "--ulr", "http://127.0.0.1:1"), "No such option"),
    ],
)
def test_a_wrong_command_is_unknown_and_not_critical(words: tuple[str, ...], said: str) -> None:
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 3
    assert said in result.output


README = Path(__file__).parents[2] / "README.md"


def rights() -> str:
    """The line of the README about what a probe's user needs."""
    (line,) = [
        line for line in README.read_text(encoding="utf-8").splitlines() if line.startswith("ACL SETUSER stem-observer")
    ]
    return line


@pytest.fixture
def granted(both: Scene) -> Iterator[Scene]:
    """A user with the rights that the README lists, and with none else."""
    words = rights().replace("stem:*", f"{both.namespace}:*").split()
    with redis.Redis.from_url(both.url) as client:
        client.execute_command(*words)
        yield Scene(both.url.replace("redis://", "redis://stem-observer:secret@"), both.namespace)
        client.execute_command("ACL", "DELUSER", "stem-observer")


def test_the_rights_that_the_readme_lists_are_enough_for_every_probe(both: Scene, granted: Scene) -> None:
    known = both.arrange(everything)
    for words in (*PROBES[:-1], ("task", known.running["id"])):
        result = granted.probe(*words, "--namespace", both.namespace, STEM_SCHEDULE_STORE_URL=granted.url)
        assert "refused" not in result.stderr
        assert result.stdout


@pytest.mark.parametrize(
    ("words", "lacking"),
    [
        (("observe", "queues"), "+xinfo"),
        (("observe", "queues"), "+scan"),
        (("observe", "dlq"), "+lrange"),
        (("observe", "tasks"), "+xpending"),
        (("observe", "workers"), "+smembers"),
        (("observe", "schedules"), "+hmget"),
        (("task", "x"), "+strlen"),
    ],
)
def test_a_right_that_is_missing_is_named(both: Scene, granted: Scene, words: tuple[str, ...], lacking: str) -> None:
    both.arrange(everything)
    with redis.Redis.from_url(both.url) as client:
        client.execute_command("ACL", "SETUSER", "stem-observer", f"-{lacking[1:]}")
    result = granted.probe(*words, STEM_SCHEDULE_STORE_URL=granted.url)
    assert result.exit_code == 3
    assert f"; its user lacks {lacking}" in result.stderr


def test_a_namespace_that_may_not_be_read_is_named(both: Scene, granted: Scene) -> None:
    other = Scene(granted.url, "another")
    result = other.probe("observe", "queues", "--queue", "default")
    assert result.exit_code == 3
    assert "; its user lacks %R~another:*" in result.stderr


def test_a_wrong_password_is_refused(scene: Scene) -> None:
    result = scene.probe("observe", "queues", STEM_BROKER_URL=scene.url.replace("redis://", "redis://nobody:hunter2@"))
    assert result.exit_code == 3
    assert "refused: invalid username-password pair" in result.stderr
    assert "hunter2" not in result.output


def test_a_key_of_another_type_is_named_with_its_queue(scene: Scene) -> None:
    async def work(writers: Writers) -> None:
        await writers.publish("default")
        await writers.client.set(scene.keys.dead("odd"), "no list")

    scene.arrange(work)
    result = scene.probe("observe", "queues")
    assert result.exit_code == 3
    assert "refused: queue odd: WRONGTYPE" in result.stderr
    assert [queue["depth"] for queue in scene.told("observe", "queues", "--queue", "default")] == [1]


# --- a whole fleet ---------------------------------------------------------------------------------------------------


def test_the_books_of_a_fleet_that_has_ended_are_told_exactly(modern: Server) -> None:
    """The demo's fleet writes under `stem`: it has a database of its own."""
    scene = Scene(modern.database(3), "stem")

    async def live() -> Truth:
        fleet = Fleet(scene.url, namespace="stem", rate=150, workers=2, seed=3)
        asyncio.get_running_loop().call_later(2.0, fleet.stop.set)
        return await fleet.run()

    truth = asyncio.run(live())
    dead = Counter(truth.tasks[task_id].queue for task_id in truth.dead_letters)
    queues = {queue["queue"]: queue for queue in scene.told("observe", "queues")}
    assert {name: queue["dead"] for name, queue in queues.items() if queue["dead"]} == dead
    assert {(queue["depth"], queue["inflight"], queue["paused"]) for queue in queues.values()} == {(0, 0, False)}
    assert set(queues) >= {task.queue for task in truth.tasks.values()}
    letters = scene.told("observe", "dlq", "--limit", "100000")
    assert Counter(letter["id"] for letter in letters) == Counter(truth.dead_letters)
    fired = Counter(dispatch.entry_id for dispatch in truth.dispatches)
    schedules = scene.told("observe", "schedules", STEM_SCHEDULE_STORE_URL=scene.url)
    assert {entry["id"]: entry["totalRunCount"] for entry in schedules if entry["totalRunCount"]} == fired
    attempts = Counter(attempt.task_id for attempt in truth.attempts)
    for task_id in list(truth.dead_letters)[:3] + list(truth.tasks)[:3]:
        told = scene.told("task", task_id)
        assert (told["task"], told["traceId"]) == (truth.tasks[task_id].name, truth.tasks[task_id].trace_id)
        assert len({trace["attempt"] for trace in told["traces"]}) >= min(1, attempts[task_id])


# --- real processes --------------------------------------------------------------------------------------------------


def process(scene: Scene, *words: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "agent", *words, "--store-namespace", scene.namespace, "--broker", scene.url]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_real_process_ends_with_the_verdict(scene: Scene) -> None:
    scene.arrange(known_fleet)
    with process(scene, "observe", "queues", "--json", "--max-depth", "1") as running:
        out, said = running.communicate(timeout=30)
    assert running.returncode == 2
    assert [queue["depth"] for queue in json.loads(out)] == [5]
    assert said == "critical: queue default: depth 5 is above --max-depth 1\n"


def test_a_watch_tells_again_until_it_is_stopped(scene: Scene) -> None:
    scene.arrange(lambda writers: writers.publish("default", 2))
    with process(scene, "observe", "queues", "--json", "--watch", "10ms") as running:
        assert running.stdout is not None
        assert json.loads(running.stdout.readline())[0]["depth"] == 2
        scene.arrange(lambda writers: writers.publish("default", 3))
        depths = (json.loads(line)[0]["depth"] for line in running.stdout)
        assert next(depth for depth in depths if depth != 2) in {3, 4, 5}
        assert next(depth for depth in depths if depth == 5)
        running.send_signal(signal.SIGINT)
        running.communicate(timeout=30)
    assert running.returncode == 0


def test_a_watch_outlives_a_server_that_is_away(scene: Scene) -> None:
    away = Scene(f"redis://127.0.0.1:{free_port()}/0", scene.namespace)
    with process(away, "observe", "queues", "--json", "--watch", "10ms") as running:
        assert running.stderr is not None
        for line in (running.stderr.readline() for _ in range(2)):
            assert line.startswith("unknown: failed to ask the broker at redis 127.0.0.1:")
        running.send_signal(signal.SIGTERM)
        out, _ = running.communicate(timeout=30)
    assert (running.returncode, out) == (3, "")


def test_a_watch_that_waits_for_an_answer_is_stopped_as_quickly(scene: Scene) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        silent = Scene(f"redis://127.0.0.1:{server.getsockname()[1]}/0", scene.namespace)
        with process(silent, "observe", "queues", "--watch", "1s", "--timeout", "10m") as running:
            accepted, _ = server.accept()
            assert accepted.recv(1), "it asks"
            running.send_signal(signal.SIGINT)
            try:
                _, said = running.communicate(timeout=30)
            finally:
                running.kill()
            accepted.close()
    assert (running.returncode, said) == (3, "")


def test_the_package_does_not_load_pydantic_or_redis_for_the_agents_sake() -> None:
    code = "import sys, agent.stem, agent.stem.questions.queues; print({'pydantic', 'redis'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True, timeout=30) == "set()\n"
