"""Keyspace notifications: which result records change, where the server says so. The shell; it switches nothing on."""

import asyncio
import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from agent.core.backoff import Backoff
from agent.redis_client import redis_client, refused_for_good
from agent.settings.redis_tls import RedisTls
from agent.settings.types import RedisUrl
from agent.stem.keys import Keys, glob_escaped
from agent.stem.questions.query import Query, QueryRefusedError, pairs, text

if TYPE_CHECKING:
    from redis.asyncio import Redis

SETTING = "notify-keyspace-events"
_PING_SECONDS = 10.0
_REFUSED_SECONDS = 600.0
"""Until whoever may not listen tries again: each time the server writes it down (`ACL LOG`)."""
_WRITTEN = b"set"


def read_notifications() -> Query[str | None]:
    """Ask which notifications the server sends; None where the user may not know."""
    (reply,) = yield [("CONFIG", "GET", SETTING)]
    try:
        found = pairs(reply).get(SETTING)
    except QueryRefusedError:
        return None
    return "" if found is None else text(found)


def tells_of_writes(setting: str) -> bool:
    """Whether notifications of keys (`K`) that strings were written (`$`, or `A` for all) are among them."""
    return "K" in setting and ("$" in setting or "A" in setting)


class Listener:
    """Hears which records change on a connection of its own, and connects anew after every failure."""

    def __init__(
        self,
        url: RedisUrl,
        tls: RedisTls,
        keys: Keys,
        *,
        timeout: float,
        on_change: Callable[[str], None],
        on_listening: Callable[[], None],
        on_failure: Callable[[Exception], None],
        on_file: Callable[[str], None],
    ) -> None:
        prefix = f"__keyspace@{url.database}__:"
        self._pattern = f"{prefix}{glob_escaped(keys.result(''))}*"
        self._cut = len(f"{prefix}{keys.result('')}")
        self._connect: Callable[[], Redis] = lambda: redis_client(
            url, tls, timeout=timeout, on_failure=on_file, timed=False
        )
        self._timeout = timeout
        self._on_change = on_change
        self._on_listening = on_listening
        self._on_failure = on_failure

    async def run(self) -> None:
        """Listen, for ever."""
        backoff = Backoff(0.1, self._timeout)
        while True:
            client, delay_s = self._connect(), 0.0
            try:
                await self._listen(client, backoff)
            except Exception as error:  # noqa: BLE001 - whatever it was, records are polled meanwhile
                self._on_failure(error)
                delay_s = _REFUSED_SECONDS if refused_for_good(error) else backoff.next()
            finally:
                with contextlib.suppress(Exception):
                    await client.aclose()
            await asyncio.sleep(delay_s)

    async def _listen(self, client: "Redis", backoff: Backoff) -> None:
        pubsub: Any = client.pubsub()
        try:
            await pubsub.psubscribe(self._pattern)
            while True:
                message = await pubsub.get_message(timeout=_PING_SECONDS)
                if message is None:
                    async with asyncio.timeout(self._timeout):
                        await pubsub.ping()
                    continue
                backoff.reset()
                if message["type"] == "psubscribe":
                    self._on_listening()
                elif message["type"] == "pmessage" and message["data"] == _WRITTEN:
                    self._on_change(message["channel"].decode(errors="replace")[self._cut :])
        finally:
            await pubsub.aclose()
