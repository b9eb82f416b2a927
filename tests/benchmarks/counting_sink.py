"""An OTLP/HTTP endpoint that counts items and forgets them; it tells its port and its counts through Redis."""

import asyncio
import sys

import redis.asyncio

from agent.demo.sink import Sink


async def main(url: str) -> None:
    client = redis.asyncio.Redis.from_url(url)
    sink = Sink()
    changed = asyncio.Event()
    sink.on_request = changed.set
    await sink.start()
    await client.set("bench:port", sink.port)
    while True:
        await changed.wait()
        changed.clear()
        batches, sink.batches = sink.batches, []
        sink.spans.clear()
        sink.logs.clear()
        for kind, count in batches:
            await client.incrby(f"bench:{kind}", count)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
