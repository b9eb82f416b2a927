"""Telling other agents whose signals this one hears, so that whoever reads the rest of the fleet leaves them out."""

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from agent.stem.questions.claims import SPEAKERS_PREFIX

if TYPE_CHECKING:
    from redis.asyncio import Redis

KEPT_MS = 90_000
"""For so long after a worker was announced last, whoever takes its emitter over has the time to announce it."""
RENEWED_PARTS = 6
_ANNOUNCE = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
for i = 2, #ARGV do redis.call('ZADD', KEYS[1], now + ARGV[1], ARGV[i]) end
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
redis.call('PEXPIRE', KEYS[1], ARGV[1])
"""

Speaker = tuple[str, str]
"""A worker's namespace and id; no id stands for anybody in that namespace."""


class Announcer:
    """Announces who is new at once, and all of them now and then. Methods raise what redis-py raises."""

    def __init__(self, client: "Redis") -> None:
        self._announce: Any = client.register_script(_ANNOUNCE)
        self._told: frozenset[Speaker] = frozenset()
        self._told_ns = 0

    async def round(self, speakers: Collection[Speaker], now_ns: int) -> None:
        """Announce what is due."""
        due = now_ns - self._told_ns >= KEPT_MS * 1_000_000 // RENEWED_PARTS
        told = frozenset(speakers)
        by_namespace: dict[str, list[str]] = {}
        for namespace, worker in sorted(told if due else told - self._told):
            by_namespace.setdefault(namespace, []).append(worker)
        for namespace, workers in by_namespace.items():
            await self._announce([f"{SPEAKERS_PREFIX}{namespace}"], [KEPT_MS, *workers])
        self._told = told
        self._told_ns = now_ns if due else self._told_ns
