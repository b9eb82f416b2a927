"""The queue of one exporter and one kind of telemetry, and the tasks that empty it."""

import asyncio
import contextlib
from collections import deque
from concurrent.futures import Executor

from agent.core.clock import NANOSECONDS
from agent.core.ledger import Account
from agent.core.pressure import Pressure, Priority
from agent.core.status import Reports
from agent.core.tasks import cancel
from agent.exporters.sending.batcher import Intake, Pending, next_beat
from agent.exporters.sending.config import QueueConfig, RetryConfig
from agent.exporters.sending.delivery import Again, Delivery, Grace
from agent.exporters.sending.disk_queue import DiskQueue
from agent.exporters.sending.events import DeliveryRetried, DestinationWarned, ItemsDropped, ItemsRejected
from agent.exporters.sending.outcome import Delivered, Drop
from agent.exporters.sending.queue import BatchQueue, MemoryQueue, Taken
from agent.exporters.sending.sealed import Coding, Sealed, seal
from agent.exporters.sending.watch import Transport, Watch
from agent.otlp.batch import Batch
from agent.storage.file_storage import FileStorage
from agent.storage.rows import End, QueueName
from agent.telemetry.events import Telemetry

QUEUE_OVERFLOW = "queue_overflow"
MEMORY_LIMIT = "memory_limit"
SHUTDOWN = "shutdown"
INTERNAL_ERROR = "internal_error"
_SEAL_SECONDS = 1.0
"""Within so long everything is on the disk when the agent stops, however little time is left for the network."""


