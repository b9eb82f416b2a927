"""Queues that anything may happen to, and a model of them: every reading equals it, whatever was remembered before."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC
from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.stem.keys import Keys
from agent.stem.questions.query import LOOK_AGAIN, Query, ServerError
from agent.stem.questions.queues import QueueState, QueueWatch
from tests.servers import Server

KEYS = Keys()
QUEUE = "email"
GROUP = KEYS.group(QUEUE)
PRIORITIES = (0, 1, 5, 9)
LONG_AGO, FAR_AHEAD = 1, 1 << 50

SETTINGS = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def redis_client(server: Server) -> Iterator["redis.Redis"]:
    with redis.Redis.from_url(server.database(), protocol=2) as client:
        client.response_callbacks.clear()
        yield client


@dataclass
class Stream:
    """What a stream and its group have."""

    waiting: list[bytes] = field(default_factory=list)
    pending: list[bytes] = field(default_factory=list)
    delivered: int = 0
    added: int = 0
    sure_in: int = LOOK_AGAIN
    """After so many readings more it is certainly looked at."""


class Model:
    """A queue on a real server, and what must be told of it."""

    def __init__(self, client: Any, *, knows_lag: bool) -> None:
        self.run = client.execute_command
        self.knows_lag = knows_lag
        self.client = client
        self.streams = {priority: Stream() for priority in PRIORITIES}
        self.delayed = self.overdue = self.dead = 0
        self.deleted = False
        self.watch = QueueWatch(KEYS, QUEUE)
        self.readings = 0
        self.run("FLUSHALL")

    # --- what happens --------------------------------------------------------------------------------------------

    def listen(self, _: int, __: int) -> None:
        for stream in KEYS.streams(QUEUE):
            self._ensure_group(stream)

    def publish(self, priority: int, times: int) -> None:
        key, stream = KEYS.stream(QUEUE, priority), self.streams[priority]
        self._ensure_group(key)
        stream.waiting += [self.run("XADD", key, "*", "id", "1") for _ in range(times)]
        stream.added += times

    def deliver(self, priority: int, times: int) -> None:
        key, stream = KEYS.stream(QUEUE, priority), self.streams[priority]
        self._ensure_group(key)
        self.run("XREADGROUP", "GROUP", GROUP, "w", "COUNT", times, "STREAMS", key, ">")
        handed, stream.waiting = stream.waiting[:times], stream.waiting[times:]
        stream.pending += handed
        stream.delivered += len(handed)

    def acknowledge(self, priority: int, times: int) -> None:
        stream = self.streams[priority]
        for entry in stream.pending[:times]:
            self.run("XACK", KEYS.stream(QUEUE, priority), GROUP, entry)
        del stream.pending[:times]

    def delay(self, priority: int, times: int) -> None:
        score = LONG_AGO if priority else FAR_AHEAD
        self.run("ZADD", KEYS.delayed(QUEUE), score, f"{self.delayed}-{times}")
        self.delayed += 1
        self.overdue += score == LONG_AGO

    def bury(self, _: int, __: int) -> None:
        self.run("LPUSH", KEYS.dead(QUEUE), "{}")
        self.dead += 1

    def purge(self, _: int, __: int) -> None:
        self.run("DEL", *KEYS.streams(QUEUE), KEYS.delayed(QUEUE), KEYS.dead(QUEUE))
        self.streams = {priority: Stream() for priority in PRIORITIES}
        self.delayed = self.overdue = self.dead = 0

    def delete(self, priority: int, times: int) -> None:
        """Take away something that waits, as Stem never does."""
        stream = self.streams[priority]
        for entry in stream.waiting[times - 1 : times]:
            self.run("XDEL", KEYS.stream(QUEUE, priority), entry)
            stream.waiting.remove(entry)

    def trim(self, priority: int, times: int) -> None:
        stream = self.streams[priority]
        self.run("XTRIM", KEYS.stream(QUEUE, priority), "MAXLEN", times - 1)
        stream.waiting = stream.waiting[-(times - 1) :] if times > 1 else []

    def read(self, _: int = 0, __: int = 0) -> QueueState:
        query: Query[QueueState] = self.watch.read(1 << 40, UTC)
        self.readings += 1
        return answer(self.client, query)

    def _ensure_group(self, key: str) -> None:
        try:
            self.run("XGROUP", "CREATE", key, GROUP, "0", "MKSTREAM")
        except redis.ResponseError as error:
            assert "BUSYGROUP" in str(error)

    # --- what must be told ---------------------------------------------------------------------------------------

    def told(self) -> list[tuple[Any, ...]]:
        """Return what may be told: with those that held nothing when they were looked at last, or without them."""
        used = {p for p, stream in self.streams.items() if stream.added}
        unsure = {p for p in used if p and self.streams[p].sure_in > 0 and self.readings}
        for priority in used:
            self.streams[priority].sure_in -= 1
        subsets = itertools.chain.from_iterable(itertools.combinations(unsure, n) for n in range(len(unsure) + 1))
        return [self._sums([self.streams[p] for p in (used - unsure) | set(more)]) for more in subsets]

    def _sums(self, streams: list[Stream]) -> tuple[Any, ...]:
        waiting = sum(len(stream.waiting) for stream in streams)
        oldest = [int(stream.waiting[0].partition(b"-")[0]) for stream in streams if stream.waiting]
        return (
            waiting if self.knows_lag or not waiting else None,
            sum(len(stream.pending) for stream in streams),
            *(self.delayed, self.overdue, self.dead),
            *((sum(s.added for s in streams), sum(s.delivered for s in streams)) if self.knows_lag else (None, None)),
            min(oldest, default=None),
        )


def answer(client: Any, query: Query[Any]) -> Any:
    """Answer a question as the reader does, without a loop."""
    replies: Any = None
    while True:
        try:
            commands = next(query) if replies is None else query.send(replies)
        except StopIteration as end:
            return end.value
        pipeline = client.pipeline(transaction=False)
        for command in commands:
            pipeline.execute_command(*command)
        replies = [
            ServerError(reply) if isinstance(reply, Exception) else reply
            for reply in (pipeline.execute(raise_on_error=False) if commands else [])
        ]


def numbers(state: QueueState) -> tuple[Any, ...]:
    return (
        *(state.depth, state.inflight, state.delayed, state.overdue, state.dead),
        *(state.enqueued, state.delivered, state.oldest_ready_ms),
    )


def steps(*names: str) -> st.SearchStrategy[list[tuple[str, int, int]]]:
    step = st.tuples(st.sampled_from(names), st.sampled_from(PRIORITIES), st.integers(1, 4))
    return st.lists(step, max_size=30)


@SETTINGS
@given(steps=steps("publish", "publish", "deliver", "acknowledge", "listen", "delay", "bury", "purge", "read", "read"))
def test_every_reading_of_what_stem_does_is_exact(server: Server, redis_client: Any, steps: list[Any]) -> None:
    model = Model(redis_client, knows_lag=server.knows_lag)
    for name, priority, times in [*steps, *[("read", 0, 0)] * LOOK_AGAIN]:
        if name == "read":
            may = model.told()
            assert _without_unknown_totals(numbers(model.read()), may) in may
        else:
            getattr(model, name)(priority, times)
    assert numbers(model.read())[:5] == model.told()[0][:5]


def _without_unknown_totals(told: tuple[Any, ...], may: list[tuple[Any, ...]]) -> tuple[Any, ...]:
    """A server without lag has no totals either, but none were needed of streams that do not exist."""
    return told if may[0][5] is not None else (*told[:5], None, None, told[7])


@SETTINGS
@given(steps=steps("publish", "publish", "deliver", "deliver", "delete", "acknowledge"))
def test_what_others_delete_makes_a_depth_unknown_but_never_wrong_for_who_reads_at_each_step(
    server: Server, redis_client: Any, steps: list[Any]
) -> None:
    model = Model(redis_client, knows_lag=server.knows_lag)
    model.listen(0, 0)
    for name, _, times in steps:
        getattr(model, name)(0, times)
        state, waiting = model.read(), model.streams[0].waiting
        assert state.depth in ({None, len(waiting)} if waiting else {0})
        assert state.inflight == len(model.streams[0].pending)
        assert state.oldest_ready_ms == (int(waiting[0].partition(b"-")[0]) if waiting else None)
    _is_exact_once_caught_up(model)


@SETTINGS
@given(steps=steps("publish", "publish", "deliver", "delete", "trim", "read", "read"))
def test_whatever_others_did_a_queue_that_caught_up_is_told_exactly_from_then_on(
    server: Server, redis_client: Any, steps: list[Any]
) -> None:
    model = Model(redis_client, knows_lag=server.knows_lag)
    model.listen(0, 0)
    for name, _, times in steps:
        getattr(model, name)(0, times)
    _is_exact_once_caught_up(model)
    model.deliver(0, 1000)
    assert model.read().depth == 0


def _is_exact_once_caught_up(model: Model) -> None:
    for _ in range(2):  # the second time, what was delivered tells how the server goes on counting
        model.publish(0, 1)
        model.read()
        model.deliver(0, 1000)
        assert model.read().depth == 0
    for times in (3, 1, 2):
        model.publish(0, times)
        waiting = len(model.streams[0].waiting)
        assert model.read().depth == (waiting if model.knows_lag else None)
        model.deliver(0, 2)
        waiting = len(model.streams[0].waiting)
        assert model.read().depth == (waiting if model.knows_lag or not waiting else None)
