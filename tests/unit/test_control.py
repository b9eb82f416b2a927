"""Stem's control protocol: names, requests, replies, an inquiry step by step, and how it is told."""

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from agent.cli import app
from agent.cli.worker_view import as_json, draw
from agent.demo.fleet.envelopes import from_fields, new_envelope, to_fields
from agent.stem.control.inquiry import Answer, Inquiry, NoReply
from agent.stem.control.protocol import (
    ControlCommand,
    Inspection,
    Payload,
    Ping,
    Reply,
    ReplyError,
    Stats,
    broadcast_queue,
    decode_reply,
    reply_queue,
    request,
    request_fields,
    worker_queue,
)
from agent.stem.keys import Keys
from agent.stem.lenient import DecodeError
from agent.stem.questions.query import Command, Query, QueryRefusedError, ServerError
from agent.stem.questions.queues import is_control
from tests.support import EPOCH

NAME = b"__stem.control.reply__"
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)
commands = st.sampled_from(list(ControlCommand))


def answered(**told: Any) -> dict[str, bytes]:
    return {"name": NAME, "args": json.dumps({"workerId": "w", "status": "ok", **told}).encode()}


# --- names and requests ----------------------------------------------------------------------------------------------


@given(namespace=st.text(min_size=1), worker=st.text(st.characters(exclude_characters="\n"), min_size=1))
def test_control_queues_are_known_as_such(namespace: str, worker: str) -> None:
    for queue in (worker_queue(namespace, worker), broadcast_queue(namespace), reply_queue(namespace, "r-1")):
        assert is_control(queue)


def test_the_names_are_stems() -> None:
    assert Keys("shop").stream(worker_queue("stem", "host:1")) == "shop:stream:stem.control.worker.host:1"
    assert broadcast_queue("revenue") == "revenue.control.broadcast"
    assert reply_queue("revenue", "r-1") == "revenue.control.reply.r-1"


@given(command=commands, worker=st.text(), timeout_ms=st.integers(0, 1 << 40))
def test_a_request_is_an_envelope_like_any_other(command: ControlCommand, worker: str, timeout_ms: int) -> None:
    asked = request(command, "r-1", namespace="ns", worker_id=worker, timeout_ms=timeout_ms)
    queue = worker_queue("ns", worker)
    fields = request_fields(asked, queue=queue, now=EPOCH)
    assert set(fields) == set(to_fields(new_envelope("task", "queue")))
    envelope = from_fields(fields)
    assert (envelope["name"], envelope["queue"], envelope["headers"]) == (
        "__stem.control__",
        queue,
        {"stem-control": "1"},
    )
    assert datetime.fromisoformat(envelope["enqueuedAt"]) == EPOCH
    assert envelope["args"] == {
        "requestId": "r-1",
        "type": str(command),
        "targets": [worker],
        "payload": {"namespace": "ns", "includeRevoked": True} if command is ControlCommand.INSPECT else {},
        "timeoutMs": timeout_ms,
    }


def test_only_what_asks_can_be_asked() -> None:
    assert set(ControlCommand) == {"ping", "stats", "inspect"}


# --- replies ---------------------------------------------------------------------------------------------------------


def test_a_reply_is_read() -> None:
    active = {"id": "t", "task": "a", "queue": "q", "attempt": 1, "runtimeMs": 5, "startedAt": EPOCH.isoformat()}
    stats = {"inflight": 1, "queues": {"q": 1}, "pausedQueues": ["p"], "active": [active], "lastQueueDepth": None}
    told = decode_reply(answered(payload=stats), ControlCommand.STATS).payload
    assert isinstance(told, Stats)
    assert (told.inflight, told.queues, told.paused_queues, told.last_queue_depth) == (1, {"q": 1}, ("p",), None)
    assert told.active
    assert (told.active[0].task, told.active[0].started_at) == ("a", EPOCH)
    revoked = [{"taskId": "t", "version": 7, "terminate": False, "issuedAt": "2026-04-23T10:00:00.000Z"}]
    seen = decode_reply(answered(payload={"revoked": revoked}), ControlCommand.INSPECT).payload
    assert isinstance(seen, Inspection)
    assert seen.revoked
    assert seen.revoked[0].version == 7
    assert seen.active is None, "not told is not none"


def test_an_error_is_read() -> None:
    error = {"message": "no", "detail": {"odd": 1}, "stack": "#0 main"}
    reply = decode_reply(answered(status="error", error=error), ControlCommand.PING)
    assert not reply.ok
    assert reply.error == ReplyError("no", None, "#0 main")
    assert reply.payload == Ping()


