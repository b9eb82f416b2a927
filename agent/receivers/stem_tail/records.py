"""Reading the result records that are due, no more in a second than is allowed. The shell."""

from collections.abc import Callable

from asyncio_throttle.throttler import Throttler

from agent.core.clock import Clock
from agent.receivers.stem_tail.config import RecordsConfig
from agent.receivers.stem_tail.flights import Flights
from agent.stem.client.reader import RedisReader
from agent.stem.keys import Keys
from agent.stem.questions.records import read_records
from agent.stem.status import TaskStatus

Refuse = Callable[[str], None]


class RecordReader:
    """Reads records of tasks under way; `refuse` is told why one could not be read, without quoting it."""

    def __init__(self, config: RecordsConfig, reader: RedisReader, clock: Clock, refuse: Refuse) -> None:
        self._keys = Keys(config.namespace)
        self._reader = reader
        self._clock = clock
        self._refuse = refuse
        # One slot a batch, and as many batches in a period as make the rate exact.
        self._batch = min(config.batch, config.max_reads_per_second)
        batches = config.max_reads_per_second // self._batch
        self._throttle = Throttler(batches, period=batches * self._batch / config.max_reads_per_second)

    async def due(self, flights: Flights) -> list[TaskStatus]:
        """Return the records that are to be read now; raises what Redis raises, and then asks for all of them again."""
        found: list[TaskStatus] = []
        while ids := flights.due(self._clock(), self._batch):
            try:
                async with self._throttle:
                    records = await self._reader.answer(read_records(self._keys, ids))
            except BaseException:
                flights.again([*ids, *(record.id for record in found)], self._clock())
                raise
            flights.again((task_id for task_id in ids if task_id not in records), self._clock())
            found += [record for task_id, told in records.items() if (record := self._readable(flights, task_id, told))]
            if len(ids) < self._batch:
                break
        return found

    def _readable(self, flights: Flights, task_id: str, record: TaskStatus | str) -> TaskStatus | None:
        if isinstance(record, TaskStatus) and record.id == task_id:
            return record
        self._refuse(record if isinstance(record, str) else "another task's")
        flights.again([task_id], self._clock())
        return None
