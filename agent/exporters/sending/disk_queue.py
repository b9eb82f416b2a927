"""Batches on a disk, and as many of them in memory, too, as a destination that keeps up takes from there."""

import asyncio
import contextlib
from collections import OrderedDict
from collections.abc import Iterator, Mapping

from agent.core.pressure import Priority
from agent.core.tasks import cancel
from agent.exporters.sending.queue import Keeper, MemoryQueue, Taken
from agent.exporters.sending.sealed import Sealed, row_of, sealed_of
from agent.storage.disk import AWAY, Away
from agent.storage.file_storage import FileStorage
from agent.storage.rows import End, Gone, QueueName, Stored

PUT_SECONDS = 1.0
"""So long a disk may take for what is being written when the queue is closed."""
STORAGE_CORRUPT = "storage_corrupt"
HOT_BYTES = 8 << 20
"""Of the batches on disk so much stays in memory, too: a destination that keeps up is not paid for by reading."""


class _Hot:
    """Batches that are on the disk and in memory, oldest first, by their rows. `items` and `bytes` are theirs."""

    def __init__(self) -> None:
        self._line: OrderedDict[int, Sealed] = OrderedDict()
        self.items = 0
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._line)

    def __iter__(self) -> Iterator[int]:
        return iter(tuple(self._line))

    @property
    def oldest_ns(self) -> int:
        """When the oldest batch was begun; 0 if there is none."""
        oldest = next(iter(tuple(self._line.values())), None)  # asked for in another thread, too
        return oldest.begun_ns if oldest else 0

    def add(self, identity: int, sealed: Sealed) -> None:
        """Take a batch in."""
        self._line[identity] = sealed
        self.items += sealed.count
        self.bytes += len(sealed.body)

    def remove(self, identity: int) -> Sealed | None:
        """Take a batch out; None if it is not there."""
        sealed = self._line.pop(identity, None)
        if sealed:
            self.items -= sealed.count
            self.bytes -= len(sealed.body)
        return sealed

    def pop(self) -> tuple[int, Sealed]:
        """Take the oldest batch out; there must be one."""
        identity = next(iter(self._line))
        sealed = self._line[identity]
        self.remove(identity)
        return identity, sealed


