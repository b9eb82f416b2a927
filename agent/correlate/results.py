"""Reading Stem's result backend: the shell that asks what became of tasks, paced, and never more than it may hold."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from asyncio_throttle.throttler import Throttler

from agent.core.status import Reporter
from agent.correlate.counters import REPAIRS
from agent.correlate.results_config import ResultsConfig
from agent.stem.client.reader import RedisReader, no_answer
from agent.stem.keys import Keys
from agent.stem.questions.records import TOO_LARGE, read_records
from agent.stem.status import TaskStatus
from agent.telemetry.events import Event, FileUnusable, Telemetry


@dataclass(frozen=True, slots=True)
class ResultsUnavailable(Event):
    """The result backend could not be asked; `tasks` is how many it should have told about."""

    connector: str
    redis: str
    reason: str
    tasks: int

    phrase: ClassVar[str] = "failed to read result records; lost signals are not repaired meanwhile"
    counter: ClassVar[str | None] = REPAIRS
    constant: ClassVar[tuple[tuple[str, str], ...]] = (("result", "unavailable"),)
    amount_in: ClassVar[str] = "tasks"


@dataclass(frozen=True, slots=True)
class ResultUnreadable(Event):
    """A record is not what Stem writes, or too large to be fetched; `detail` says what, and never quotes it."""

    connector: str
    result: str
    detail: str

    phrase: ClassVar[str] = "result record cannot be read"
    counter: ClassVar[str | None] = REPAIRS
    labels: ClassVar[tuple[str, ...]] = ("result",)


class ResultReader:
    """Reads result records on a connection of its own, which is made when it is first needed.

    Raises `StartupError` if a TLS file cannot be used. What cannot be asked is told by an event and never raised.
    """

    def __init__(self, config: ResultsConfig, identity: str, telemetry: Telemetry, status: Reporter) -> None:
        self._id = identity
        self._config = config
        self._telemetry = telemetry
        self._status = status
        self._keys = Keys(config.namespace)
        self._batch = min(config.batch, config.max_reads_per_second)
        # One slot a batch, and as many batches in a period as make the rate exact.
        batches = config.max_reads_per_second // self._batch
        self._throttle = Throttler(batches, period=batches * self._batch / config.max_reads_per_second)
        self._redis = RedisReader(
            config.url,
            config.tls,
            timeout=config.timeout,
            on_failure=lambda reason: telemetry.emit(FileUnusable(identity, reason)),
        )

    async def read(self, task_ids: Sequence[str]) -> dict[str, TaskStatus | None] | None:
        """Return the status of each task, None for those without a readable record.

        Returns None if Redis could not be asked about all of them.
        """
        found: dict[str, TaskStatus | None] = {}
        for start in range(0, len(task_ids), self._batch):
            batch = task_ids[start : start + self._batch]
            try:
                async with self._throttle:
                    records = await self._redis.answer(read_records(self._keys, batch))
            except Exception as error:  # noqa: BLE001 - whatever it was, whoever repairs must go on
                self._unavailable(error, len(task_ids) - start)
                return None
            self._status.ok()
            found |= {task_id: self._readable(records.get(task_id)) for task_id in batch}
        return found

    async def close(self) -> None:
        """Close the connection; a later read would make a new one."""
        await self._redis.close()

    def _readable(self, record: TaskStatus | str | None) -> TaskStatus | None:
        if not isinstance(record, str):
            return record
        result = "oversize" if record == TOO_LARGE else "undecodable"
        self._telemetry.emit(ResultUnreadable(self._id, result, record))
        return None

    def _unavailable(self, error: Exception, tasks: int) -> None:
        reason = no_answer(error)
        self._status.degraded(f"failed to read result records from {self._config.url.address}: {reason}")
        self._telemetry.emit(ResultsUnavailable(self._id, self._config.url.address, reason, tasks))
