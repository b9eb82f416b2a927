"""The queue of one exporter and one kind of telemetry, and the tasks that empty it."""

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import ClassVar

from agent.core.ledger import Account
from agent.core.tasks import cancel
from agent.exporters.sending.batcher import Batcher, Pending
from agent.exporters.sending.config import QueueConfig, RetryConfig
from agent.exporters.sending.delivery import Again, Delivery, Grace
from agent.exporters.sending.outcome import Delivered, Drop, Outcome
from agent.exporters.sending.sealed import Compress, Sealed, seal
from agent.otlp.batch import Batch
from agent.telemetry.events import Event, Telemetry

Transport = Callable[[Sealed], Awaitable[Outcome]]
"""One attempt to deliver; never raises for what a network or server does."""

QUEUE_OVERFLOW = "queue_overflow"
SHUTDOWN = "shutdown"
INTERNAL_ERROR = "internal_error"


@dataclass(frozen=True, slots=True)
class DeliveryRetried(Event):
    """The destination could not take a batch now."""

    exporter: str
    signal: str
    reason: str
    detail: str
    retry_in: float

    phrase: ClassVar[str] = "delivery failed; will retry"
    counter: ClassVar[str | None] = "stem_agent.exporter.retries"
    labels: ClassVar[tuple[str, ...]] = ("exporter", "signal", "reason")


@dataclass(frozen=True, slots=True)
class ItemsDropped(Event):
    """Accepted items will never arrive."""

    exporter: str
    signal: str
    reason: str
    items: int
    detail: str

    phrase: ClassVar[str] = "dropped telemetry"
    level: ClassVar[int] = logging.ERROR
    labels: ClassVar[tuple[str, ...]] = ("exporter", "signal", "reason")


@dataclass(frozen=True, slots=True)
class ItemsRejected(Event):
    """The destination took the request but refused some of its items."""

    exporter: str
    signal: str
    items: int
    detail: str

    phrase: ClassVar[str] = "destination rejected items"
    level: ClassVar[int] = logging.ERROR
    labels: ClassVar[tuple[str, ...]] = ("exporter", "signal")


@dataclass(frozen=True, slots=True)
class DestinationWarned(Event):
    """The destination accepted everything, with a message."""

    exporter: str
    signal: str
    detail: str

    phrase: ClassVar[str] = "destination accepted with a warning"
    labels: ClassVar[tuple[str, ...]] = ("exporter", "signal")


