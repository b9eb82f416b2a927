"""The shell that asks Redis: it runs questions in lockstep, each step of all of them in one pipelined round trip."""

import asyncio
import contextlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from agent.core.errors import StartupError, fault
from agent.redis_client import failure, is_unavailable, redis_client, refused_for_good
from agent.settings.redis_tls import RedisTls
from agent.settings.types import RedisUrl
from agent.stem.questions.query import Answer, Command, Query, QueryRefusedError, Reply, ServerError, read_clock

if TYPE_CHECKING:
    from asyncio_throttle.throttler import Throttler
    from redis.asyncio import Redis

_LONGEST = 200
"""Characters of a command that are quoted: its name, and the key."""
_KEY_AT: Mapping[str | int, int] = {"XINFO": 2, "XGROUP": 2}


class RedisReader:
    """One server and database to ask; connects with the first question, and anew after a failure.

    `throttle` is passed once a round trip. Raises `StartupError` if a TLS file cannot be used. Questions raise what
    redis-py raises when the server is away.
    """

    def __init__(
        self,
        url: RedisUrl,
        tls: RedisTls,
        *,
        timeout: float,
        on_failure: Callable[[str], None],
        throttle: "Throttler | None" = None,
    ) -> None:
        self.url = url
        self._tls = tls
        self._timeout = timeout
        self._on_failure = on_failure
        self.throttle = throttle
        self._redis: Redis | None = None
        self.round_trips = 0
        if url.tls:
            tls.context()  # a file that cannot be used is to be told at the start

    async def ask(self, *queries: Query[Answer]) -> list[Answer | QueryRefusedError]:
        """Return the answer to each question, or why the server refused it."""
        answers: dict[int, Answer | QueryRefusedError] = {}
        waiting: dict[int, Sequence[Command]] = {}
        for index, query in enumerate(queries):
            _step(query, None, index, waiting, answers)
        while waiting:
            sent, waiting = waiting, {}
            replies = await self.send([command for commands in sent.values() for command in commands])
            start = 0
            for index, commands in sent.items():
                _step(queries[index], replies[start : start + len(commands)], index, waiting, answers)
                start += len(commands)
        return [answers[index] for index in range(len(queries))]

    async def answer(self, query: Query[Answer]) -> Answer:
        """Return the answer to one question; raises `QueryRefusedError`."""
        (answer,) = await self.ask(query)
        if isinstance(answer, QueryRefusedError):
            raise answer
        return answer

    async def send(self, commands: Sequence[Command]) -> list[Reply]:
        """Send commands in one round trip, and return their replies as they are; an error is a `ServerError`."""
        if not commands:
            return []
        async with self.throttle or nullcontext():
            self.round_trips += 1
            pipeline: Any = self._client.pipeline(transaction=False)
            for command in commands:
                pipeline.execute_command(*command)
            try:
                async with asyncio.timeout(self._timeout):
                    replies = await pipeline.execute(raise_on_error=False)
            except TimeoutError:
                raise TimeoutError(f"no answer within {self._timeout:g} s") from None
        return [
            _server_error(reply, command) if isinstance(reply, Exception) else reply
            for command, reply in zip(commands, replies, strict=True)
        ]

    async def greet(self, component: str) -> Exception | None:
        """Connect for the sake of a component; return what kept it from that, if it may pass.

        Raises `StartupError` for what will not heal: a wrong password, a user or database that is not there.
        """
        try:
            await self.ask(read_clock())
        except Exception as error:  # noqa: BLE001 - the answer decides
            if not refused_for_good(error):
                return error
            user = self.url.username or "default"
            reason = f"redis {self.url.address} refused user {user}: {failure(error)}"
            raise StartupError(f"{component}: {reason}") from None
        return None

    async def close(self) -> None:
        """Close the connection; a later question would make a new one. Who is gone needs no goodbye."""
        from redis.exceptions import RedisError  # noqa: PLC0415 - see `_client`

        if self._redis is not None:
            with contextlib.suppress(RedisError, OSError):
                await self._redis.aclose()

    @property
    def _client(self) -> "Redis":
        """Made when it is first needed: redis-py costs 11 MiB and 0.2 s."""
        if self._redis is None:
            self._redis = redis_client(
                self.url, self._tls, timeout=self._timeout, on_failure=self._on_failure, timed=False
            )
            # Replies are for the questions to read; redis-py's own reading of them costs as much again.
            self._redis.response_callbacks.clear()
        return self._redis


def _server_error(error: Exception, command: Command) -> ServerError:
    """Return an error reply as the server wrote it, and what was asked: the server names either no command or no key.

    redis-py takes off the codes that it has a class for, and keeps them where older versions of it do not.
    """
    from redis.exceptions import NoPermissionError  # noqa: PLC0415 - see `_client`

    code = getattr(error, "status_code", None) or ("NOPERM" if isinstance(error, NoPermissionError) else "")
    asked = " ".join(map(str, command[: _KEY_AT.get(command[0], 1) + 1]))  # no more: what follows may be a value
    return ServerError(f"{code} {error} ({asked[:_LONGEST]})".lstrip())


def _step(
    query: Query[Answer],
    replies: Sequence[Reply] | None,
    index: int,
    waiting: dict[int, Sequence[Command]],
    answers: dict[int, Answer | QueryRefusedError],
) -> None:
    """Let a question go on to its next commands, or to its answer."""
    try:
        waiting[index] = next(query) if replies is None else query.send(replies)
    except StopIteration as end:
        answers[index] = end.value
    except QueryRefusedError as refused:
        answers[index] = refused


def no_answer(error: Exception) -> str:
    """Say why there is no answer: what the server or the system says; of a fault of ours, where it is."""
    if isinstance(error, QueryRefusedError):
        return str(error)
    return failure(error) if is_unavailable(error) else fault(error)
