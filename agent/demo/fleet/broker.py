"""Stem's `RedisStreamsBroker`: ten streams a queue with a consumer group, a delayed set, a list of dead letters."""

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from redis.exceptions import ResponseError

from agent.demo.fleet.envelopes import Envelope, epoch_ms, from_fields, to_fields, to_json
from agent.demo.fleet.faults import Clock
from agent.emit import iso
from agent.stem.keys import Keys

DRAIN_BATCH = 128
CLAIM_BATCH = 128


@dataclass(frozen=True, slots=True)
class Delivery:
    """An envelope in a worker's hands, and where it is pending."""

    stream: str
    entry_id: str
    envelope: Envelope
    claimed: bool = False

    @property
    def queue(self) -> str:
        """Name of the queue."""
        return str(self.envelope["queue"])


class Broker:
    """Publishes and consumes as Stem does: nothing is ever trimmed or deleted from a stream.

    Where Stem acknowledges and then writes, both go out together here, in this order: a worker killed in between would
    lose the task, in Stem as well; but the fleet waits for every task's end.
    """

    def __init__(self, client: Any, keys: Keys, clock: Clock) -> None:
        self._redis = client  # redis-py's types know neither text answers nor plain dicts
        self._keys = keys
        self._clock = clock
        self._groups: set[str] = set()

    async def publish(self, envelope: Envelope) -> None:
        """Put a task on the stream of its priority, or into the delayed set while it is not due."""
        not_before, queue = envelope["notBefore"], envelope["queue"]
        if not_before and (due := datetime.fromisoformat(not_before)) > self._clock():
            await self._redis.zadd(self._keys.delayed(queue), {to_json(envelope): epoch_ms(due)})
            return
        stream = self._keys.stream(queue, envelope["priority"])
        await self._ensure_group(stream, queue)
        await self._redis.xadd(stream, to_fields(envelope))

    async def listen(self, queue: str) -> None:
        """Make the consumer groups of all ten streams, as every consumer does."""
        for stream in self._keys.streams(queue):
            await self._ensure_group(stream, queue)

    async def read(self, queue: str, consumer: str, *, count: int, block_s: float) -> list[Delivery]:
        """Move what is due to its stream, then wait for new entries, highest priority first."""
        # Shielded: between ZREM and XADD a task is nowhere. Stem has this hole too; it is not what the demo shows.
        await asyncio.shield(asyncio.ensure_future(self._drain(queue)))
        streams = dict.fromkeys(self._keys.streams(queue), ">")
        group = self._keys.group(queue)
        answer = await self._redis.xreadgroup(group, consumer, streams, count=count, block=int(block_s * 1000))
        return [
            Delivery(stream, entry_id, from_fields(fields))
            for stream, entries in (answer.items() if isinstance(answer, Mapping) else answer or ())
            for entry_id, fields in _flat(entries)
        ]

    async def claim(self, queue: str, consumer: str, *, idle_s: float) -> list[Delivery]:
        """Take over what other consumers have held for longer than `idle_s`."""
        taken = []
        for stream in self._keys.streams(queue):
            answer = await self._redis.xautoclaim(
                stream, self._keys.group(queue), consumer, int(idle_s * 1000), count=CLAIM_BATCH
            )
            taken += [
                Delivery(stream, entry_id, from_fields(fields), claimed=True)
                for entry_id, fields in answer[1]
                if fields
            ]
        return taken

    async def ack(self, delivery: Delivery) -> None:
        """Take a delivery off the group's pending list."""
        await self._redis.xack(delivery.stream, self._keys.group(delivery.queue), delivery.entry_id)

    async def dead_letter(self, delivery: Delivery, reason: str, meta: dict[str, Any] | None) -> None:
        """Acknowledge, and put the envelope at the head of the dead letters."""
        letter = {"envelope": delivery.envelope, "reason": reason, "meta": meta, "deadAt": iso(self._clock())}
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.xack(delivery.stream, self._keys.group(delivery.queue), delivery.entry_id)
            pipe.lpush(self._keys.dead(delivery.queue), to_json(letter))
            await pipe.execute()

    async def send_back(self, delivery: Delivery, seconds: float, **changes: Any) -> datetime:
        """Acknowledge, and leave an envelope with `changes` that falls due after `seconds`; return when.

        So do retries, rate limits, and the extension of a lease, whose copy Stem never takes back.
        """
        due = self._clock() + timedelta(seconds=seconds)
        envelope = {**delivery.envelope, **changes, "notBefore": iso(due)}
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.xack(delivery.stream, self._keys.group(delivery.queue), delivery.entry_id)
            pipe.zadd(self._keys.delayed(delivery.queue), {to_json(envelope): epoch_ms(due)})
            await pipe.execute()
        return due

    async def pending_count(self, queue: str) -> int:
        """Return what waits in a queue: the lag of its group over all streams."""
        total = 0
        for stream in self._keys.streams(queue):
            for group in await self._redis.xinfo_groups(stream):
                total += group.get("lag") or 0  # before Redis 7 there is none, and Stem counts none
        return total

    async def _drain(self, queue: str) -> None:
        key = self._keys.delayed(queue)
        due = await self._redis.zrangebyscore(key, "-inf", epoch_ms(self._clock()), start=0, num=DRAIN_BATCH)
        for member in due:
            if await self._redis.zrem(key, member):
                await self.publish(json.loads(member))

    async def _ensure_group(self, stream: str, queue: str) -> None:
        if stream in self._groups:
            return
        try:
            await self._redis.xgroup_create(stream, self._keys.group(queue), id="0", mkstream=True)
        except ResponseError as error:
            if "BUSYGROUP" not in str(error):
                raise
        self._groups.add(stream)


def _flat(entries: Any) -> Any:
    """Return (id, fields) pairs; redis-py nests them once more under RESP3."""
    return entries[0] if entries and isinstance(entries[0], list) else entries