class Sender:
    """Batches, seals, holds and delivers the items of one account.

    What is held in memory never exceeds `queue_size`: the oldest batch that is not under way is dropped and
    counted. With a `storage` every sealed batch is written to disk before it is sent, where other limits hold.
    """

    def __init__(  # noqa: PLR0913 - what it is made of, by name
        self,
        *,
        queue: QueueConfig,
        retry: RetryConfig,
        coding: Coding,
        transport: Transport,
        account: Account,
        telemetry: Telemetry,
        executor: Executor,
        reports: Reports,
        auth_grace: float = 0.0,
        storage: FileStorage | None = None,
        pressure: Pressure | None = None,
    ) -> None:
        self._config = queue
        # What is on disk is limited by age and size there, not by a time for retrying.
        self._retry = retry.model_copy(update={"max_elapsed_time": 0.0}) if storage else retry
        self._coding = coding
        labels = {"exporter": account.exporter, "signal": account.kind}
        self._transport = self._watch = Watch(
            transport,
            clock=telemetry.clock,
            delivery=reports.part(account.kind),
            queue=reports.part(f"{account.kind}.queue"),
            queue_size=queue.capacity,
            unit=queue.sizer,
            duration=telemetry.histogram("stem_agent.exporter.duration", **labels),
            latency=telemetry.histogram("stem_agent.pipeline.latency", **labels),
        )
        reports.probe(lambda now_ns: self._watch.look(self.oldest_ns, now_ns))
        self._account = account
        self._telemetry = telemetry
        self._executor = executor
        self._pressure = pressure or Pressure()
        self._grace = Grace(auth_grace)
        self._intake = Intake(max_items=queue.batch.max_items, max_bytes=queue.batch.max_bytes)
        self._unsealed: deque[Pending] = deque()
        self._unsealed_bytes = 0
        name = QueueName(account.exporter, account.kind)
        self._queue: BatchQueue = DiskQueue(storage, name, self) if storage else MemoryQueue()
        self._to_seal = asyncio.Event()
        self._to_send = asyncio.Event()
        self._sealed_up = asyncio.Event()
        self._idle = asyncio.Event()
        self._stopping = asyncio.Event()
        self._flush_timer: asyncio.TimerHandle | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._under_way: dict[asyncio.Task[None], Taken] = {}
        self._measure()

    @property
    def name(self) -> str:
        """For messages and tasks: exporter and kind."""
        return f"{self._account.exporter}: {self._account.kind}"

    @property
    def queued_bytes(self) -> int:
        """Bytes of closed batches that wait in memory alone; what is under way is bounded by its own limits."""
        return self._unsealed_bytes + self._queue.memory.bytes

    @property
    def queued(self) -> int:
        """What waits in memory alone, in the unit of `sizer`."""
        match self._config.sizer:
            case "items":
                return sum(pending.count for pending in self._unsealed) + self._queue.memory.items
            case "requests":
                return len(self._unsealed) + self._queue.memory.batches
            case _:
                return self.queued_bytes

    @property
    def oldest_ns(self) -> int:
        """When the oldest closed batch was begun (Unix nanoseconds); 0 where none waits or is under way."""
        # Copies, each taken at one moment: the agent's own metrics are read in another thread.
        under_way = [taken.sealed.begun_ns for taken in tuple(self._under_way.values())]
        unsealed = [pending.begun_ns for pending in tuple(self._unsealed)]
        return min(filter(None, (self._queue.oldest_ns, *under_way, *unsealed)), default=0)

    @property
    def held(self) -> int:
        """Items counted where they are: pending, waiting, under way. The account's `held` must say the same."""
        count = self._intake.count + sum(pending.count for pending in self._unsealed)
        return count + self._queue.items + sum(taken.sealed.count for taken in self._under_way.values())

    # --- in --------------------------------------------------------------------------------------------------------

    def consume(self, batch: Batch) -> None:
        """Accept a batch; never waits. One without items asks for nothing."""
        if not batch.items:
            return
        self._account.accepted += batch.count
        if batch.priority < self._pressure.floor:
            detail = f"memory is short: nothing below {self._pressure.floor.name.lower()} is taken"
            self.dropped(MEMORY_LIMIT, batch.count, detail)
            return
        for full in self._intake.add(batch, self._telemetry.clock()):
            self._close(full)
        if self._flush_timer is None and self._intake.count:
            loop = asyncio.get_running_loop()
            self._flush_timer = loop.call_at(next_beat(loop.time(), self._config.batch.flush_timeout), self._flush)

    def _flush(self) -> None:
        if self._flush_timer:
            self._flush_timer.cancel()
            self._flush_timer = None
        # What is sent at once goes together. What may have to wait may also have to go, each priority in its turn.
        waits = bool(self._unsealed or self._queue.items or self._under_way)
        together = self._queue.keeps or not (waits and self._pressure.guarded)
        for pending in self._intake.flush(together=together):
            self._close(pending)

    def _close(self, pending: Pending) -> None:
        self._unsealed.append(pending)
        self._unsealed_bytes += pending.size
        self._make_room()
        self._watch.filled(self.queued)
        self._idle.clear()
        self._sealed_up.clear()
        self._to_seal.set()

    def _make_room(self) -> None:
        while self.queued > self._config.capacity:
            if (oldest := self._queue.shed()) is not None:
                count = oldest.count
            elif len(self._unsealed) > 1:
                count = (waiting := self._unsealed.popleft()).count
                self._unsealed_bytes -= waiting.size
            else:
                return
            self._watch.overflowed()
            self.dropped(QUEUE_OVERFLOW, count, f"queue_size of {self._config.capacity} {self._config.sizer} reached")

    # --- when memory is short ----------------------------------------------------------------------------------------

    @property
    def spillable_bytes(self) -> int:
        """Bytes that are on the disk, too."""
        return self._queue.spillable_bytes

    @property
    def held_bytes(self) -> int:
        """Bytes that may be given up."""
        return self.queued_bytes

    def spill(self) -> None:
        """Forget what is on the disk, too."""
        self._queue.spill()

    def shed(self, priority: Priority, size: int) -> int:
        """Give up the oldest batches of at most this priority until they are `size` bytes; return their bytes."""
        freed = count = 0
        while freed < size and (sealed := self._queue.shed(priority)):
            freed, count = freed + len(sealed.body), count + sealed.count
        for pending in tuple(self._unsealed):
            if freed < size and pending.priority <= priority:
                self._unsealed.remove(pending)
                self._unsealed_bytes -= pending.size
                freed, count = freed + pending.size, count + pending.count
        if count:
            self.dropped(MEMORY_LIMIT, count, f"memory is short: the oldest {priority.name.lower()} had to go")
            self._watch.filled(self.queued)
        return freed

    # --- out -------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Find what an earlier process left, and start sealing and sending."""
        self._stopping.clear()
        self._pressure.join(self)
        await self._queue.open()
        self._tasks = [asyncio.create_task(self._seal_all(), name=f"{self.name}: seal")]
        self._tasks += [
            asyncio.create_task(self._send_all(), name=f"{self.name}: send {index}")
            for index in range(self._config.num_consumers)
        ]
        self._look_around()

    async def stop(self, timeout: float) -> None:  # noqa: ASYNC109 - see Component
        """Close the pending batch, deliver until `timeout` seconds are over.

        What is left then stays on the disk, where there is one, and else is dropped and counted.
        """
        self._flush()
        self._stopping.set()  # whoever waits for a retry tries again at once
        try:
            if self._tasks:
                async with asyncio.timeout(timeout):
                    await self._idle.wait()
        except TimeoutError:
            pass
        finally:  # whoever cancels the drain still gets true books
            await self._close_books()

    async def _close_books(self) -> None:
        self._pressure.leave(self)
        if self._tasks and self._queue.keeps:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_SEAL_SECONDS):
                    await self._sealed_up.wait()
        tasks, self._tasks = self._tasks, []
        await cancel(tasks)
        while self._under_way:
            _, taken = self._under_way.popitem()
            await self._queue.put_back(taken)
        left = sum(pending.count for pending in self._intake.flush(together=True))
        left += sum(pending.count for pending in self._unsealed)
        self._unsealed.clear()
        self._unsealed_bytes = 0
        left += await self._queue.close()
        if left:
            self.dropped(SHUTDOWN, left, "not delivered before shutdown_timeout")

    async def _seal_all(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._to_seal.wait()
            self._to_seal.clear()
            while self._unsealed:
                # It stays in the queue while the thread works, so a stop in between still counts it.
                pending = self._unsealed[0]
                try:
                    sealed = await loop.run_in_executor(self._executor, seal, pending, self._coding)
                except Exception as error:  # noqa: BLE001 - see _deliver
                    if self._popped(pending):
                        self.dropped(INTERNAL_ERROR, pending.count, f"{type(error).__name__}: {error}")
                    continue
                if self._popped(pending):
                    await self._queue.put(sealed)
                    self._to_send.set()
            self._look_around()

    def _popped(self, pending: Pending) -> bool:
        """Take out what was sealed; return False if it was dropped meanwhile."""
        if not (self._unsealed and self._unsealed[0] is pending):
            return False
        self._unsealed.popleft()
        self._unsealed_bytes -= pending.size
        return True

    async def _send_all(self) -> None:
        task = asyncio.current_task()
        while task:
            taken = await self._queue.take()
            if taken is None:
                self._to_send.clear()
                self._look_around()
                await self._to_send.wait()
                continue
            self._watch.filled(self.queued)
            self._under_way[task] = taken
            end = await self._deliver(taken.sealed)
            del self._under_way[task]
            await self._queue.done(taken, end)

    def _look_around(self) -> None:
        """See whether everything is sealed, and whether nothing is left at all."""
        if not self._unsealed:
            self._sealed_up.set()
            if not (self._queue.items or self._under_way):
                self._idle.set()

    async def _deliver(self, sealed: Sealed) -> End:
        loop = asyncio.get_running_loop()
        delivery = Delivery(self._retry, self._grace, loop.time())
        while True:
            try:
                outcome = await self._transport(sealed)
            except Exception as error:  # noqa: BLE001 - a fault of ours must cost this batch, not the queue
                outcome = Drop(INTERNAL_ERROR, f"{type(error).__name__}: {error}")
            verdict = delivery.decide(outcome, loop.time(), stopping=self._stopping.is_set())
            if isinstance(verdict, Delivered):
                return self._delivered(sealed, verdict)
            if isinstance(verdict, Drop):
                self.dropped(verdict.reason, sealed.count, verdict.detail)
                return End(dropped=sealed.count, reason=verdict.reason)
            await self._pause(verdict)

    async def _pause(self, again: Again) -> None:
        account = self._account
        self._telemetry.emit(DeliveryRetried(account.exporter, account.kind, again.reason, again.detail, again.delay))
        if self._stopping.is_set():
            await asyncio.sleep(again.delay)
            return
        try:
            async with asyncio.timeout(again.delay):
                await self._stopping.wait()
        except TimeoutError:
            pass

    # --- the books -------------------------------------------------------------------------------------------------

    def restored(self, items: int) -> None:
        """Accept what an earlier process left on the disk."""
        self._account.accepted += items
        self._account.restored += items
        self._idle.clear()

    def dropped(self, reason: str, items: int, detail: str) -> None:
        """Give items up, and say so."""
        account = self._account
        account.dropped[reason] += items
        account.ended()
        self._telemetry.emit(ItemsDropped(account.exporter, account.kind, reason, items, detail))

    def ready(self) -> None:
        """Look whether there is something to send."""
        self._to_send.set()

    def _delivered(self, sealed: Sealed, outcome: Delivered) -> End:
        account = self._account
        rejected = min(outcome.rejected, sealed.count)
        account.delivered += sealed.count - rejected
        if rejected:
            account.rejected["partial_success"] += rejected
        account.ended()
        if rejected:
            self._telemetry.emit(ItemsRejected(account.exporter, account.kind, rejected, outcome.message))
        elif outcome.message:
            self._telemetry.emit(DestinationWarned(account.exporter, account.kind, outcome.message))
        return End(delivered=sealed.count - rejected, rejected=rejected)

    def _measure(self) -> None:
        """Have the queue told among the agent's own metrics."""
        telemetry, labels = self._telemetry, {"exporter": self._account.exporter, "signal": self._account.kind}

        def oldest_age() -> float:
            oldest_ns = self.oldest_ns
            return max(0, telemetry.clock() - oldest_ns) / NANOSECONDS if oldest_ns else 0.0

        telemetry.gauge("stem_agent.exporter.queue.size", lambda: float(self.queued_bytes), **labels)
        if self._config.sizer == "bytes":  # the unit of both
            telemetry.gauge("stem_agent.exporter.queue.capacity", lambda: float(self._config.capacity), **labels)
        telemetry.gauge("stem_agent.exporter.queue.oldest_age", oldest_age, **labels)
