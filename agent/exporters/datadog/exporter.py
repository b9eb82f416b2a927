"""The exporter: what a source tells waits for the thread, and a later word of the same source takes its place."""

import asyncio
from concurrent.futures import ThreadPoolExecutor

from agent.core.ledger import Ledger
from agent.core.status import Reports
from agent.core.tasks import cancel
from agent.exporters.datadog.config import DatadogConfig
from agent.exporters.datadog.statsd import OUTPUT_FAILED, Writer
from agent.exporters.sending.events import ItemsDropped, SeriesTakenUp
from agent.otlp.batch import Batch
from agent.telemetry.events import Telemetry

SUPERSEDED = "superseded"
_SHUTDOWN = "shutdown"


class DatadogExporter:
    """Hands batches to a thread, one at a time; never waits for a socket."""

    def __init__(
        self, identity: str, config: DatadogConfig, ledger: Ledger, telemetry: Telemetry, reports: Reports
    ) -> None:
        self._id = identity
        self._config = config
        self._ledger = ledger
        self._telemetry = telemetry
        self._output = reports.part("output")
        self.writer = Writer(config, telemetry.clock())
        self._waiting: dict[tuple[str, bytes], Batch] = {}
        self._under_way: Batch | None = None
        self._to_write = asyncio.Event()
        self._idle = asyncio.Event()
        self._executor: ThreadPoolExecutor | None = None
        self._tasks: list[asyncio.Task[None]] = []

    def succeed(self, before: object) -> None:
        """Go on with the differences of the exporter whose place this one takes."""
        if isinstance(before, DatadogExporter):
            self.writer.succeed(before.writer)

    def consume(self, batch: Batch) -> None:
        """Take a batch. If the one before of the same source still waits, this one says everything that it said."""
        self._ledger.account(self._id, batch.kind).accepted += batch.count
        key = (batch.source, batch.resource.encoded)
        if before := self._waiting.pop(key, None):
            self._dropped(before, SUPERSEDED, before.count, "the agent takes less than it is told")
        self._waiting[key] = batch
        self._idle.clear()
        self._to_write.set()

    async def start(self) -> None:
        """Start the thread; whether anybody listens is found with the first batch."""
        self._executor = ThreadPoolExecutor(1, thread_name_prefix=f"{self._id}: write")
        self._tasks = [asyncio.create_task(self._write_all(self._executor), name=f"{self._id}: write")]

    async def stop(self, timeout: float) -> None:  # noqa: ASYNC109 - see Component
        """Write what waits, within `timeout` seconds; what is left then is dropped."""
        tasks, self._tasks = self._tasks, []
        try:
            if tasks and (self._waiting or self._under_way):
                async with asyncio.timeout(timeout):
                    await self._idle.wait()
        except TimeoutError:
            pass
        finally:  # whoever cancels the drain still gets true books
            await cancel(tasks)
            for batch in (*filter(None, [self._under_way]), *self._waiting.values()):
                self._dropped(batch, _SHUTDOWN, batch.count, "not written before shutdown_timeout")
            self._waiting, self._under_way = {}, None
            executor, self._executor = self._executor, None
            if executor:
                executor.submit(self.writer.close)
                executor.shutdown(wait=False)

    async def _write_all(self, executor: ThreadPoolExecutor) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._to_write.wait()
            self._to_write.clear()
            while self._waiting:
                batch = self._under_way = self._waiting.pop(next(iter(self._waiting)))
                unknown = self.writer.unknown
                try:
                    dropped = await loop.run_in_executor(executor, self.writer.write, batch)
                except Exception as error:  # noqa: BLE001 - a fault of ours must cost this batch, not the others
                    self._under_way = None
                    self._dropped(batch, "internal_error", batch.count, type(error).__name__)
                    continue
                self._under_way = None
                self._written(batch, dropped)
                if taken_up := self.writer.unknown - unknown:
                    self._telemetry.emit(SeriesTakenUp(self._id, taken_up))
            self._idle.set()

    def _written(self, batch: Batch, dropped: dict[str, int]) -> None:
        lost, account = sum(dropped.values()), self._ledger.account(self._id, batch.kind)
        account.delivered += batch.count - lost
        account.ended()
        failed = dropped.get(OUTPUT_FAILED, 0)
        failure = f"failed to write to {self._config.address}: {self.writer.failure}" if failed else ""
        for reason, count in dropped.items():
            if count:
                detail = failure if reason == OUTPUT_FAILED else "DogStatsD has no place for it"
                self._dropped(batch, reason, count, detail)
        if failed:
            self._output.recovering(failure)
        elif batch.items:
            self._output.ok()

    def _dropped(self, batch: Batch, reason: str, count: int, detail: str) -> None:
        if count:
            account = self._ledger.account(self._id, batch.kind)
            account.dropped[reason] += count
            account.ended()
            self._telemetry.emit(ItemsDropped(self._id, batch.kind, reason, count, detail))
