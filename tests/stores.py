"""Stem's stores on a real server: written as Stem writes, read as we read, and shown to be the same afterwards."""

import contextlib
import uuid
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime
from typing import Any

import redis.asyncio

from agent.demo.fleet.broker import Broker, Delivery
from agent.demo.fleet.envelopes import Envelope, new_envelope, to_fields, to_json
from agent.emit import iso, utc_now
from agent.settings.redis_tls import RedisTls
from agent.settings.types import RedisUrl
from agent.stem.client.reader import RedisReader
from agent.stem.keys import Keys
from agent.stem.questions.query import Query, QueryRefusedError
from agent.stem.questions.queues import QueueState, QueueWatch
from tests.servers import Server

DATABASES = range(3)


class Stores:
    """All of a server. Calling it runs a command as it is, and returns the reply as it came."""

    def __init__(self, server: Server, namespace: str, database: int = 0) -> None:
        self.server = server
        self.keys = Keys(namespace)
        self._raw = [redis.asyncio.Redis.from_url(server.database(number), protocol=2) for number in DATABASES]
        for raw in self._raw:
            raw.response_callbacks.clear()
        self._told = redis.asyncio.Redis.from_url(server.database(database), protocol=2, decode_responses=True)
        self.broker = Broker(self._told, self.keys, utc_now)
        self.database = database
        self.reader = reader(server.database(database))
        self._watched = False

    async def __call__(self, *command: Any) -> Any:
        return await self._raw[self.database].execute_command(*command)

    # --- writing ------------------------------------------------------------

    async def publish(self, queue: str, times: int = 1, **options: Any) -> list[Envelope]:
        envelopes = [new_envelope("email.send", queue, **options) for _ in range(times)]
        for envelope in envelopes:
            await self.broker.publish(envelope)
        return envelopes

    async def add(self, queue: str, priority: int = 0) -> str:
        """Add to a stream whatever groups it has, and return the entry's id."""
        entry = await self("XADD", self.keys.stream(queue, priority), "*", *_flat(to_fields(new_envelope("x", queue))))
        return str(entry.decode())

    async def deliver(self, queue: str, count: int = 1, consumer: str = "worker-1") -> list[Delivery]:
        """Hand out entries of the stream of priority 0."""
        stream, group = self.keys.stream(queue), self.keys.group(queue)
        answer = await self._told.execute_command(
            "XREADGROUP", "GROUP", group, consumer, "COUNT", count, "STREAMS", stream, ">"
        )
        entries = dict(answer)[stream] if answer else []
        return [Delivery(stream, entry, {"queue": queue}) for entry, _ in entries]

    async def kill(self, queue: str, *, at: datetime) -> None:
        """Add a dead letter."""
        letter = {
            "envelope": new_envelope("x", queue),
            "reason": "max-retries-exhausted",
            "meta": None,
            "deadAt": iso(at),
        }
        await self("LPUSH", self.keys.dead(queue), to_json(letter))

    async def enter(self, entry: str, score: Any, **fields: str) -> None:
        """Enter a schedule."""
        known = {"taskName": "billing.close", "queue": "billing", "enabled": "true", "jitterMs": "", "expireAt": ""}
        await self("HSET", self.keys.schedule(entry), *_flat({**known, **fields}))
        await self("ZADD", self.keys.schedules, score, entry)

    async def ran(self, entry: str, scheduled: str, executed: str, success: str = "true") -> None:
        """Add a run to a schedule's history, as Beat does."""
        fields = {"scheduledAt": scheduled, "executedAt": executed, "success": success, "durationMs": "5", "error": ""}
        await self("XADD", self.keys.schedule_history(entry), "MAXLEN", 1000, "*", *_flat(fields))

    async def user(self, *rules: str) -> RedisReader:
        """Return the reader of a new user that may do what `rules` say."""
        name = f"user-{uuid.uuid4().hex[:8]}"
        await self("ACL", "SETUSER", name, "on", ">password", "~*", *rules)
        return reader(self.server.database(self.database, f"{name}:password"))

    # --- reading ------------------------------------------------------------

    async def now_ms(self) -> int:
        seconds, microseconds = await self("TIME")
        return int(seconds) * 1000 + int(microseconds) // 1000

    async def read(self, watch: QueueWatch) -> QueueState:
        state: QueueState = await self.answer(watch.read(await self.now_ms(), UTC))
        return state

    async def answer(self, query: Query[Any]) -> Any:
        (answer,) = await self.ask(query)
        assert not isinstance(answer, QueryRefusedError), answer
        return answer

    async def ask(self, *queries: Query[Any], reader: RedisReader | None = None) -> Sequence[Any]:
        async with contextlib.nullcontext() if self._watched else self.unchanged():
            answers: Sequence[Any] = await (reader or self.reader).ask(*queries)
        return answers

    @contextlib.asynccontextmanager
    async def unchanged(self) -> AsyncIterator[None]:
        """Show that nothing changes: around each reading, or around many of many keys."""
        before, self._watched = await self._everything(), True
        yield
        self._watched = False
        assert await self._everything() == before

    async def _everything(self) -> dict[tuple[int, bytes], tuple[Any, ...]]:
        """Return every key with its type, its contents, and whether it has a time to live."""
        found: dict[tuple[int, bytes], tuple[Any, ...]] = {}
        for number, raw in enumerate(self._raw):
            names = sorted(await raw.execute_command("KEYS", "*"))
            pipeline = raw.pipeline(transaction=False)
            for name in names:
                for command in ("TYPE", "DUMP", "PTTL"):
                    pipeline.execute_command(command, name)
            told = iter(await pipeline.execute())
            found |= {(number, name): (next(told), next(told), next(told) >= 0) for name in names}
        return found

    async def close(self) -> None:
        await self.reader.close()
        for client in (*self._raw, self._told):
            await client.aclose()


def reader(url: str, **options: Any) -> RedisReader:
    def no_file(reason: str) -> None:
        raise AssertionError(reason)

    return RedisReader(RedisUrl(url), RedisTls(), on_failure=no_file, **{"timeout": 5.0, **options})


@contextlib.asynccontextmanager
async def asking(url: str, **options: Any) -> AsyncIterator[RedisReader]:
    asked = reader(url, **options)
    try:
        yield asked
    finally:
        await asked.close()


@contextlib.asynccontextmanager
async def empty_stores(server: Server, namespace: str = "stem", database: int = 0) -> AsyncIterator[Stores]:
    stores = Stores(server, namespace, database)
    try:
        await stores("FLUSHALL")
        yield stores
    finally:
        await stores.close()


def _flat(fields: dict[str, str]) -> list[str]:
    return [part for pair in fields.items() for part in pair]
