"""A process to be killed: it sends batches with a disk, and says what is safe and what was delivered as soon as it is.

`python -m tests.crash DIRECTORY SEED [drain]` writes lines to standard output, each with one system call: `go`,
`P batch-id items` when a batch is on the disk, `D batch-id items` when the destination accepted it. With `drain` it
sends nothing new, and ends when nothing is left.
"""

import asyncio
import logging
import os
import random
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from agent.core.clock import SteadyClock
from agent.core.ledger import Ledger
from agent.core.status import Reports, StatusBoard
from agent.exporters.sending import disk_queue as queues
from agent.exporters.sending.config import BatchConfig, QueueConfig, RetryConfig
from agent.exporters.sending.disk_queue import DiskQueue
from agent.exporters.sending.outcome import Delivered, Outcome, Retry
from agent.exporters.sending.sealed import GZIP, Sealed
from agent.exporters.sending.sender import Sender
from agent.otlp.batch import Batch, Kind
from agent.otlp.resource import Resource
from agent.storage.config import FileStorageConfig
from agent.storage.file_storage import FileStorage
from agent.telemetry.events import Telemetry

RESOURCE = Resource({"service.name": "shop"})


def say(*words: object) -> None:
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


def reports() -> Reports:
    return StatusBoard(SteadyClock()).of("exporters", "otlp_http")


class Destination:
    """Accepts most, after a while; says what it accepted before the sender can know."""

    def __init__(self, chance: random.Random, *, kind: bool) -> None:
        self._chance = chance
        self._kind = kind

    async def __call__(self, sealed: Sealed) -> Outcome:
        if not self._kind and self._chance.random() < 0.6:
            return Retry("http_503", "busy")
        await asyncio.sleep(0 if self._kind else self._chance.random() * 0.003)
        say("D", sealed.batch_id, sealed.count)
        return Delivered()


class SpokenQueue(DiskQueue):
    """Says what is safe."""

    async def put(self, sealed: Sealed) -> None:
        await super().put(sealed)
        say("P", sealed.batch_id, sealed.count)


async def main(directory: Path, seed: int, *, drain: bool) -> None:
    chance, telemetry = random.Random(seed), Telemetry()
    storage = FileStorage("s", FileStorageConfig(directory=str(directory)), telemetry, SteadyClock(), reports())
    await storage.start()
    with ThreadPoolExecutor(1) as executor:
        sender = Sender(
            queue=QueueConfig(batch=BatchConfig(flush_timeout=0.001, max_items=20), num_consumers=2),
            retry=RetryConfig(initial_interval=0.001, max_interval=0.002),
            coding=GZIP,
            transport=Destination(chance, kind=drain),
            account=Ledger().account("otlp_http", "traces"),
            telemetry=telemetry,
            executor=executor,
            storage=storage,
            reports=reports(),
        )
        sender._queue = SpokenQueue(storage, sender._queue._name, sender)  # type: ignore[attr-defined]
        await sender.start()
        say("go")
        while not drain:
            count = chance.randrange(1, 30)
            size = chance.choice([50, 500, 20_000])
            sender.consume(Batch(Kind.TRACES, RESOURCE, [chance.randbytes(size) for _ in range(count)], count))
            await asyncio.sleep(chance.random() * 0.004)
        await sender.stop(20)
    await storage.stop(5)


if __name__ == "__main__":
    logging.disable(logging.WARNING)  # that a destination is busy is nothing new
    queues.HOT_BYTES = 100_000  # so that most is read from the disk
    asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2]), drain="drain" in sys.argv))