class Sender:
    """Batches, seals, holds and delivers the items of one account.

    What is held never exceeds `queue_size` bytes: the oldest batch that is not under way is dropped and counted.
    """

    def __init__(
        self,
        *,
        queue: QueueConfig,
        retry: RetryConfig,
        compress: Compress,
        transport: Transport,
        account: Account,
        telemetry: Telemetry,
        executor: Executor,
        auth_grace: float = 0.0,
    ) -> None:
        self._queue = queue
        self._retry = retry
        self._compress = compress
        self._transport = transport
        self._account = account
        self._telemetry = telemetry
        self._executor = executor
        self._grace = Grace(auth_grace)
        self._batcher = Batcher(max_items=queue.batch.max_items, max_bytes=queue.batch.max_bytes)
        self._unsealed: deque[Pending] = deque()
        self._sealed: deque[Sealed] = deque()
        self._bytes = 0  # of unsealed and sealed batches; what is pending or under way is bounded by its own limits
        self._to_seal = asyncio.Event()
        self._to_send = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._stopping = asyncio.Event()
        self._flush_timer: asyncio.TimerHandle | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._under_way: dict[asyncio.Task[None], Sealed] = {}

    @property
    def name(self) -> str:
        """For messages and tasks: exporter and kind."""
        return f"{self._account.exporter}: {self._account.kind}"

    @property
    def queued_bytes(self) -> int:
        """Bytes of closed batches that wait."""
        return self._bytes

    @property
    def held(self) -> int:
        """Items counted where they are: pending, waiting, under way. The account's `held` must say the same."""
        count = self._batcher.pending.count + sum(pending.count for pending in self._unsealed)
        return count + sum(batch.count for batch in (*self._sealed, *self._under_way.values()))

    # --- in --------------------------------------------------------------------------------------------------------

    def consume(self, batch: Batch) -> None:
        """Accept a batch; never waits."""
        self._account.accepted += batch.count
        for full in self._batcher.add(batch):
            self._close(full)
        if self._batcher.pending.count and self._flush_timer is None:
            loop = asyncio.get_running_loop()
            self._flush_timer = loop.call_later(self._queue.batch.flush_timeout, self._flush)

    def _flush(self) -> None:
        if self._flush_timer:
            self._flush_timer.cancel()
            self._flush_timer = None
        if self._batcher.pending.count:
            self._close(self._batcher.flush())

    def _close(self, pending: Pending) -> None:
        self._unsealed.append(pending)
        self._bytes += pending.size
        self._make_room()
        self._idle.clear()
        self._to_seal.set()

    def _make_room(self) -> None:
        while self._bytes > self._queue.queue_size and (self._sealed or len(self._unsealed) > 1):
            if self._sealed:
                count, size = (oldest := self._sealed.popleft()).count, len(oldest.body)
            else:
                count, size = (waiting := self._unsealed.popleft()).count, waiting.size
            self._bytes -= size
            self._drop(QUEUE_OVERFLOW, count, f"queue_size of {self._queue.queue_size} bytes reached")

    # --- out -------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Start sealing and sending."""
        self._stopping.clear()
        self._tasks = [asyncio.create_task(self._seal_all(), name=f"{self.name}: seal")]
        self._tasks += [
            asyncio.create_task(self._send_all(), name=f"{self.name}: send {index}")
            for index in range(self._queue.num_consumers)
        ]

    async def stop(self, timeout: float) -> None:  # noqa: ASYNC109 - see Component
        """Close the pending batch, deliver until `timeout` seconds are over, drop and count what is left."""
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
        tasks, self._tasks = self._tasks, []
        await cancel(tasks)
        left = self.held
        self._unsealed.clear()
        self._sealed.clear()
        self._under_way.clear()
        self._bytes = 0
        if left:
            self._drop(SHUTDOWN, left, "not delivered before shutdown_timeout")

    async def _seal_all(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._to_seal.wait()
            self._to_seal.clear()
            while self._unsealed:
                # It stays in the queue while the thread works, so a stop in between still counts it.
                pending = self._unsealed[0]
                try:
                    sealed = await loop.run_in_executor(self._executor, seal, pending, self._compress)
                except Exception as error:  # noqa: BLE001 - see _deliver
                    if self._unsealed and self._unsealed[0] is pending:
                        self._unsealed.popleft()
                        self._bytes -= pending.size
                        self._drop(INTERNAL_ERROR, pending.count, f"{type(error).__name__}: {error}")
                    self._check_idle()
                    continue
                if self._unsealed and self._unsealed[0] is pending:  # else it was dropped meanwhile
                    self._unsealed.popleft()
                    self._sealed.append(sealed)
                    self._bytes += len(sealed.body) - pending.size
                    self._to_send.set()

    async def _send_all(self) -> None:
        task = asyncio.current_task()
        while True:
            while not self._sealed:
                self._to_send.clear()
                self._check_idle()
                await self._to_send.wait()
            sealed = self._sealed.popleft()
            self._bytes -= len(sealed.body)
            if task:
                self._under_way[task] = sealed
            await self._deliver(sealed)
            if task:
                del self._under_way[task]

    def _check_idle(self) -> None:
        if not (self._sealed or self._unsealed or self._under_way):
            self._idle.set()

    async def _deliver(self, sealed: Sealed) -> None:
        loop = asyncio.get_running_loop()
        delivery = Delivery(self._retry, self._grace, loop.time())
        while True:
            try:
                outcome = await self._transport(sealed)
            except Exception as error:  # noqa: BLE001 - a fault of ours must cost this batch, not the queue
                outcome = Drop(INTERNAL_ERROR, f"{type(error).__name__}: {error}")
            verdict = delivery.decide(outcome, loop.time(), stopping=self._stopping.is_set())
            if isinstance(verdict, Delivered):
                self._delivered(sealed, verdict)
                return
            if isinstance(verdict, Drop):
                self._drop(verdict.reason, sealed.count, verdict.detail)
                return
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

    def _delivered(self, sealed: Sealed, outcome: Delivered) -> None:
        account = self._account
        rejected = min(outcome.rejected, sealed.count)
        account.delivered += sealed.count - rejected
        if rejected:
            account.rejected["partial_success"] += rejected
            self._telemetry.emit(ItemsRejected(account.exporter, account.kind, rejected, outcome.message))
        elif outcome.message:
            self._telemetry.emit(DestinationWarned(account.exporter, account.kind, outcome.message))

    def _drop(self, reason: str, count: int, detail: str) -> None:
        account = self._account
        account.dropped[reason] += count
        self._telemetry.emit(ItemsDropped(account.exporter, account.kind, reason, count, detail))
