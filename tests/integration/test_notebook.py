"""What a leader notes in a real Valkey: changed as a whole, and kept for an hour."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
import redis.asyncio
from redis.exceptions import ResponseError

from agent.extensions.ownership.notebook import KEPT_SECONDS, NOTES_PREFIX, RedisNotebook


@pytest.fixture
def notebook(client: "redis.asyncio.Redis", namespace: str) -> RedisNotebook:
    return RedisNotebook(client, namespace)


@pytest.fixture
def key(namespace: str) -> Callable[[str], str]:
    return lambda name: f"{NOTES_PREFIX}{namespace}:{name}"


async def test_notes_are_changed_added_and_struck(notebook: RedisNotebook) -> None:
    assert await notebook.read_all("tail") == {}
    await notebook.amend("tail", {"standing": b"1", "task:a": b"\x00\xff", "task:b": b""})
    await notebook.amend("tail", {"standing": b"2", "task:a": None, "task:ü": b"3", "task:never": None})
    assert await notebook.read_all("tail") == {"standing": b"2", "task:b": b"", "task:ü": b"3"}


async def test_each_component_has_notes_of_its_own(notebook: RedisNotebook, client: Any) -> None:
    await notebook.amend("tail", {"standing": b"1"})
    await notebook.amend("tail/eu", {"standing": b"2"})
    await RedisNotebook(client, "elsewhere").amend("tail", {"standing": None})
    assert await notebook.read_all("tail") == {"standing": b"1"}


async def test_the_last_note_that_is_struck_leaves_no_key(
    notebook: RedisNotebook, client: Any, key: Callable[[str], str]
) -> None:
    await notebook.amend("tail", {"standing": b"1"})
    await notebook.amend("tail", {"standing": None})
    assert not await client.exists(key("tail"))


async def test_every_change_keeps_all_notes_for_another_hour(
    notebook: RedisNotebook, client: Any, key: Callable[[str], str]
) -> None:
    await notebook.amend("tail", {"standing": b"1"})
    await client.pexpire(key("tail"), 5000)
    await notebook.amend("tail", {"task:a": b"2"})
    assert 5000 < await client.pttl(key("tail")) <= KEPT_SECONDS * 1000


async def test_notes_that_are_old_are_none(notebook: RedisNotebook, client: Any, key: Callable[[str], str]) -> None:
    await notebook.amend("tail", {"standing": b"1"})
    await client.pexpire(key("tail"), 0)
    assert await notebook.read_all("tail") == {}


async def test_nobody_ever_reads_half_a_change(notebook: RedisNotebook, client: Any) -> None:
    """One writes ever new notes of many tasks, another reads: all of those that are read are of the same change."""
    tasks = [f"task:{number}" for number in range(500)]
    other, seen = RedisNotebook(client, notebook._prefix.split(":")[2]), set[int]()

    async def write() -> None:
        for change in range(30):
            kept = dict.fromkeys(tasks[change % 2 :: 2], b"%d" % change)
            await notebook.amend("tail", {**dict.fromkeys(tasks[1 - change % 2 :: 2]), **kept})

    writing = asyncio.create_task(write())
    while not writing.done():
        read = await other.read_all("tail")
        assert len(set(read.values())) <= 1
        assert len(read) in {0, len(tasks) // 2}
        seen.update(map(int, read.values()))
    await writing
    assert len(seen) > 1


async def test_a_change_of_more_notes_than_lua_can_return_at_once_is_one(notebook: RedisNotebook) -> None:
    many = {f"task:{number}": b"x" for number in range(20_000)}
    await notebook.amend("tail", {**many, "standing": b"1"})
    await notebook.amend("tail", dict.fromkeys(many))
    assert await notebook.read_all("tail") == {"standing": b"1"}


async def test_what_is_refused_is_said(notebook: RedisNotebook, client: Any, key: Callable[[str], str]) -> None:
    await client.set(key("tail"), "something else")
    with pytest.raises(ResponseError):
        await notebook.amend("tail", {"standing": b"1"})
    await client.delete(key("tail"))