def test_an_odd_field_costs_that_field() -> None:
    payload = {"inflight": -3, "queue": 5, "subscriptions": {"queues": ["a"], "broadcasts": 7}, "timestamp": "soon"}
    told = decode_reply(answered(payload=payload), ControlCommand.PING).payload
    assert isinstance(told, Ping)
    assert (told.inflight, told.queue, told.timestamp) == (None, None, None)
    assert told.subscriptions
    assert told.subscriptions.queues == ("a",)
    stats = {"inflight": "many", "active": [{"id": "t", "attempt": "x"}, {"id": "u"}], "queues": {"q": "1"}}
    more = decode_reply(answered(payload=stats), ControlCommand.STATS).payload
    assert isinstance(more, Stats)
    assert more.active
    assert [(task.id, task.attempt) for task in more.active] == [("t", None), ("u", None)]
    assert more.queues == {"q": 1}


def test_text_that_was_cut_in_the_middle_of_an_emoji_is_read() -> None:
    args = rb'{"workerId":"w","status":"error","error":{"message":"cut \ud83d"}}'
    reply = decode_reply({"name": NAME, "args": args}, ControlCommand.PING)
    assert reply.error == ReplyError("cut �")


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({}, "not_a_reply"),
        ({"name": b"email.send", "args": b"{}"}, "not_a_reply"),
        ({"name": NAME}, "not_json"),
        ({"name": NAME, "args": b"{"}, "not_json"),
        ({"name": NAME, "args": b"[]"}, "not_an_object"),
        ({"name": NAME, "args": b'{"status":"ok"}'}, "missing_workerId"),
        ({"name": NAME, "args": b'{"workerId":5,"status":"ok"}'}, "invalid_workerId"),
        ({"name": NAME, "args": b'{"workerId":"w"}'}, "missing_status"),
    ],
)
def test_what_is_no_reply_is_refused_with_its_reason(fields: dict[str, bytes], reason: str) -> None:
    with pytest.raises(DecodeError) as refused:
        decode_reply(fields, ControlCommand.PING)
    assert refused.value.reason == reason


@given(command=commands, told=st.dictionaries(st.sampled_from(["payload", "error", "status", "x"]), anything))
def test_whatever_workers_write_is_read_or_refused(command: ControlCommand, told: dict[str, Any]) -> None:
    try:
        reply = decode_reply(answered(**told), command)
    except DecodeError as error:
        assert error.reason in {"not_json", "not_an_object", "invalid_status"}
    else:
        assert reply.worker_id == "w"


# --- an inquiry, step by step ----------------------------------------------------------------------------------------


class Server:
    """Answers a question's commands from a script, and keeps them."""

    def __init__(self) -> None:
        self.sent: list[Command] = []

    def ask(self, query: Query[None], *steps: Sequence[Any]) -> None:
        """Run a question to its end; the replies of each step are given."""
        replies = iter(steps)
        commands = next(query)
        while True:
            self.sent += commands
            try:
                commands = query.send(next(replies))
            except StopIteration:
                assert not list(replies), "the question had another step"
                return


def inquiry(*workers: str, command: ControlCommand = ControlCommand.PING) -> Inquiry:
    return Inquiry(command, workers, keys=Keys(), namespace="stem", request_id="r", timeout_ms=1000)


def reply_of(worker: str, entry: bytes, *, status: str = "ok") -> list[Any]:
    args = json.dumps({"workerId": worker, "status": status, "payload": {}}).encode()
    return [[b"stem:stream:stem.control.reply.r", [[entry, [b"name", NAME, b"args", args]]]]]


def group(worker: str, last: bytes) -> list[Any]:
    name = f"stem:group:stem.control.worker.{worker}".encode()
    return [[b"name", name, b"consumers", 1, b"pending", 0, b"last-delivered-id", last]]


def test_the_reply_stream_expires_from_its_first_moment() -> None:
    server, asked = Server(), inquiry("w")
    server.ask(asked.prepare(), [b"OK", b"QUEUED", b"QUEUED", [b"OK", 1]])
    assert [command[0] for command in server.sent] == ["MULTI", "XGROUP", "PEXPIRE", "EXEC"]
    assert server.sent[2] == ("PEXPIRE", "stem:stream:stem.control.reply.r", 601_000)
    refused = [b"OK", ServerError("NOPERM x"), b"QUEUED", ServerError("EXECABORT discarded")]
    with pytest.raises(QueryRefusedError, match="NOPERM x"):
        server.ask(asked.prepare(), refused)


