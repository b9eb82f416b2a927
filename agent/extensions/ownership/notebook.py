"""Notes of the leader for the next one, kept in Redis for an hour."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from redis.asyncio import Redis

NOTES_PREFIX = "stem-agent:notes:"
KEPT_SECONDS = 3600


class RedisNotebook:
    """Reads and writes the notes of one namespace, by the name of the component that takes them.

    Methods raise what redis-py raises.
    """

    def __init__(self, client: "Redis", namespace: str) -> None:
        self._redis = client
        self._prefix = f"{NOTES_PREFIX}{namespace}:"

    async def read(self, name: str) -> bytes | None:
        """Return the last notes; None if there are none, or only older ones than an hour."""
        notes: Any = await self._redis.get(self._prefix + name)
        return bytes(notes) if notes else None

    async def write(self, name: str, notes: bytes) -> None:
        """Keep notes in place of those before."""
        await self._redis.set(self._prefix + name, notes, ex=KEPT_SECONDS)
