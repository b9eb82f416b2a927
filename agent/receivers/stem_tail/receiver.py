"""The shell: reads streams and records while this agent leads, and hands on what they tell."""

import asyncio
import contextlib
from zoneinfo import ZoneInfo

from asyncio_throttle.throttler import Throttler

from agent.core.clock import NANOSECONDS, Clock
from agent.core.ownership import TASKS, Ownership
from agent.core.states import StateStore
from agent.core.status import Reports
from agent.core.tasks import cancel
from agent.receivers.stem_tail import events, state
from agent.receivers.stem_tail.config import StemTailConfig
from agent.receivers.stem_tail.fleet import FleetWatch
from agent.receivers.stem_tail.flights import Flights, Pace, Told
from agent.receivers.stem_tail.listener import SETTING, Listener, read_notifications, tells_of_writes
from agent.receivers.stem_tail.positions import Positions
from agent.settings.redis_tls import RedisTls
from agent.settings.types import RedisUrl
from agent.stem.client.reader import RedisReader, no_answer
from agent.stem.keys import Keys
from agent.stem.questions.entries import Entries, Entry, read_entries
from agent.stem.questions.query import QueryRefusedError, read_clock
from agent.stem.questions.records import read_records
from agent.stem.status import TaskStatus
from agent.stem.wire import Enqueued, Recorded, TailConsumer, Tailed
from agent.telemetry.events import FileUnusable, Telemetry
from agent.telemetry.keeping import Keeping

MOST_PASSES = 20
"""Of the streams in one turn: a backlog is read in bites, so that records are read in between."""
_LAST_TURNS_SHARE = 0.3  # of the deadline of a stop: delivering what is held needs more
_MS_NS = 1_000_000
_HOW = f"CONFIG SET {SETTING} K$"


class Session:
    """What is known from when this agent began to lead, or from where the process before it stopped."""

    def __init__(self, config: StemTailConfig, begin_ms: int) -> None:
        results = config.results
        pace = Pace(
            young_ns=int(results.young * NANOSECONDS),
            old_ns=int(results.old * NANOSECONDS),
            most=config.max_tasks,
            ttl_ns=int(config.task_ttl * NANOSECONDS),
            claim_ns=int(config.claim_interval * NANOSECONDS),
        )
        keys = Keys(config.store_namespace)
        self.positions = Positions(keys, config.max_queues, begin_ms)
        self.positions.follow(config.queues)
        self.flights = Flights(pace, ZoneInfo(config.assume_timezone), begin_ms)
        self.fleet = FleetWatch(config)

    @classmethod
    def of(cls, config: StemTailConfig, known: state.State, now_ns: int) -> "Session":
        """Return one that goes on from a state."""
        session = cls(config, known.begin_ms)
        session.positions.follow(known.queues)
        session.positions.at |= {stream: at for stream, at in known.at.items() if stream in session.positions.at}
        session.flights.restore(known.flights, now_ns)
        return session


