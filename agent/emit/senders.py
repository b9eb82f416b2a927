"""How signals get to Redis: from plain code, and from asyncio."""

from collections.abc import Awaitable
from typing import Any, Self

import redis
import redis.asyncio
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.retry import Retry

from agent.emit.composer import Composer
from agent.emit.emitter import Emitter

_TIMEOUT_SECONDS = 2.0


class SignalEmitter(Emitter[None]):
    """Sends signals from plain code; each call returns when Redis has the signal, or has been given up on."""

    def __init__(self, client: "redis.Redis", composer: Composer) -> None:
        super().__init__(composer)
        self._client = client

    @classmethod
    def connect(cls, url: str, **names: Any) -> Self:
        """Return an emitter on its own connection; `names` are those of `Composer`."""
        client = redis.Redis.from_url(
            url,
            socket_timeout=_TIMEOUT_SECONDS,
            socket_connect_timeout=_TIMEOUT_SECONDS,
            retry=Retry(NoBackoff(), 0),
            single_connection_client=True,
        )
        return cls(client, Composer(**names))

    def send(self, payload: bytes | None) -> None:
        """Publish; drop and count what Redis does not take."""
        if payload is None:
            return
        if self._silent:
            self.dropped += 1
            return
        try:
            self._client.publish(self.composer.channel, payload)
        except (redis.RedisError, OSError) as error:
            self._lose(error)

    def close(self) -> None:
        """Close the connection."""
        self._client.close()


class AsyncSignalEmitter(Emitter[Awaitable[None]]):
    """Sends signals from asyncio code: await every call. Numbers are assigned by the call, not by the await."""

    def __init__(self, client: "redis.asyncio.Redis", composer: Composer) -> None:
        super().__init__(composer)
        self._client = client

    @classmethod
    def connect(cls, url: str, **names: Any) -> Self:
        """Return an emitter on its own connection; `names` are those of `Composer`."""
        client = redis.asyncio.Redis.from_url(
            url,
            socket_timeout=_TIMEOUT_SECONDS,
            socket_connect_timeout=_TIMEOUT_SECONDS,
            retry=AsyncRetry(NoBackoff(), 0),
            single_connection_client=True,  # a pool could overtake itself
        )
        return cls(client, Composer(**names))

    async def send(self, payload: bytes | None) -> None:
        """Publish; drop and count what Redis does not take."""
        if payload is None:
            return
        if self._silent:
            self.dropped += 1
            return
        try:
            await self._client.publish(self.composer.channel, payload)
        except (redis.RedisError, OSError) as error:
            self._lose(error)

    async def close(self) -> None:
        """Close the connection."""
        await self._client.aclose()
