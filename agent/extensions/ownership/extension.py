"""The keeper of the leases: its pace, and what happens when Redis cannot be reached."""

import asyncio
import contextlib
from typing import TYPE_CHECKING

from agent.core.backoff import Backoff
from agent.core.clock import NANOSECONDS, Clock
from agent.core.errors import StartupError
from agent.core.ownership import Ownership
from agent.core.status import Reports
from agent.core.tasks import cancel
from agent.extensions.ownership import events
from agent.extensions.ownership.announcer import Announcer
from agent.extensions.ownership.config import OwnershipConfig
from agent.extensions.ownership.leader import Leader
from agent.extensions.ownership.news import News
from agent.extensions.ownership.notebook import RedisNotebook
from agent.extensions.ownership.registrar import Registrar
from agent.redis_client import failure, redis_client, refused_for_good
from agent.telemetry.events import FileUnusable, Telemetry

if TYPE_CHECKING:
    from redis.asyncio import Redis

_MOST_ROUNDS = 150
"""In a lease, and no more than twenty a second: whatever wakes the keeper does not do so more often."""
NEWS_PREFIX = "stem-agent:news:"
RIGHTS = (
    "~stem-agent:* &stem-agent:* +get +set +del +pttl +pexpire +hset +hdel +hgetall +zadd +zrem +zremrangebyscore"
    " +zrange +time +evalsha +script|load +publish +subscribe"
)
"""What a Redis user needs for it, as `ACL SETUSER` takes it; the README says so, too."""


