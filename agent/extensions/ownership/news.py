"""That something changed among the agents, heard at once instead of with the next renewal.

Nothing depends on it: a word that is lost costs a third of a lease.
"""

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

from agent.core.backoff import Backoff

if TYPE_CHECKING:
    from redis.asyncio import Redis

_LISTEN_SECONDS = 60.0


class News:
    """Speaks and listens on a channel of all agents of a namespace; hears everybody but itself."""

    def __init__(
        self,
        client: "Redis",
        channel: str,
        own: str,
        *,
        heard: Callable[[], None],
        unheard: Callable[[Exception], None],
    ) -> None:
        self._redis = client
        self._channel = channel
        self._own = own.encode()
        self._heard = heard
        self._unheard = unheard

    async def tell(self) -> None:
        """Tell the others that something changed. Raises what redis-py raises."""
        await self._redis.publish(self._channel, self._own)

    async def listen(self, backoff: Backoff) -> None:
        """Listen for ever."""
        while True:
            try:
                await self._session(backoff)
            except Exception as error:  # noqa: BLE001 - whatever it was, nothing depends on it
                self._unheard(error)
                await asyncio.sleep(backoff.next())

    async def _session(self, backoff: Backoff) -> None:
        async with self._redis.pubsub() as pubsub:
            await pubsub.subscribe(self._channel)
            while True:
                message = await pubsub.get_message(timeout=_LISTEN_SECONDS)
                if message is None:
                    continue
                backoff.reset()
                # The answer to the subscription counts, too: nobody was heard until now.
                if message["data"] != self._own:
                    self._heard()