class DiskQueue:
    """Batches on a disk: the newest of them in memory, too (`hot`), the older ones only there (`cold`).

    Where the disk does not take a batch it waits in memory alone, and is written when the disk works again.
    """

    keeps = True

    def __init__(self, storage: FileStorage, name: QueueName, keeper: Keeper) -> None:
        self._storage = storage
        self._name = name
        self._keeper = keeper
        self._memory = MemoryQueue()
        self._hot = _Hot()
        self._cold_batches = 0
        self._cold_items = 0
        self._cold_since_ns = 0  # none of them was begun before
        self._claimed: dict[int, int] = {}  # items of the row that is being taken from the hot
        self._under_way: set[int] = set()
        self._ended: dict[int, End] = {}  # what the disk would not forget yet
        self._putting: dict[asyncio.Task[None], int] = {}
        self._taking = asyncio.Lock()
        self._known = False
        self._recovering: asyncio.Task[None] | None = None

    @property
    def items(self) -> int:
        """Items that wait, wherever."""
        on_disk = self._cold_items + self._hot.items + sum(self._claimed.values())
        return on_disk + self._memory.items + sum(self._putting.values())

    @property
    def oldest_ns(self) -> int:
        """When the oldest batch was begun, or before."""
        if self._cold_batches:
            return self._cold_since_ns
        return self._hot.oldest_ns or self._memory.oldest_ns

    @property
    def memory(self) -> MemoryQueue:
        """The batches that the disk did not take."""
        return self._memory

    @property
    def spillable_bytes(self) -> int:
        """Bytes of the hot batches."""
        return self._hot.bytes

    async def open(self) -> None:
        """Find what an earlier process left; later, if the disk cannot be read now."""
        stock = await self._storage.attach(self._name, self)
        if stock is AWAY or self._known:
            return
        # Nothing is written before this is known, so that all of it is an earlier process's.
        self._known = True
        self._cold_batches, self._cold_items, self._cold_since_ns = stock.batches, stock.items, stock.oldest_ns
        if stock.items:
            self._keeper.restored(stock.items)
        self._keeper.ready()

    # --- in -----------------------------------------------------------------------------------------------------------

    async def put(self, sealed: Sealed) -> None:
        """Write a batch, or keep it in memory where that fails."""
        task = asyncio.create_task(self._put(sealed), name=f"{self._name.exporter}: {self._name.kind}: put")
        self._putting[task] = sealed.count
        await asyncio.shield(task)

    async def _put(self, sealed: Sealed) -> None:
        identity: int | Away = AWAY
        try:
            if self._known:
                identity = await self._storage.insert(self._name, row_of(sealed, self._storage.clock()))
        finally:
            if task := asyncio.current_task():
                self._putting.pop(task, None)
            if identity is AWAY:
                self._memory.add(sealed)
            else:
                self._hot.add(identity, sealed)
                self._cool_down(HOT_BYTES, but=1)
            self._keeper.ready()

    def _cool_down(self, size: int = 0, *, but: int = 0) -> None:
        while self._hot.bytes > size and len(self._hot) > but:
            _, oldest = self._hot.pop()
            if not self._cold_batches:
                self._cold_since_ns = oldest.begun_ns
            self._cold_batches += 1
            self._cold_items += oldest.count

    # --- out ----------------------------------------------------------------------------------------------------------

    async def take(self) -> Taken | None:
        """Hand out the oldest batch."""
        async with self._taking:
            while self._cold_batches:
                stored = await self._storage.next(self._name, but=self._under_way | self._ended.keys())
                if stored is AWAY:
                    break
                if (taken := await self._warm_up(stored)) is not None:
                    return taken
            while self._hot:
                identity, sealed = self._hot.pop()
                self._claimed[identity] = sealed.count
                await self._storage.claim(identity)
                if self._claimed.pop(identity, None) is not None:  # else it had to go, which was told meanwhile
                    self._under_way.add(identity)
                    return Taken(sealed, identity)
            return await self._memory.take()

    async def _warm_up(self, stored: Stored | None) -> Taken | None:
        if stored is None:
            self._keeper.dropped(STORAGE_CORRUPT, self._cold_items, "they are not on the disk any more")
            self._cold_batches = self._cold_items = 0
            return None
        self._cold_batches -= 1
        self._cold_items -= stored.items
        self._under_way.add(stored.id)
        if stored.row is None:
            self._keeper.dropped(STORAGE_CORRUPT, stored.items, "a batch on the disk is not what was written")
            await self.done(Taken(_NOTHING, stored.id), End(dropped=stored.items, reason=STORAGE_CORRUPT))
            return None
        self._cold_since_ns = stored.row.created_ns
        return Taken(sealed_of(stored.row), stored.id)

    async def done(self, taken: Taken, end: End) -> None:
        """Take a batch off the disk."""
        if not taken.identity:
            return
        self._under_way.discard(taken.identity)
        if await self._storage.remove(self._name, taken.identity, end) is AWAY:
            self._ended[taken.identity] = end

    async def put_back(self, taken: Taken) -> None:
        """Count a batch that stays on the disk, or write it now."""
        if not taken.identity:
            await self.put(taken.sealed)
            return
        self._under_way.discard(taken.identity)
        self._cold_batches += 1
        self._cold_items += taken.sealed.count

    def shed(self, priority: Priority = Priority.SIGNALS) -> Sealed | None:
        """Give up the oldest batch of at most this priority that the disk did not take."""
        return self._memory.shed(priority)

    def spill(self) -> None:
        """Forget what is hot: it is read when its turn comes. Try again to write the rest."""
        self._cool_down()
        if self._memory.items and not self._storage.failure:
            self.recovered()

    async def close(self) -> int:
        """End: what is on the disk stays there, what is not ends with us."""
        if self._recovering:
            await cancel([self._recovering])
        if self._putting:
            await asyncio.wait(self._putting, timeout=PUT_SECONDS)
        if self._memory.items and not self._putting:  # the disk may work again, and nobody have noticed
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(PUT_SECONDS):
                    await self._catch_up()
        recovering, self._recovering = self._recovering, None
        if recovering:
            await cancel([recovering])
        # What a disk that hangs has not taken by now may be on it in the end; nobody can promise it.
        return await self._memory.close() + sum(self._putting.values())

    # --- what the storage tells ---------------------------------------------------------------------------------------

    def gone(self, what: Gone) -> None:
        """Take note that a batch had to go unsent."""
        if what.id in self._under_way or what.id in self._ended:
            return  # its claim did not reach the disk; it is sent all the same
        if not self._hot.remove(what.id) and self._claimed.pop(what.id, None) is None:
            self._cold_batches = max(0, self._cold_batches - 1)
            self._cold_items -= what.items
        self._keeper.dropped(what.reason, what.items, "the oldest batch had to go from the file storage")

    def replaced(self, kept: Mapping[int, Stored]) -> None:
        """Count anew what is on the disk; what is hot and was not taken over is written again."""
        before = self._cold_items
        for identity in self._hot:
            if identity not in kept and (sealed := self._hot.remove(identity)):
                self._memory.add(sealed)
        others = {*self._hot, *self._claimed, *self._under_way}
        cold = [stored for identity, stored in kept.items() if identity not in others]
        self._cold_batches, self._cold_items = len(cold), sum(stored.items for stored in cold)
        if before > self._cold_items:
            detail = "they were in a file that could not be read any more"
            self._keeper.dropped(STORAGE_CORRUPT, before - self._cold_items, detail)
        self.recovered()

    def recovered(self) -> None:
        """Write what had to wait in memory, and forget what was to be forgotten."""
        if self._recovering is None or self._recovering.done():
            self._recovering = asyncio.create_task(self._catch_up(), name=f"{self._name.exporter}: catch up")

    async def _catch_up(self) -> None:
        if not self._known:
            await self.open()
        for identity, end in list(self._ended.items()):
            if await self._storage.remove(self._name, identity, end) is AWAY:
                return
            del self._ended[identity]
        while self._known and (sealed := self._memory.shed()):
            await self.put(sealed)
            if self._storage.failure:
                break
        self._keeper.ready()


_NOTHING = Sealed(b"", 0, 0)