class OwnershipExtension:
    """Renews every third of a lease, more often while Redis cannot be reached, and at once when something changed."""

    def __init__(
        self,
        identity: str,
        config: OwnershipConfig,
        ownership: Ownership,
        agent: str,
        telemetry: Telemetry,
        clock: Clock,
        reports: Reports,
    ) -> None:
        self._id = identity
        self._config = config
        self._ownership = ownership
        self._agent = agent
        self._telemetry = telemetry
        self._clock = clock
        self._status = reports.part("leader")
        self._second = ownership.configured
        self._wanted = asyncio.Event()
        self._client: Redis | None = None
        self._leader: Leader | None = None
        self._announcer: Announcer | None = None
        self._news: News | None = None
        self._registrars: list[Registrar] = []
        self._leads = False
        self._tasks: list[asyncio.Task[None]] = []
        ownership.configured = True
        ownership.agent = agent
        ownership.lease.length_ns = int(config.lease * NANOSECONDS)
        telemetry.gauge("stem_agent.leader", lambda: float(ownership.leads(clock())))

    async def start(self) -> None:
        """Begin to agree with others.

        Raises `StartupError` if Redis refuses for a reason that will not heal: without a lease nothing is processed.
        Also if a TLS file cannot be used, or if it is the second.
        """
        if self._second:
            raise StartupError(f"{self._id}: another ownership runs; one agrees for the whole agent")
        config, lease = self._config, self._config.lease
        self._client = client = redis_client(
            config.url,
            config.tls,
            timeout=config.timeout,
            on_failure=lambda reason: self._telemetry.emit(FileUnusable(self._id, reason)),
        )
        self._leader = Leader(client, config.namespace, self._agent, self._ownership, lease=lease)
        self._news = News(
            *(client, f"{NEWS_PREFIX}{config.namespace}", self._agent),
            heard=self._wanted.set,
            unheard=self._unheard,
        )
        self._ownership.notebook = RedisNotebook(client, config.namespace)
        self._announcer = Announcer(client)
        await self._look(self._leader)
        self._registrars = [Registrar(client, party, self._clock, lease=lease) for party in self._ownership.parties]
        self._ownership.wake = self._wanted.set
        self._tasks = [
            asyncio.create_task(self._keep(self._leader), name=f"{self._id}: leases"),
            asyncio.create_task(self._news.listen(Backoff(lease / 30, lease)), name=f"{self._id}: news"),
        ]

    async def _look(self, leader: Leader) -> None:
        try:
            await leader.look(self._clock())
        except Exception as error:  # noqa: BLE001 - the answer decides
            if refused_for_good(error):
                where = f"{self._id}: redis {self._config.url.address} refused"
                instead = "or leave it out of service.extensions, where no other agent hears the same"
                raise StartupError(f"{where}: {self._reason(error)}; {instead}") from None
            self._failed(error)

    async def stop(self, timeout: float) -> None:  # noqa: ASYNC109 - see Component
        """Give up what is held, so that others need not wait for its end."""
        await cancel(self._tasks)  # a stop that was cancelled may be called again
        self._tasks = []
        if self._leader:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout):
                    await self._resign(self._leader)
                    await self._let_go()
        if self._client:
            await self._client.aclose()

    async def _keep(self, leader: Leader) -> None:
        third = self._config.lease / 3
        pace = min(0.05, self._config.lease / _MOST_ROUNDS)
        backoff = Backoff(third / 10, third)
        loop = asyncio.get_running_loop()
        while True:
            began = loop.time()
            self._wanted.clear()
            try:
                await self._round(leader)
            except Exception as error:  # noqa: BLE001 - whatever it was, giving up would be the end of leading
                self._failed(error)
                await self._turn_away(error)
                delay = backoff.next()
            else:
                backoff.reset()
                soon = [each.delay for each in self._registrars if each.delay is not None]
                delay = min(third, *soon, leader.left if self._ownership.duties else third)
            self._judge("it ran out before it could be renewed")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(delay):
                    await self._wanted.wait()
            await asyncio.sleep(began + pace - loop.time())

    async def _turn_away(self, error: Exception) -> None:
        """Leave a server that became a replica: its address may lead to the new master, this connection never will."""
        from redis.exceptions import ReadOnlyError  # noqa: PLC0415 - see `agent.redis_client`

        if isinstance(error, ReadOnlyError) and self._client:
            with contextlib.suppress(Exception):  # gone is gone
                await self._client.connection_pool.disconnect(inuse_connections=False)

    async def _round(self, leader: Leader) -> None:
        sent_ns = self._clock()
        if not self._ownership.duties:
            await self._resign(leader)
            await leader.look(sent_ns)
        elif await leader.renew(sent_ns):
            self._ownership.lease.renewed(sent_ns)
            if self._judge(""):
                await self._tell_others()
        else:
            self._ownership.lease.gone()
            self._judge(f"agent {leader.leader} took over" if leader.leader else "it ran out")
        for registrar in self._registrars:
            await registrar.round()
        await self._tell_news()
        if self._announcer:
            await self._announcer.round(self._ownership.heard(), sent_ns)
        self._status.ok("leads" if self._leads else f"agent {leader.leader} leads" if leader.leader else "")

    async def _tell_news(self) -> None:
        if any(registrar.news for registrar in self._registrars):
            for registrar in self._registrars:
                registrar.news = False
            await self._tell_others()

    async def _let_go(self) -> None:
        try:
            for registrar in self._registrars:
                await registrar.close()
        except Exception as error:  # noqa: BLE001 - leases end by themselves
            self._failed(error)
        await self._tell_news()

    def _judge(self, reason: str) -> bool:
        """Tell of a change, if there is one; `reason` is why the lease is lost, if it is."""
        leads = self._ownership.leads(self._clock())
        if leads is self._leads or not self._ownership.duties:  # without a duty it resigns, with the next round
            return False
        self._leads = leads
        namespace = self._config.namespace
        if leads:
            duties = " ".join(sorted(self._ownership.duties))
            self._telemetry.emit(events.BecameLeader(self._id, namespace, duties))
        else:
            self._telemetry.emit(events.LeaderLost(self._id, namespace, reason))
        self._ownership.changed()
        return True

    async def _tell_others(self) -> None:
        if self._news:
            try:
                await self._news.tell()
            except Exception as error:  # noqa: BLE001 - they see it with their next renewal
                self._unheard(error)

    async def _resign(self, leader: Leader) -> None:
        self._ownership.lease.gone()
        if self._leads:
            self._leads = False
            self._telemetry.emit(events.LeaderResigned(self._id, self._config.namespace))
            self._ownership.changed()
        try:
            if await leader.release():
                await self._tell_others()
        except Exception as error:  # noqa: BLE001 - it ends by itself
            self._failed(error)

    def _failed(self, error: Exception) -> None:
        reason = self._reason(error)
        self._telemetry.emit(events.LeasesUnreachable(self._id, self._config.url.address, reason))
        self._status.degraded(f"failed to agree with other agents through redis {self._config.url.address}: {reason}")

    def _unheard(self, error: Exception) -> None:
        self._telemetry.emit(events.NewsUnheard(self._id, self._config.url.address, self._reason(error)))

    def _reason(self, error: Exception) -> str:
        from redis.exceptions import NoPermissionError  # noqa: PLC0415 - see `agent.redis_client`

        reason = failure(error)
        if isinstance(error, NoPermissionError):
            return f"{reason}; run: ACL SETUSER {self._config.url.username or 'default'} {RIGHTS}"
        return reason