class StemTailReceiver:
    """Follows one fleet. Raises `StartupError` if a TLS file cannot be used."""

    def __init__(
        self,
        identity: str,
        config: StemTailConfig,
        tailed: TailConsumer,
        telemetry: Telemetry,
        clock: Clock,
        reports: Reports,
        ownership: Ownership,
        store: StateStore | None = None,
    ) -> None:
        self._id = identity
        self._config = config
        self._tailed = tailed
        self._zone = ZoneInfo(config.assume_timezone)
        self._telemetry = telemetry
        self._clock = clock
        self._streams, self._records = reports.part("streams"), reports.part("records")
        self._ownership = ownership
        self._keeping = Keeping(store, f"receivers/{identity}", identity, telemetry) if store else None
        self._known: state.State | None = None
        self._broker = self._reader(config.url, config.tls)
        self._results = self._reader(config.results.url, config.results.tls)
        # One slot a batch, and as many batches in a period as make the rate exact.
        self._batch = min(config.results.batch, config.results.max_reads_per_second)
        batches = config.results.max_reads_per_second // self._batch
        period = batches * self._batch / config.results.max_reads_per_second
        self._throttle = Throttler(batches, period=period)
        self._session: Session | None = None
        self._look_ns = 0
        self._read_ns = 0
        self._behind_s = 0.0
        self._offset_ms = 0
        self._wake = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._listening: asyncio.Task[None] | None = None
        ownership.stand(TASKS)
        ownership.on_change(self._wake.set)
        telemetry.gauge("stem_agent.tail.lag", self._lag_s, receiver=identity)
        telemetry.gauge("stem_agent.tail.tasks", lambda: float(len(self._flights or ())), receiver=identity)

    # --- life --------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Connect once, then follow the fleet in the background.

        Raises `StartupError` if a server refuses for a reason that will not heal; one that is away is tried again.
        """
        for reader in (self._broker, self._results):
            if error := await reader.greet(self._id):
                self._failed("clock", error)
        if self._keeping:
            self._known = await self._keeping.take(state.restore)
        self._tasks = [asyncio.create_task(self._follow(), name=f"{self._id}: follow")]

    async def stop(self, timeout: float) -> None:  # noqa: ASYNC109 - see Component
        """Stop; the leader reads everything once more. What is under way then is kept, or counted as dropped."""
        tasks, self._tasks = self._tasks, []
        await cancel([*tasks, *([self._listening] if self._listening else [])])
        self._listening = None
        if tasks and self._session and self._ownership.leads(self._clock()):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout * _LAST_TURNS_SHARE):
                    await self._last_turn(self._session)
        session, self._session = self._session, None
        kept = state.snapshot(session.positions, session.flights) if session and self._keeping else None
        if session and not (self._keeping and kept and await self._keeping.put(kept, timeout)):
            self._dropped(session.flights, "shutdown")
        self._ownership.withdraw(TASKS)
        for reader in (self._broker, self._results):
            await reader.close()

    async def _last_turn(self, session: Session) -> None:
        try:
            session.flights.at_once(self._clock())
            await self._turn(session)
            await self._turn(session)  # what was found in the first
        except Exception as error:  # noqa: BLE001 - there is no later
            self._failed("streams and records", error)

    def _reader(self, url: RedisUrl, tls: RedisTls) -> RedisReader:
        return RedisReader(url, tls, timeout=self._config.timeout, on_failure=self._file_failed)

    def _file_failed(self, reason: str) -> None:
        self._telemetry.emit(FileUnusable(self._id, reason))

    # --- following ---------------------------------------------------------------------------------------------------

    async def _follow(self) -> None:
        while True:
            self._wake.clear()
            if self._ownership.leads(self._clock()):
                try:
                    session = self._session = self._session or await self._begin()
                    await self._turn(session)
                except Exception as error:  # noqa: BLE001 - positions stay where they are, so nothing is passed over
                    self._failed("streams and records", error)
                    await asyncio.sleep(self._config.interval)
            elif self._session:
                await self._rest(self._session)
            await self._pause()

    async def _pause(self) -> None:
        """Wait until something is due, or a notification or a change of leadership says that it is."""
        results, wait_s = self._config.results, self._config.interval
        next_ns = self._flights.next_ns() if self._flights else None
        if next_ns is not None:
            wait_s = min(wait_s, max((next_ns - self._clock()) / NANOSECONDS, results.young / 2))
        await asyncio.sleep(min(wait_s, results.young / 4))  # together is cheaper than one by one
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                await self._wake.wait()

    async def _begin(self) -> Session:
        """Begin where the process before stopped, or now."""
        begin_ms = await self._redis_ms()
        known = self._known
        session = Session.of(self._config, known, self._clock()) if known else Session(self._config, begin_ms)
        self._look_ns = 0
        if self._config.results.notifications == "auto":
            await self._listen(session)
        self._known = None
        return session

    async def _listen(self, session: Session) -> None:
        config = self._config
        setting = await self._results.answer(read_notifications())
        if setting is not None and not tells_of_writes(setting):
            address = config.results.url.address
            self._telemetry.emit(events.NotificationsOff(self._id, address, setting, _HOW))
            return
        listener = Listener(
            config.results.url,
            config.results.tls,
            Keys(config.results.namespace),
            timeout=config.timeout,
            on_change=lambda task_id: self._changed(session, task_id),
            on_failure=lambda error: self._failed("notifications", error),
            on_file=self._file_failed,
        )
        self._listening = asyncio.create_task(listener.run(), name=f"{self._id}: notifications")

    def _changed(self, session: Session, task_id: str) -> None:
        session.flights.changed(task_id, self._clock())
        self._wake.set()

    async def _rest(self, session: Session) -> None:
        """Forget everything: another agent leads, and begins from when it did."""
        self._session = None
        if self._listening:
            await cancel([self._listening])
            self._listening = None
        self._dropped(session.flights, "lost_leadership")

    async def _turn(self, session: Session) -> None:
        """Read the records that are due, and then the streams: what a record answers was on its stream before."""
        if self._clock() >= self._look_ns:
            await self._look(session)
        records = await self._due_records(session.flights)
        facts: list[Tailed] = []
        try:
            for _ in range(MOST_PASSES):
                if not await self._read_streams(session, facts):
                    break
        except BaseException:
            session.flights.again((record.id for record in records), self._clock())
            self._hand_on(facts)  # what was read is not read again
            raise
        told = (session.flights.told(record, self._clock()) for record in records)
        facts += [self._recorded(session, each) for each in told if each]
        self._tell_counts(session.flights)
        self._hand_on(facts)
        self._read_ns = self._clock()

    def _hand_on(self, facts: list[Tailed]) -> None:
        if facts and self._ownership.leads(self._clock()):
            self._tailed.consume_tailed(facts, self._zone)

    async def _look(self, session: Session) -> None:
        """Look for queues, workers, dead letters and the claims of other agents."""
        self._look_ns = self._clock() + int(self._config.discovery_interval * NANOSECONDS)
        await self._redis_ms()
        fleet, positions = session.fleet, session.positions
        fleet.take_workers(await self._results.ask(*fleet.ask_workers()))
        answers = await self._broker.ask(*fleet.ask_broker(positions.queues, claims=self._ownership.configured))
        for task_id in fleet.take_broker(answers):
            session.flights.dead(task_id)
        if not self._config.queues:
            positions.follow(sorted(fleet.queues))
        troubles = list(fleet.troubles)
        if positions.left_out:
            troubles.append(f"{len(positions.left_out)} queues not followed: there are more than max_queues")
        if troubles:
            self._streams.degraded("; ".join(troubles))
        else:
            self._streams.ok()

    async def _redis_ms(self) -> int:
        """Return the broker's time; one that may not tell its own is taken to have ours."""
        (time,) = await self._broker.ask(read_clock())
        ours = self._clock() // _MS_NS
        self._offset_ms = 0 if isinstance(time, QueryRefusedError) else time - ours
        return ours + self._offset_ms

    async def _due_records(self, flights: Flights) -> list[TaskStatus]:
        found: list[TaskStatus] = []
        while ids := flights.due(self._clock(), self._batch):
            try:
                async with self._throttle:
                    records = await self._results.answer(read_records(Keys(self._config.results.namespace), ids))
            except BaseException:
                flights.again([*ids, *(record.id for record in found)], self._clock())
                raise
            flights.again((task_id for task_id in ids if task_id not in records), self._clock())
            found += [record for task_id, told in records.items() if (record := self._readable(flights, task_id, told))]
            if len(ids) < self._batch:
                break
        self._records.ok()
        return found

    def _readable(self, flights: Flights, task_id: str, record: TaskStatus | str) -> TaskStatus | None:
        if isinstance(record, TaskStatus) and record.id == task_id:
            return record
        reason = record if isinstance(record, str) else "another task's"
        self._telemetry.emit(events.RecordUnreadable(self._id, reason))
        flights.again([task_id], self._clock())
        return None

    async def _read_streams(self, session: Session, facts: list[Tailed]) -> bool:
        """Read a bite of each stream; return whether there is more."""
        positions = session.positions
        if not positions.at:
            return False
        entries = await self._broker.answer(read_entries(positions.at, self._config.max_entries))
        facts += [fact for entry in entries.found if (fact := self._enqueued(session, entry))]
        positions.passed(entries)
        self._note_lag(entries)
        return bool(entries.more)

    def _enqueued(self, session: Session, entry: Entry) -> Enqueued | None:
        if entry.envelope is None:
            self._telemetry.emit(events.EntryUndecodable(self._id, entry.stream, entry.entry))
            return None
        published = session.flights.entered(entry.envelope, entry.ready_ms, self._clock())
        queue = entry.envelope.queue or session.positions.queue_of(entry.stream)
        return Enqueued(self._config.namespace, queue, entry.envelope, entry.ready_ms * _MS_NS, published)

    def _recorded(self, session: Session, told: Told) -> Recorded:
        worker = told.record.worker
        namespace, claimed = session.fleet.namespace_of(worker), session.fleet.is_claimed(worker)
        return Recorded(namespace, told.record, told.envelope, claimed)

    # --- telling how it is -------------------------------------------------------------------------------------------

    @property
    def _flights(self) -> Flights | None:
        return self._session.flights if self._session else None

    def _note_lag(self, entries: Entries) -> None:
        if not entries.more:
            self._behind_s = 0.0
            return
        last = {entry.stream: entry.ready_ms for entry in entries.found}
        oldest_ms = min(last[stream] for stream in entries.more)
        self._behind_s = max(0.0, (self._clock() // _MS_NS + self._offset_ms - oldest_ms) / 1000)

    def _lag_s(self) -> float:
        """Return how far behind the fleet we are: in its streams, in its records, or altogether (seconds)."""
        flights, now_ns = self._flights, self._clock()
        if flights is None or not self._read_ns:
            return 0.0
        next_ns = flights.next_ns()
        late_ns = max(0, now_ns - next_ns) if next_ns is not None else 0
        silent_ns = max(0, now_ns - self._read_ns - int(self._config.interval * NANOSECONDS))
        return max(self._behind_s, late_ns / NANOSECONDS, silent_ns / NANOSECONDS)

    def _tell_counts(self, flights: Flights) -> None:
        counts, flights.counts = flights.counts, type(flights.counts)()
        for reason in ("max_tasks", "task_ttl"):
            if counts[reason]:
                self._telemetry.emit(events.TasksDropped(self._id, reason, counts[reason]))
        if counts["ambiguous"]:
            self._telemetry.emit(events.RecordAmbiguous(self._id, counts["ambiguous"]))
        if counts["overlooked"]:
            self._telemetry.emit(events.AttemptsOverlooked(self._id, counts["overlooked"]))

    def _dropped(self, flights: Flights, reason: str) -> None:
        if len(flights):
            self._telemetry.emit(events.TasksDropped(self._id, reason, len(flights)))

    def _failed(self, subject: str, error: Exception) -> None:
        url = (self._results if subject == "notifications" else self._broker).url
        reason = no_answer(error)
        self._telemetry.emit(events.TailFailed(self._id, url.address, subject, reason))
        if subject == "notifications":
            self._records.degraded(f"no keyspace notifications from redis {url.address}: {reason}")
        else:
            self._streams.recovering(f"failed to read {subject} from redis {url.address}: {reason}")
