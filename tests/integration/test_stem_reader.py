"""The shell that asks: in lockstep, with errors as values, and anew after every failure."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urlsplit

import pytest
import redis.exceptions
from asyncio_throttle.throttler import Throttler

from agent.core.errors import StartupError
from agent.settings.redis_tls import RedisTls
from agent.settings.types import RedisUrl
from agent.stem.client.reader import RedisReader
from agent.stem.questions.query import Query, QueryRefusedError, ServerError, read_clock
from tests.servers import Server
from tests.stores import asking
from tests.tcp import passing_on, serving


@pytest.fixture
async def asked(server: Server) -> AsyncIterator[RedisReader]:
    async with asking(server.database()) as asked:
        await asked.send([("FLUSHALL",)])
        asked.round_trips = 0
        yield asked


def port_of(server: Server) -> int:
    return urlsplit(server.url).port or 0


def echo(*steps: str) -> Query[list[Any]]:
    """Ask something in so many steps; an empty one asks nothing."""
    heard = []
    for step in steps:
        heard += yield [("ECHO", step)] if step else []
    return heard


async def test_steps_of_many_questions_share_their_round_trips(asked: RedisReader) -> None:
    answers = await asked.ask(echo("a"), echo("b", "c", "d"), echo(), echo("e", "", "f"), echo("", ""))
    assert answers == [[b"a"], [b"b", b"c", b"d"], [], [b"e", b"f"], []]
    assert asked.round_trips == 3


async def test_a_question_that_asks_nothing_costs_nothing(asked: RedisReader) -> None:
    assert await asked.ask() == []
    assert await asked.answer(echo("", "")) == []
    assert await asked.send([]) == []
    assert asked.round_trips == 0


async def test_replies_come_as_they_are(asked: RedisReader) -> None:
    await asked.send([("ZADD", "z", "1.5", "m"), ("HSET", "h", "f", "v")])
    commands = [("ZRANGE", "z", 0, -1, "WITHSCORES"), ("HGETALL", "h"), ("GET", "none"), ("TTL", "h")]
    assert await asked.send(commands) == [[b"m", b"1.5"], [b"f", b"v"], None, -1]


async def test_an_error_is_a_value_with_its_code_and_what_was_asked(asked: RedisReader) -> None:
    await asked.send([("SET", "text", "x")])
    wrong, missing, unknown, fine = await asked.send(
        [("ZCARD", "text"), ("XINFO", "GROUPS", "none"), ("NONSENSE", "x"), ("GET", "text")]
    )
    assert isinstance(wrong, ServerError)
    assert wrong == "WRONGTYPE Operation against a key holding the wrong kind of value (ZCARD text)"
    assert (wrong.code, missing.code, unknown.code) == ("WRONGTYPE", "ERR", "ERR")
    assert missing == "ERR no such key (XINFO GROUPS none)"
    assert fine == b"x"


async def test_of_a_long_command_only_the_beginning_is_quoted(asked: RedisReader) -> None:
    (refused,) = await asked.send([("ZCARD", "k" * 10_000, "too many")])
    assert len(refused) < 500


async def test_a_refused_question_leaves_the_others_their_answers(asked: RedisReader) -> None:
    def wrong() -> Query[None]:
        (reply,) = yield [("NONSENSE",)]
        raise QueryRefusedError(reply)

    first, refused, last = await asked.ask(echo("a", "b"), wrong(), echo("c", "d"))
    assert (first, last) == ([b"a", b"b"], [b"c", b"d"])
    assert isinstance(refused, QueryRefusedError)
    with pytest.raises(QueryRefusedError, match="NONSENSE"):
        await asked.answer(wrong())


async def test_the_servers_clock_is_read_exactly(asked: RedisReader) -> None:
    before = time.time()
    told = await asked.answer(read_clock())
    assert before - 1 <= told / 1000 <= time.time() + 1


async def test_a_server_that_goes_away_between_two_round_trips_is_told_and_asked_anew(server: Server) -> None:
    async with (
        serving(passing_on(port_of(server), loses=lambda data: b"second" in data)) as port,
        asking(f"redis://127.0.0.1:{port}/0", timeout=0.2) as asked,
    ):
        with pytest.raises(TimeoutError, match=r"^no answer within 0\.2 s$"):
            await asked.ask(echo("first", "second"), echo("other"))
        assert asked.round_trips == 2
        assert await asked.ask(echo("first", "third")) == [[b"first", b"third"]]


async def test_a_connection_that_the_server_closed_meanwhile_is_made_anew(server: Server) -> None:
    async with asking(server.database()) as asked, asking(server.database()) as other:
        assert await asked.ask(echo("a")) == [[b"a"]]
        await other.send([("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")])
        assert await asked.ask(echo("b", "c")) == [[b"b", b"c"]]


async def test_a_server_that_is_not_there_is_told(unused_tcp_port: int) -> None:
    async with asking(f"redis://127.0.0.1:{unused_tcp_port}/0") as asked:
        for _ in range(2):
            with pytest.raises(redis.exceptions.ConnectionError):
                await asked.ask(echo("a"))


async def test_a_question_that_was_cancelled_leaves_no_answers_to_the_next(server: Server) -> None:
    async with (
        serving(passing_on(port_of(server), loses=lambda data: b"lost" in data)) as port,
        asking(f"redis://127.0.0.1:{port}/0") as asked,
    ):
        await asked.ask(echo("warm"))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await asked.ask(echo("lost"))
        assert await asked.ask(echo("b", "c")) == [[b"b", b"c"]]


async def test_closing_is_not_the_end(asked: RedisReader) -> None:
    await asked.close()
    assert await asked.ask(echo("a")) == [[b"a"]]
    await asked.close()
    await asked.close()
    assert await asked.ask(echo("b")) == [[b"b"]]


async def test_the_throttle_is_passed_once_a_round_trip(server: Server) -> None:
    passed = 0

    class Counted(Throttler):
        async def __aenter__(self) -> None:
            nonlocal passed
            await super().__aenter__()
            passed += 1

    async with asking(server.database(), throttle=Counted(rate_limit=1000)) as asked:
        await asked.ask(echo("a", "b"), echo("", "c"), echo("d", "", "e"))
        assert passed == asked.round_trips == 3


async def test_a_full_throttle_holds_the_next_round_trip_back(server: Server) -> None:
    throttle = Throttler(rate_limit=2, period=3600, retry_interval=0.001)
    async with asking(server.database(), throttle=throttle) as asked:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await asked.ask(echo("a", "b", "c"))
        assert asked.round_trips == 2
        asked.throttle = None
        assert await asked.ask(echo("d")) == [[b"d"]]


async def test_a_tls_file_that_cannot_be_used_is_told_at_the_start() -> None:
    with pytest.raises(StartupError):
        RedisReader(RedisUrl("rediss://localhost/0"), RedisTls(ca_file="/none.pem"), timeout=1.0, on_failure=print)
