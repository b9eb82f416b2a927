"""OTLP/HTTP endpoints, one a candidate, that count items and forget them; ports and counts are told through Redis."""

import asyncio
import sys

import redis.asyncio

from agent.demo.sink import Sink


async def count(client: "redis.asyncio.Redis", name: str) -> None:
    sink = Sink()
    changed = asyncio.Event()
    sink.on_request = changed.set
    await sink.start()
    await client.set(f"bench:{name}:url", sink.url)
    while True:
        await changed.wait()
        changed.clear()
        batches, sink.batches = sink.batches, []
        sink.spans.clear()
        sink.logs.clear()
        sink.headers.clear()
        for kind, items in batches:
            await client.incrby(f"bench:{name}:{kind}", items)


async def main(url: str, names: list[str]) -> None:
    client = redis.asyncio.Redis.from_url(url)
    await asyncio.gather(*(count(client, name) for name in names))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2:]))
