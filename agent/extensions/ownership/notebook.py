"""Notes of the leader for the next one, kept in Redis for an hour."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from redis.asyncio import Redis

NOTES_PREFIX = "stem-agent:notes:"
KEPT_SECONDS = 3600
_AMEND = """
local struck = tonumber(ARGV[2])
for i = 3, 2 + struck do redis.call('HDEL', KEYS[1], ARGV[i]) end
for i = 3 + struck, #ARGV, 2 do redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1]) end
redis.call('PEXPIRE', KEYS[1], ARGV[1])
"""


class RedisNotebook:
    """Reads and writes the notes of one namespace, by the name of the component that takes them.

    Methods raise what redis-py raises.
    """

    def __init__(self, client: "Redis", namespace: str) -> None:
        self._redis = client
        self._prefix = f"{NOTES_PREFIX}{namespace}:"
        self._amend: Any = client.register_script(_AMEND)

    async def read(self, name: str) -> bytes | None:
        """Return the last notes; None if there are none, or only older ones than an hour."""
        notes: Any = await self._redis.get(self._prefix + name)
        return bytes(notes) if notes else None

    async def read_all(self, name: str) -> dict[str, bytes]:
        """Return notes that were amended, by their keys; none if they are older than an hour."""
        notes: Any = await self._redis.hgetall(self._prefix + name)
        return {key.decode(errors="replace"): value for key, value in notes.items()}

    async def amend(self, name: str, changes: Mapping[str, bytes | None]) -> None:
        """Change some notes, and strike those that are None: all of that, or nothing."""
        struck = [key for key, note in changes.items() if note is None]
        kept = [part for key, note in changes.items() if note is not None for part in (key, note)]
        await self._amend([self._prefix + name], [KEPT_SECONDS * 1000, len(struck), *struck, *kept])

    async def write(self, name: str, notes: bytes) -> None:
        """Keep notes in place of those before."""
        await self._redis.set(self._prefix + name, notes, ex=KEPT_SECONDS)
