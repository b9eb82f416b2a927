"""A process that is killed at any moment loses nothing that was sealed. `make chaos` does the same, more often."""

import asyncio
import os
import random
import sys
from collections import Counter
from pathlib import Path

from agent.storage.database import Database
from agent.storage.disk import FILE
from agent.storage.rows import QueueName

KILLS = int(os.environ.get("STEM_TEST_KILLS", "30"))
NAME = QueueName("otlp_http", "traces")


class Heard:
    """What all the processes said before they were killed."""

    def __init__(self) -> None:
        self.safe: dict[str, int] = {}
        self.delivered: dict[str, int] = {}
        self.repeats = 0

    def take(self, line: bytes) -> None:
        words = line.decode().split()
        if line.endswith(b"\n") and words[0] in {"P", "D"}:
            where = self.safe if words[0] == "P" else self.delivered
            self.repeats += words[0] == "D" and words[1] in where
            where[words[1]] = int(words[2])


async def run(directory: Path, heard: Heard, seed: int, *, after: float | None) -> None:
    """Run a process until it ends, or kill it so many seconds after its start was complete."""
    arguments = [] if after is not None else ["drain"]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.crash", str(directory), str(seed), *arguments), stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout
    while (line := await process.stdout.readline()) != b"go\n":
        assert line, "it ended before it began"
        heard.take(line)
    reading = asyncio.create_task(_read(process.stdout, heard))
    if after is not None:
        await asyncio.wait([reading], timeout=after)
        process.kill()
    await reading
    await process.wait()


async def _read(lines: asyncio.StreamReader, heard: Heard) -> None:
    async for line in lines:
        heard.take(line)


async def test_a_process_killed_at_any_moment_loses_nothing_that_was_sealed(tmp_path: Path) -> None:
    chance, heard = random.Random(), Heard()
    for number in range(KILLS):
        await run(tmp_path, heard, number, after=chance.random() * 0.15)
        database = Database(tmp_path / FILE)
        on_disk = {stored.row.batch_id: stored.row.count for _, stored in database.all() if stored.row}
        books = database.books().get(NAME)
        database.close()
        if books:
            assert books.exact, books
            assert books.held == sum(on_disk.values())
        missing = heard.safe.keys() - heard.delivered.keys() - on_disk.keys()
        assert not missing, f"killed {number + 1} times: {missing} was safe, is not delivered and not on the disk"
    await run(tmp_path, heard, 0, after=None)
    assert heard.safe.items() <= heard.delivered.items()
    database = Database(tmp_path / FILE)
    (books,) = database.books().values()
    database.close()
    assert books.exact
    assert (books.held, books.dropped) == (0, {})
    assert len(heard.safe) > KILLS, Counter(heard.safe.values())