def test_all_have_answered() -> None:
    server, asked = Server(), inquiry("a", "b")
    server.ask(asked.send(EPOCH), [b"100-0", b"100-1"])
    assert asked.waiting
    server.ask(asked.listen(500), [reply_of("a", b"103-0")])
    assert asked.waiting
    server.sent.clear()
    server.ask(asked.listen(0), [reply_of("b", b"99-0")])
    assert server.sent == [("XREAD", "BLOCK", 1, "STREAMS", "stem:stream:stem.control.reply.r", "103-0")]
    assert not asked.waiting
    server.sent.clear()
    server.ask(asked.withdraw(), [1, 1, 0, 0, None], [1])
    assert [command[0] for command in server.sent] == ["XDEL", "XDEL", "XACK", "XACK", "XREAD", "DEL"]
    assert {worker: answer.after_ms for worker, answer in asked.answers.items()} == {"a": 3, "b": 0}
    assert asked.all_well


@pytest.mark.parametrize(
    ("groups", "why", "deleted"),
    [
        (group("w", b"100-4"), NoReply.UNREAD, True),
        (group("w", b"99-7"), NoReply.UNREAD, True),
        (group("w", b"100-5"), NoReply.UNANSWERED, False),
        (group("w", b"100-10"), NoReply.UNANSWERED, False),
        (group("v", b"100-10"), NoReply.UNREAD, True),
        ([], NoReply.UNREAD, True),
        (ServerError("ERR no such key"), NoReply.UNREAD, True),
        (ServerError("NOPERM no"), NoReply.UNKNOWN, False),
    ],
)
def test_the_reply_stream_stays_only_for_who_has_read_the_command(groups: Any, why: NoReply, *, deleted: bool) -> None:
    server, asked = Server(), inquiry("w")
    server.ask(asked.send(EPOCH), [b"100-5"])
    server.sent.clear()
    server.ask(asked.withdraw(), [1, 1, groups, None], [1] if deleted else [])
    assert asked.silent == {"w": why}
    assert (server.sent[-1] == ("DEL", "stem:stream:stem.control.reply.r")) is deleted
    assert not asked.left_behind
    assert not asked.all_well


def test_a_reply_at_the_last_moment_is_one() -> None:
    server, asked = Server(), inquiry("w")
    server.ask(asked.send(EPOCH), [b"100-5"])
    server.ask(asked.withdraw(), [1, 1, group("w", b"100-5"), reply_of("w", b"200-0")], [1])
    assert asked.all_well
    assert not asked.silent


def test_who_has_no_control_stream_is_not_waited_for() -> None:
    server, asked = Server(), inquiry("w")
    server.ask(asked.send(EPOCH), [None])
    assert not asked.waiting
    server.ask(asked.withdraw(), [None], [1])
    assert asked.silent == {"w": NoReply.NOT_LISTENING}


def test_a_command_that_was_refused_takes_the_others_back() -> None:
    server, asked = Server(), inquiry("a", "b")
    with pytest.raises(QueryRefusedError, match="OOM"):
        server.ask(asked.send(EPOCH), [b"100-0", ServerError("OOM command not allowed")])
    assert asked.left_behind == [("stem:stream:stem.control.worker.a", "100-0")]
    server.ask(asked.withdraw(), [1, 0, [], None], [1])
    assert not asked.left_behind


def test_what_cannot_be_taken_back_is_known() -> None:
    server, asked = Server(), inquiry("w")
    server.ask(asked.send(EPOCH), [b"100-0"])
    with pytest.raises(QueryRefusedError, match="READONLY"):
        server.ask(asked.withdraw(), [ServerError("READONLY replica"), 0, [], ServerError("x")], [1])
    assert asked.left_behind == [("stem:stream:stem.control.worker.w", "100-0")]


FATES = st.sampled_from(["deaf", "unread", "read", "answers", "answers late"])


@given(fates=st.lists(FATES, min_size=1, max_size=6), data=st.data())
def test_whatever_becomes_of_it_everything_is_taken_back_or_expires(fates: list[str], data: st.DataObject) -> None:
    workers = {f"w-{number}": fate for number, fate in enumerate(fates)}
    server, asked = Server(), inquiry(*workers)
    server.ask(asked.send(EPOCH), [None if fate == "deaf" else b"100-0" for fate in fates])
    answering = data.draw(st.permutations([worker for worker, fate in workers.items() if fate == "answers"]))
    for number, worker in enumerate(answering):
        server.ask(asked.listen(10), [reply_of(worker, f"200-{number}".encode())])
    sent = [worker for worker, fate in workers.items() if fate != "deaf"]
    silent = [worker for worker in sent if worker not in answering]
    late = [worker for worker in silent if workers[worker] == "answers late"]
    replies = [
        entry
        for number, worker in enumerate(late)
        for _, found in reply_of(worker, b"300-%d" % number)
        for entry in found
    ]
    groups = [group(worker, b"99-0" if workers[worker] == "unread" else b"100-0") for worker in silent]
    server.sent.clear()
    may_still_answer = "read" in fates
    withdrawn = [*[1] * 2 * len(sent), *groups, [[b"stream", replies]] if replies else None]
    server.ask(asked.withdraw(), withdrawn, [] if may_still_answer else [1])
    assert {command[1] for command in server.sent if command[0] == "XDEL"} == {
        f"stem:stream:stem.control.worker.{worker}" for worker in sent
    }
    assert any(command[0] == "DEL" for command in server.sent) is not may_still_answer
    assert not asked.left_behind
    assert set(asked.answers) == {*answering, *late}
    assert set(asked.silent) == set(workers) - set(asked.answers)


