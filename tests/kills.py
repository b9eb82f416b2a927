"""A process that is killed again and again while it sends with a disk: CI does it 30 times, `make chaos` 300 times."""

import asyncio
import random
import sys
from pathlib import Path

from agent.storage.database import Database
from agent.storage.disk import FILE
from agent.storage.rows import Books, QueueName

NAME = QueueName("otlp_http", "traces")


class Heard:
    """What all the processes said before they were killed: batches by id, with their items."""

    def __init__(self) -> None:
        self.kills = 0
        self.safe: dict[str, int] = {}
        self.delivered: dict[str, int] = {}
        self.repeats = 0

    def take(self, line: bytes) -> None:
        words = line.decode().split()
        if line.endswith(b"\n") and words[0] in {"P", "D"}:
            where = self.safe if words[0] == "P" else self.delivered
            self.repeats += words[0] == "D" and words[1] in where
            where[words[1]] = int(words[2])


async def kill_often(directory: Path, kills: int, chance: random.Random) -> Heard:
    """Kill so many processes, one after the other, then let one drain. Raises `AssertionError` if anything is lost."""
    heard = Heard()
    for number in range(kills):
        await _run(directory, heard, number, after=chance.random() * 0.15)
        heard.kills += 1
        _check(directory, heard)
    await _run(directory, heard, 0, after=None)
    assert heard.safe.items() <= heard.delivered.items()
    books, _ = _look(directory)
    assert books
    assert books.exact
    assert (books.held, books.dropped) == (0, {})
    assert len(heard.safe) > kills, "most processes had the time to store something"
    return heard


def _check(directory: Path, heard: Heard) -> None:
    books, on_disk = _look(directory)
    if books:
        assert books.exact, books
        assert books.held == sum(on_disk.values())
    missing = heard.safe.keys() - heard.delivered.keys() - on_disk.keys()
    assert not missing, f"killed {heard.kills} times: {missing} was safe, is not delivered and not on the disk"


def _look(directory: Path) -> tuple[Books | None, dict[str, int]]:
    database = Database(directory / FILE)
    try:
        on_disk = {stored.row.batch_id: stored.row.count for _, stored in database.all() if stored.row}
        return database.books().get(NAME), on_disk
    finally:
        database.close()


async def _run(directory: Path, heard: Heard, seed: int, *, after: float | None) -> None:
    """Run a process until it ends, or kill it so many seconds after its start was complete."""
    arguments = [] if after is not None else ["drain"]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.crash", str(directory), str(seed), *arguments), stdout=asyncio.subprocess.PIPE
    )
    try:
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
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def _read(lines: asyncio.StreamReader, heard: Heard) -> None:
    async for line in lines:
        heard.take(line)
