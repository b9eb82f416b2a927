"""Who leads the fleet: redis-py's lock, whose value names the leader and its duties."""

from typing import TYPE_CHECKING, Any

from agent.core.ownership import Ownership

if TYPE_CHECKING:
    from redis.asyncio import Redis
    from redis.asyncio.lock import Lock

# redis-py is imported where it is first needed: see `agent.redis_client`.

_AFTERWARDS_SECONDS = 0.01  # a lease is told in whole milliseconds
LEADER_PREFIX = "stem-agent:leader:"


class Leader:
    """One agent's part in the leadership; `leader` is who leads, as far as it is known, empty for nobody.

    `left` is for how long (seconds) another's lease lasts unless it is renewed: the moment to try again.

    Methods raise what redis-py raises.
    """

    def __init__(self, client: "Redis", namespace: str, agent: str, ownership: Ownership, *, lease: float) -> None:
        self._redis = client
        self._key = f"{LEADER_PREFIX}{namespace}"
        self._agent = agent
        self._ownership = ownership
        self._lease = lease
        self._lock: Lock | None = None
        self.leader = ""
        self.left = lease

    async def renew(self, sent_ns: int) -> bool:
        """Take the lock, or keep it; return whether it is ours. `sent_ns` is now.

        A lock that bears our name is ours: the answer to its taking was lost, or we were started anew meanwhile.
        """
        ours = await self._kept() or await self._taken()
        if not ours and await self._look(sent_ns) == self._token.encode():
            self._lock = self._new_lock()
            ours = await self._kept()
        if ours:
            self.leader, self.left = self._agent, self._lease
            self._ownership.seen(self._ownership.duties, sent_ns)
        return ours

    async def _kept(self) -> bool:
        from redis.exceptions import LockNotOwnedError  # noqa: PLC0415 - see above

        if self._lock is None:
            return False
        try:
            return await self._lock.reacquire()
        except LockNotOwnedError:
            self._lock = None
            return False

    async def _taken(self) -> bool:
        lock = self._lock = self._new_lock()  # before it is asked for: the answer may be lost
        if await lock.acquire(blocking=False, token=self._token):
            return True
        self._lock = None
        return False

    async def look(self, now_ns: int) -> None:
        """See who leads."""
        await self._look(now_ns)

    async def release(self) -> bool:
        """Let another lead; return whether we did."""
        from redis.exceptions import LockNotOwnedError  # noqa: PLC0415 - see above

        if self._lock is None:
            return False
        try:
            await self._lock.release()
        except LockNotOwnedError:  # it ran out meanwhile
            self._lock = None
            return False
        self._lock = None
        return True

    async def _look(self, now_ns: int) -> Any:
        holder: Any = await self._redis.get(self._key) or b""
        left_ms: Any = await self._redis.pttl(self._key)
        self.left = max(0, left_ms) / 1000 + _AFTERWARDS_SECONDS if holder else self._lease
        self.leader, *duties = holder.decode("utf-8", "replace").split(" ")
        self._ownership.seen(set(duties), now_ns)
        return holder

    @property
    def _token(self) -> str:
        return " ".join((self._agent, *sorted(self._ownership.duties)))

    def _new_lock(self) -> "Lock":
        from redis.asyncio.lock import Lock  # noqa: PLC0415 - see above

        # One event loop, so nothing is thread-local; the token is the value that everybody reads.
        lock = Lock(self._redis, self._key, timeout=self._lease, thread_local=False)
        lock.local.token = self._token.encode()
        return lock
