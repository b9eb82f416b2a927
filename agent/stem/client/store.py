"""One of Stem's stores, asked: what redis-py raises and what a server refuses become errors with a name and a place."""

from typing import Any

from agent.redis_client import failure, is_unavailable, refused_for_good
from agent.settings.redis_tls import RedisTls
from agent.settings.types import RedisUrl, parse_redis_url
from agent.stem.client.errors import AddressError, RefusedError, StemError, UnreachableError, missing_right
from agent.stem.client.reader import RedisReader
from agent.stem.questions.query import Answer, Query, QueryRefusedError, read_clock


class Store:
    """A Redis that holds the `name` (`broker`, `result backend`, `schedule store`) under the prefix `namespace`.

    Raises `AddressError` for a URL that is none, `StartupError` for a TLS file that cannot be used.
    """

    def __init__(self, name: str, url: str, *, namespace: str, tls: RedisTls, timeout: float) -> None:
        self.name = name
        self._namespace = namespace
        self._reader = RedisReader(_parsed(name, url), tls, timeout=timeout, on_failure=self._tls_failed)
        self._tls_failure = ""

    @property
    def server(self) -> str:
        """`host:port`."""
        return self._reader.url.address

    async def attempt(self, *queries: Query[Any]) -> list[Any]:
        """Return the answer to each question, or the `RefusedError` that it met; raises `UnreachableError`."""
        try:
            answers = await self._reader.ask(*queries)
        except Exception as error:
            raise self._error(error) from error
        return [self._refused(str(answer)) if isinstance(answer, QueryRefusedError) else answer for answer in answers]

    async def ask(self, *queries: Query[Any]) -> list[Any]:
        """Return the answer to each question; raises `UnreachableError`, and `RefusedError` if one was refused."""
        answers = await self.attempt(*queries)
        for answer in answers:
            if isinstance(answer, RefusedError):
                raise answer
        return answers

    async def answer(self, query: Query[Answer]) -> Answer:
        """Return the answer to one question; raises as `ask` does."""
        answer: Answer
        (answer,) = await self.ask(query)
        return answer

    async def now_ms(self) -> int:
        """Return the server's clock (Unix milliseconds); raises as `ask` does."""
        return await self.answer(read_clock())

    async def close(self) -> None:
        """Close the connection."""
        await self._reader.close()

    def _error(self, error: Exception) -> Exception:
        """Return what to raise for what redis-py raised; a fault of ours stays what it is."""
        if isinstance(error, StemError) or not is_unavailable(error):
            return error
        if refused_for_good(error):
            return self._refused(failure(error))
        return UnreachableError(self.name, self.server, self._tls_failure or failure(error))

    def _refused(self, reason: str) -> RefusedError:
        return RefusedError(self.name, self.server, reason, missing_right(reason, self._namespace))

    def _tls_failed(self, reason: str) -> None:
        self._tls_failure = reason


def _parsed(name: str, url: str) -> RedisUrl:
    try:
        parsed: RedisUrl = parse_redis_url(url)
    except ValueError as error:  # what was found is not repeated: it may have a password in it
        raise AddressError(f"the {name}'s address is none: expected {error}") from None
    return parsed
