"""A canary: what we publish must come back to us, or the subscription only seems to stand.

A ping shows that the server answers. It does not show that messages still find their way: a proxy that lost the
subscription, a replica that is cut off from what publishers write to, answer pings too.
"""

import asyncio
from collections.abc import Callable
from uuid import uuid4

from agent.core.status import Reporter, State
from agent.receivers.stem_signals import events
from agent.receivers.stem_signals.config import CANARY_PREFIX, StemSignalsConfig
from agent.receivers.stem_signals.connection import Connection
from agent.receivers.stem_signals.session import SessionEnd
from agent.redis_client import failure, redis_client
from agent.telemetry.events import FileUnusable, Telemetry


class Canary:
    """Publishes on a channel of its own, through a connection of its own, and listens for it on the subscribed one.

    `heard` counts the messages that came over the subscribed connection. Raises `StartupError` if a TLS file cannot be
    used.
    """

    def __init__(
        self,
        identity: str,
        config: StemSignalsConfig,
        telemetry: Telemetry,
        status: Reporter,
        *,
        heard: Callable[[], int],
    ) -> None:
        self._id = identity
        self._config = config.canary
        self._telemetry = telemetry
        self._status = status
        self._heard = heard
        self._redis = redis_client(
            config.url,
            config.tls,
            timeout=config.canary.timeout,
            on_failure=lambda reason: telemetry.emit(FileUnusable(identity, reason)),
        )
        self._token = b""
        self._published_at = 0.0
        self._returned = asyncio.Event()
        self._round_trip: float | None = None
        self.channel = f"{CANARY_PREFIX}{uuid4().hex}"
        self.channel_bytes = self.channel.encode()

    def hear(self, token: bytes) -> None:
        """Take what came back."""
        if token != self._token or self._returned.is_set():
            return  # of an earlier time, or not ours
        self._returned.set()
        self._status.ok()
        if self._round_trip is None:  # before the first there is nothing to show
            self._telemetry.gauge("stem_agent.canary.round_trip", lambda: self._round_trip or 0.0, receiver=self._id)
        self._round_trip = asyncio.get_running_loop().time() - self._published_at

    async def watch(self, connection: Connection) -> None:
        """Publish every `interval` seconds; return after ending the session over which nothing comes back."""
        loop = asyncio.get_running_loop()
        heard_until = loop.time()
        while True:
            await asyncio.sleep(self._config.interval)
            self._returned.clear()
            self._token = uuid4().hex.encode()
            self._published_at = loop.time()
            try:
                await self._redis.publish(self.channel, self._token)
            except Exception as error:  # noqa: BLE001 - whatever it was, it says nothing about the subscription
                reason = failure(error)
                self._telemetry.emit(events.CanaryUnpublished(self._id, reason))
                self._unpublished(reason)
                continue
            if not await self._comes_back():
                self._telemetry.emit(events.CanaryMissed(self._id, self._config.timeout))
                # It stays so over the next subscription, until that one has shown that it hears.
                self._status.recovering("what is published is not heard")
                connection.end(SessionEnd.UNHEARD, heard_until=heard_until)
                return
            heard_until = self._published_at

    def refused(self) -> None:
        """Note that the server lets nobody listen for canaries."""
        self._status.degraded("redis declined the subscription; one that hears nothing goes unnoticed")

    def _unpublished(self, reason: str) -> None:
        if self._status.state is not State.RECOVERING:  # else nothing has shown that it hears again
            self._status.degraded(f"failed to publish: {reason}; a subscription that hears nothing goes unnoticed")

    async def close(self) -> None:
        """Close the publishing connection."""
        await self._redis.aclose()

    async def _comes_back(self) -> bool:
        """Wait for the canary as long as anything is heard: behind a crowd of signals it is late, and not lost."""
        heard = -1
        while heard != (heard := self._heard()):
            try:
                async with asyncio.timeout(self._config.timeout):
                    await self._returned.wait()
            except TimeoutError:
                # Timers run before sockets are read: after a pause of the whole process the answer may be here.
                await asyncio.sleep(0)
                await asyncio.sleep(0)
            if self._returned.is_set():
                return True
        return False
