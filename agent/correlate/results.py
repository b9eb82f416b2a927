"""Reading Stem's result backend: the shell that asks what became of tasks, paced, and never more than it may hold."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from asyncio_throttle.throttler import Throttler

from agent.core.status import Reporter
from agent.correlate.counters import REPAIRS
from agent.correlate.results_config import ResultsConfig
from agent.redis_client import failure, redis_client
from agent.stem.keys import Keys
from agent.stem.lenient import DecodeError
from agent.stem.status import TaskStatus, decode_status
from agent.telemetry.events import Event, FileUnusable, Telemetry

if TYPE_CHECKING:
    from redis.asyncio import Redis

MAX_RECORD_BYTES = 1 << 20
"""A record holds what its task returned, which may be large; what is larger than this is not fetched at all.

That takes asking for the length first: 12 us of CPU a record instead of 2, measured on batches of 100. At 500 records a
second that is half a percent of a core, and a batch of large results can never fill the agent's memory.
"""


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

    @property
    def amount(self) -> int:
        """How many tasks were not asked for."""
        return self.tasks


@dataclass(frozen=True, slots=True)
class ResultUndecodable(Event):
    """A record is not what Stem writes; `detail` names what is wrong with it, and never quotes it."""

    connector: str
    detail: str

    phrase: ClassVar[str] = "result record could not be decoded"
    counter: ClassVar[str | None] = REPAIRS
    constant: ClassVar[tuple[tuple[str, str], ...]] = (("result", "undecodable"),)


@dataclass(frozen=True, slots=True)
class ResultOversize(Event):
    """A record is too large to be fetched."""

    connector: str
    size: int
    limit: int

    phrase: ClassVar[str] = "result record is too large to be read"
    counter: ClassVar[str | None] = REPAIRS
    constant: ClassVar[tuple[tuple[str, str], ...]] = (("result", "oversize"),)


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
        self._redis: Redis | None = None
        if config.url.tls:
            config.tls.context()  # a file that cannot be used is to be told at the start

    async def read(self, task_ids: Sequence[str]) -> dict[str, TaskStatus | None] | None:
        """Return the status of each task, None for those without a readable record.

        Returns None if Redis could not be asked about all of them.
        """
        found: dict[str, TaskStatus | None] = {}
        for start in range(0, len(task_ids), self._batch):
            batch = task_ids[start : start + self._batch]
            try:
                async with self._throttle:
                    records = await self._fetch([self._keys.result(task_id) for task_id in batch])
            except Exception as error:  # noqa: BLE001 - whatever it was, whoever repairs must go on
                self._unavailable(error, len(task_ids) - start)
                return None
            self._status.ok()
            found |= {task_id: self._decode(record) for task_id, record in zip(batch, records, strict=True)}
        return found

    async def close(self) -> None:
        """Close the connection; a later read would make a new one."""
        if self._redis is not None:
            await self._redis.aclose()

    @property
    def _client(self) -> "Redis":
        """Made when it is first needed: redis-py is 11 MiB that an agent which loses nothing does without."""
        if self._redis is None:
            self._redis = redis_client(
                self._config.url,
                self._config.tls,
                timeout=self._config.timeout,
                on_failure=lambda reason: self._telemetry.emit(FileUnusable(self._id, reason)),
            )
        return self._redis

    async def _fetch(self, keys: Sequence[str]) -> list[bytes | None]:
        """Return the records that are there and not too large. Raises what redis-py raises."""
        pipeline = self._client.pipeline(transaction=False)
        for key in keys:
            pipeline.strlen(key)
        sizes = dict(zip(keys, await pipeline.execute(raise_on_error=False), strict=True))
        wanted = [key for key, size in sizes.items() if self._is_wanted(size)]
        records: list[Any] = await self._client.mget(wanted) if wanted else []
        values = dict(zip(wanted, records, strict=True))
        return [values.get(key) for key in keys]

    def _is_wanted(self, size: int | Exception) -> bool:
        if isinstance(size, Exception) and str(size).startswith("WRONGTYPE"):
            self._telemetry.emit(ResultUndecodable(self._id, "not_a_string"))
            return False
        if isinstance(size, Exception):
            raise size
        if size > MAX_RECORD_BYTES:
            self._telemetry.emit(ResultOversize(self._id, size, MAX_RECORD_BYTES))
            return False
        return size > 0

    def _decode(self, record: bytes | None) -> TaskStatus | None:
        if record is None:
            return None
        try:
            return decode_status(record)
        except DecodeError as error:
            self._telemetry.emit(ResultUndecodable(self._id, error.reason))
            return None

    def _unavailable(self, error: Exception, tasks: int) -> None:
        reason = failure(error)
        self._status.degraded(f"failed to read result records from {self._config.url.address}: {reason}")
        self._telemetry.emit(ResultsUnavailable(self._id, self._config.url.address, reason, tasks))
