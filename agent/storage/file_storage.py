"""The extension: the disk for those who live in the event loop."""

import asyncio
import contextlib
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, TypeVar

from agent.core.clock import NANOSECONDS, Clock
from agent.core.status import Reporter, Reports
from agent.core.tasks import cancel
from agent.storage.config import FileStorageConfig
from agent.storage.database import Database
from agent.storage.disk import AWAY, Away, Disk, Kept
from agent.storage.events import StorageFailed
from agent.storage.rows import End, Gone, QueueName, Row, Stock, Stored
from agent.telemetry.events import Event, Telemetry

_LOOK_SECONDS = 5.0
"""How often old batches are looked for, free pages given back, and a disk that failed is tried again."""

Result = TypeVar("Result")


class Owner(Protocol):
    """A queue, as far as the storage has something to tell it; called in the event loop."""

    def gone(self, what: Gone) -> None:
        """Take note that a batch had to go unsent."""

    def replaced(self, kept: Mapping[int, Stored]) -> None:
        """Take note that the file was set aside; `kept` (without bodies) are in the new one, under their ids."""

    def recovered(self) -> None:
        """Take note that the disk works again."""


class FileStorage:
    """Batches and states in a directory. One thread uses the disk, and the event loop never waits for it.

    Methods that use the disk return `AWAY` where it could not be used: no exception, because a full disk is expected,
    and because whoever asks has something else to do then. What has begun is done, even if the caller is cancelled.
    """

    def __init__(
        self, identity: str, config: FileStorageConfig, telemetry: Telemetry, clock: Clock, reports: Reports
    ) -> None:
        self._id = identity
        self._config = config
        self._telemetry = telemetry
        self.clock = clock
        self._owners: dict[QueueName, Owner] = {}
        self._ear = _Ear(telemetry, reports.part("disk"), self._owners)
        self._disk = Disk(identity, config, self._ear)
        self._executor: ThreadPoolExecutor | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._unsynced = False
        telemetry.gauge("stem_agent.storage.bytes", lambda: float(self._disk.cost), storage=identity)
        telemetry.gauge("stem_agent.storage.rows", lambda: float(self._disk.rows), storage=identity)

    @property
    def failure(self) -> str | None:
        """Why the disk cannot be used now, in plain words; None while it works."""
        return self._disk.failure

    # --- life ---------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Open the file. A disk that cannot be used is told, and tried again; another agent there is an error."""
        if self._executor:
            return
        self._ear.loop = loop = asyncio.get_running_loop()
        self._executor = ThreadPoolExecutor(1, thread_name_prefix=f"{self._id}: disk")
        await asyncio.shield(loop.run_in_executor(self._executor, self._disk.take_lock))
        await self._use(lambda _: None)
        self._tasks = [asyncio.create_task(self._look_after(), name=f"{self._id}: upkeep")]
        if self._config.sync == "interval":
            self._tasks.append(asyncio.create_task(self._sync_now_and_then(), name=f"{self._id}: sync"))

    async def stop(self, timeout: float) -> None:  # noqa: ASYNC109 - see Component
        """Close the file. Whoever uses it has stopped before."""
        tasks, self._tasks = self._tasks, []
        await cancel(tasks)
        executor, self._executor = self._executor, None
        if executor:
            closing = executor.submit(self._disk.close)  # one thread: what was asked of it before is done before
            executor.shutdown(wait=False)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(timeout, 1.0)):
                    await asyncio.shield(asyncio.wrap_future(closing))

    # --- batches ------------------------------------------------------------------------------------------------------

    async def attach(self, queue: QueueName, owner: Owner) -> Stock | Away:
        """Let a queue know what becomes of its batches; return what it has on the disk."""
        self._owners[queue] = owner
        return await self._use(lambda database: database.stock().get(queue, Stock()))

    async def insert(self, queue: QueueName, row: Row) -> int | Away:
        """Store a batch, and return its id; the oldest of all queues may have to go for it."""
        self._unsynced = True
        return await self._use(lambda database: self._disk.insert(database, queue, row))

    async def next(self, queue: QueueName, *, but: Collection[int]) -> Stored | Away | None:
        """Return the oldest batch of a queue, `but` for some, and let it not go before it is removed.

        Of one that is not what was written, what is left is set aside.
        """
        return await self._use(lambda database: self._disk.next(database, queue, but))

    async def claim(self, identity: int) -> bool | Away:
        """Let a batch not go before it is removed, because it is being sent; False if it has gone already."""
        return await self._use(lambda database: self._disk.claim(database, identity))

    async def remove(self, queue: QueueName, identity: int, end: End) -> bool | Away:
        """Take a batch out, with what became of it; False if it is not there any more."""
        self._unsynced = True
        return await self._use(lambda database: self._disk.remove(database, queue, identity, end))

    # --- states -------------------------------------------------------------------------------------------------------

    async def put(self, key: str, value: bytes) -> bool:
        """Keep a state (see `StateStore`)."""
        self._unsynced = True
        return await self._use(lambda database: database.put_state(key, value)) is not AWAY

    async def take(self, key: str) -> bytes | None:
        """Return a state and forget it (see `StateStore`)."""
        state = await self._use(lambda database: self._disk.take_state(database, key))
        return None if state is AWAY else state

    # --- the thread ---------------------------------------------------------------------------------------------------

    async def _use(self, work: Callable[[Database], Result]) -> Result | Away:
        if self._executor is None:
            return AWAY
        loop = asyncio.get_running_loop()
        return await asyncio.shield(loop.run_in_executor(self._executor, self._disk.use, work))

    # --- upkeep -------------------------------------------------------------------------------------------------------

    async def _look_after(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            await self.look_after()

    async def look_after(self) -> None:
        """Drop what is too old, and give room that is not needed back to the file system."""
        before_ns = self.clock() - int(self._config.max_age * NANOSECONDS)
        await self._use(lambda database: self._disk.expire(database, before_ns))
        while await self._use(lambda database: database.give_back()) is True:
            pass

    async def _sync_now_and_then(self) -> None:
        while True:
            await asyncio.sleep(self._config.sync_interval)
            if self._unsynced:
                self._unsynced = await self._use(lambda database: database.sync()) is AWAY


class _Ear:
    """Brings what the disk's thread tells into the event loop."""

    def __init__(self, telemetry: Telemetry, disk: Reporter, owners: Mapping[QueueName, Owner]) -> None:
        self.loop: asyncio.AbstractEventLoop | None = None
        self._status = disk
        self._telemetry = telemetry
        self._owners = owners

    def tell(self, event: Event) -> None:
        def tell() -> None:
            self._telemetry.emit(event)
            if isinstance(event, StorageFailed):
                self._status.degraded(f"in memory only: {event.error}")

        self._in_loop(tell)

    def gone(self, gone: Sequence[Gone]) -> None:
        def tell() -> None:
            for each in gone:
                if owner := self._owners.get(each.queue):
                    owner.gone(each)

        self._in_loop(tell)

    def replaced(self, kept: Kept) -> None:
        def tell() -> None:
            for queue, owner in self._owners.items():
                owner.replaced(kept.get(queue, {}))

        self._in_loop(tell)

    def recovered(self) -> None:
        def tell() -> None:
            self._status.ok()
            for owner in self._owners.values():
                owner.recovered()

        self._in_loop(tell)

    def _in_loop(self, work: Callable[[], None]) -> None:
        if self.loop:
            with contextlib.suppress(RuntimeError):  # it is closed: there is nobody to tell
                self.loop.call_soon_threadsafe(work)