# --- how it is told --------------------------------------------------------------------------------------------------


def told(command: ControlCommand, payload: Payload) -> Inquiry:
    """One that answered, one that could not, one that is silent."""
    asked = inquiry("worker-1", "worker-2", "worker-3", command=command)
    asked.answers["worker-1"] = Answer(Reply("worker-1", "ok", payload), 3)
    asked.answers["worker-2"] = Answer(Reply("worker-2", "error", type(payload)(), ReplyError("no pool")), 1500)
    asked.silent["worker-3"] = NoReply.UNREAD
    return asked


def test_json_has_an_object_a_worker_in_stems_words() -> None:
    ping = Ping(timestamp=datetime(2026, 4, 23, 10, tzinfo=UTC), queue="default", inflight=2)
    assert json.loads(as_json(told(ControlCommand.PING, ping))) == [
        {
            "workerId": "worker-1",
            "status": "ok",
            "afterMs": 3,
            "timestamp": "2026-04-23T10:00:00Z",
            "queue": "default",
            "inflight": 2,
            "subscriptions": None,
        },
        {
            "workerId": "worker-2",
            "status": "error",
            "afterMs": 1500,
            "error": {"message": "no pool", "detail": None, "stack": None},
        },
        {"workerId": "worker-3", "status": "no reply", "reason": "it did not read the command"},
    ]


@pytest.mark.parametrize("command", list(ControlCommand))
def test_tables_say_what_is_not_known(command: ControlCommand) -> None:
    payload = {ControlCommand.PING: Ping, ControlCommand.STATS: Stats, ControlCommand.INSPECT: Inspection}[command]()
    rows = [line.split() for line in draw(told(command, payload)).splitlines()]
    (row,) = [row for row in rows if "worker-1" in row]
    assert set(row[2:]) <= {"?", "-", "3", "ms"}
    said = [" ".join(row) for row in rows]
    assert any(line.startswith("worker-2 error: no pool") for line in said)
    assert any(line.startswith("worker-3 no reply: it did not read the command") for line in said)


def test_the_table_of_revoked_tasks_says_how_many_workers_know_of_each() -> None:
    entries = [{"taskId": "t-1", "version": 1}, {"taskId": "[bold]t-2", "version": 2, "requestedBy": "ops"}]
    active = [{"id": "a", "task": "x", "runtimeMs": 65_000, "lastLeaseRenewalMsAgo": 1200, "attempt": 0}]
    asked = inquiry("w-1", "w-2", command=ControlCommand.INSPECT)
    for worker, known in (("w-1", entries), ("w-2", entries[1:])):
        reply = decode_reply(answered(payload={"revoked": known, "active": active}), ControlCommand.INSPECT)
        asked.answers[worker] = Answer(reply, 1)
    printed = draw(asked)
    rows = [line.split() for line in printed.splitlines() if "t-1" in line or "t-2" in line]
    assert rows == [
        ["[bold]t-2", "?", "ops", "-", "2", "of", "2", "workers"],
        ["t-1", "?", "-", "-", "1", "of", "2", "workers"],
    ]
    assert "1 m 5 s" in printed
    assert "1.2 s ago" in printed


def test_what_a_worker_says_moves_no_cursor() -> None:
    asked = inquiry("w", command=ControlCommand.PING)
    asked.answers["w"] = Answer(Reply("w", "error", Ping(), ReplyError("\x1b[2J\rgone")), 1)
    assert "error: \ufffd[2J gone" in draw(asked)


@pytest.mark.parametrize("command", list(ControlCommand))
def test_the_help_says_that_it_writes_and_what(command: ControlCommand) -> None:
    told = CliRunner().invoke(app, ["worker", str(command), "--help"], env={"COLUMNS": "400", "TERM": "dumb"})
    text = " ".join(told.output.split())
    assert "This writes into the fleet's Redis" in text
    assert "{namespace}.control.worker.{id}" in text
    assert "XGROUP CREATE, PEXPIRE, XADD, XREAD, XDEL, XACK, XINFO GROUPS and DEL" in text
