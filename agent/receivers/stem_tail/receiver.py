"""The shell: reads streams and records while this agent leads, and hands on what they tell."""

import asyncio
import contextlib
from functools import partial
from zoneinfo import ZoneInfo

from agent.core.clock import NANOSECONDS, Clock
from agent.core.kept import KeptStateError
from agent.core.ownership import TASKS, Ownership
from agent.core.states import StateStore
from agent.core.status import Reports
from agent.core.tasks import cancel
from agent.receivers.stem_tail import events
from agent.receivers.stem_tail.config import StemTailConfig
from agent.receivers.stem_tail.flights import Flights
from agent.receivers.stem_tail.listener import SETTING, Listener, read_notifications, tells_of_writes
from agent.receivers.stem_tail.memory import Memory
from agent.receivers.stem_tail.notes import Notes
from agent.receivers.stem_tail.records import RecordReader
from agent.receivers.stem_tail.session import Session
from agent.settings.redis_tls import RedisTls
from agent.settings.types import RedisUrl
from agent.stem.client.reader import RedisReader, no_answer
from agent.stem.keys import Keys
from agent.stem.questions.deliveries import read_acknowledged
from agent.stem.questions.entries import Entries, read_entries
from agent.stem.questions.query import QueryRefusedError, read_clock
from agent.stem.status import TaskStatus
from agent.stem.wire import SignalConsumer
from agent.telemetry.events import FileUnusable, Telemetry

MOST_UNANSWERED = 500
MOST_PASSES = 20
"""Of the streams in one turn: a backlog is read in bites, so that records are read in between."""
_LAST_TURNS_SHARE = 0.3  # of the deadline of a stop: delivering what is held needs more
_MS_NS = 1_000_000
_HOW = f"CONFIG SET {SETTING} K$"


class StemTailReceiver:
    """Follows one fleet. Raises `StartupError` if a TLS file cannot be used.

    What is told is noted in `memory` for whoever follows.
    """

    def __init__(
        self,
        identity: str,
        config: StemTailConfig,
        tailed: SignalConsumer,
        telemetry: Telemetry,
        clock: Clock,
        reports: Reports,
        ownership: Ownership,
        memory: Memory,
    ) -> None:
        self._id = identity
        self._config = config
        self._tailed = tailed
        self._zone = ZoneInfo(config.assume_timezone)
        self._telemetry = telemetry
        self._clock = clock
        self._streams, self._records = reports.part("streams"), reports.part("records")
        self._ownership = ownership
        self._memory = memory
        self._totals = partial(tailed.totals, identity)
        self._broker = self._reader(config.url, config.tls)
        self._results = self._reader(*config.result_store)
        self._reading = RecordReader(config.results, self._results, clock, self._refused)
        self._keys = Keys(config.store_namespace)
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
                self._failed("clock", error, reader)
        await self._memory.open()
        self._tasks = [
            asyncio.create_task(self._follow(), name=f"{self._id}: follow"),
            asyncio.create_task(self._write(), name=f"{self._id}: notes"),
        ]

    async def stop(self, timeout: float) -> None:  # noqa: ASYNC109 - see Component
        """Stop; the leader reads everything once more. What is under way then is kept, or counted as dropped."""
        tasks, self._tasks = self._tasks, []
        await cancel([*tasks, *([self._listening] if self._listening else [])])
        self._listening = None
        session, self._session = self._session, None
        if tasks and session:
            await self._leave(session, timeout)
        self._ownership.withdraw(TASKS)
        for reader in (self._broker, self._results):
            await reader.close()

    def hand_over(self, store: StateStore) -> None:
        """Leave what is known to the receiver that follows in this process."""
        self._memory.hand_over(store)

    def take_over(self, store: StateStore) -> None:
        """Go on, when started, from what the receiver before left."""
        self._memory.take_over(store)

    async def _leave(self, session: Session, seconds: float) -> None:
        leads = self._ownership.leads(self._clock())
        if leads:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds * _LAST_TURNS_SHARE):
                    await self._last_turn(session)
            self._hand_on(session, everything=True)
            if not await self._kept(session, seconds) and (unended := session.flights.unended):
                self._telemetry.emit(events.TasksDropped(self._id, "shutdown", len(unended), unended[0]))
        self._tailed.give_up(self._id, told=leads)

    async def _kept(self, session: Session, seconds: float) -> bool:
        try:
            return await self._memory.leave(session, self._totals, self._clock(), seconds)
        except Exception as error:  # noqa: BLE001 - whoever follows goes on from the notes before
            self._failed("notes", error)
            return False

    async def _last_turn(self, session: Session) -> None:
        try:
            session.flights.at_once(self._clock())
            self._look_ns = 0
            await self._turn(session)
            await self._turn(session)  # what was found in the first
        except Exception as error:  # noqa: BLE001 - there is no later
            self._failed("streams and records", error)

    def _reader(self, url: RedisUrl, tls: RedisTls) -> RedisReader:
        return RedisReader(url, tls, timeout=self._config.timeout, on_failure=self._file_failed)

    def _file_failed(self, reason: str) -> None:
        self._telemetry.emit(FileUnusable(self._id, reason))

    def _refused(self, reason: str) -> None:
        self._telemetry.emit(events.RecordUnreadable(self._id, reason))

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
                await self._rest()
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
        """Begin where the leader, or the process, before stopped; else now."""
        begin_ms = await self._redis_ms()
        notes = await self._take_up()
        session = Session(self._config, begin_ms, notes, self._clock())
        self._telemetry.emit(events.TailBegins(self._id, "left" if notes else "now", len(session.flights)))
        for _ in range(2):  # first which queues there are, then how many dead letters they have before anything is told
            await self._look(session)
        if self._config.results.notifications == "auto":
            await self._listen(session)
        return session

    async def _take_up(self) -> Notes | None:
        notes = await self._memory.recall()
        try:
            self._tailed.take_up(self._id, notes.totals if notes else {})
        except KeptStateError as error:
            await self._memory.refuse(error)
            self._tailed.take_up(self._id, {})
            return None
        return notes

    async def _listen(self, session: Session) -> None:
        config = self._config
        setting = await self._results.answer(read_notifications())
        if setting is not None and not tells_of_writes(setting):
            address = self._results.url.address
            self._telemetry.emit(events.NotificationsOff(self._id, address, setting, _HOW))
            return
        listener = Listener(
            *config.result_store,
            Keys(config.results.namespace),
            timeout=config.timeout,
            on_change=lambda task_id: self._changed(session, task_id),
            on_listening=lambda: self._telemetry.emit(events.NotificationsOn(self._id, config.result_store[0].address)),
            on_failure=lambda error: self._failed("notifications", error, self._results),
            on_file=self._file_failed,
        )
        self._listening = asyncio.create_task(listener.run(), name=f"{self._id}: notifications")

    def _changed(self, session: Session, task_id: str) -> None:
        session.flights.changed(task_id, self._clock())
        self._wake.set()

    async def _rest(self) -> None:
        """Forget everything: another agent leads, and goes on from what was noted."""
        self._session = None
        if self._listening:
            await cancel([self._listening])
            self._listening = None
        self._tailed.give_up(self._id, told=False)
        self._streams.ok()
        self._records.ok()

    async def _turn(self, session: Session) -> None:
        """Read the records that are due, and then the streams: what a record answers was on its stream before."""
        if self._clock() >= self._look_ns:
            await self._look(session)
        records = await self._reading.due(session.flights)
        self._records.ok()
        try:
            for _ in range(MOST_PASSES):
                if not await self._read_streams(session):
                    break
        except BaseException:
            session.flights.again((record.id for record in records), self._clock())
            raise
        for record in records:
            self._take(session, record)
        self._tell_counts(session.flights)
        self._hand_on(session)
        self._read_ns = self._clock()
        await self._note(session)

    def _take(self, session: Session, record: TaskStatus) -> None:
        if session.recorded(record, self._clock()):  # who speaks for that worker is to be known soon
            self._look_ns = min(self._look_ns, self._clock() + NANOSECONDS)

    def _hand_on(self, session: Session, *, everything: bool = False) -> None:
        if self._ownership.leads(self._clock()):
            facts = list(session.ready(self._clock(), everything=everything))
            if facts:
                self._tailed.consume_tailed(self._id, facts, self._zone)

    async def _note(self, session: Session) -> None:
        if not self._ownership.leads(self._clock()):
            return
        self._memory.close(session, self._totals, self._clock())
        try:
            await self._memory.write()
        except Exception as error:  # noqa: BLE001 - the fleet is to be told of all the same
            self._failed("notes", error)

    async def _write(self) -> None:
        """Write notes as soon as what they speak of has arrived."""
        while True:
            await self._memory.delivered.wait()
            self._memory.delivered.clear()
            if self._session and self._ownership.leads(self._clock()):
                try:
                    await self._memory.write()
                except Exception as error:  # noqa: BLE001 - the next turn writes them
                    self._failed("notes", error)

    async def _look(self, session: Session) -> None:
        """Look for queues, workers, dead letters, and whom other agents hear."""
        self._look_ns = self._clock() + int(self._config.discovery_interval * NANOSECONDS)
        await self._redis_ms()
        fleet, positions = session.fleet, session.positions
        fleet.take_workers(await self._results.ask(*fleet.ask_workers()))
        places = session.flights.unanswered(self._clock(), MOST_UNANSWERED)
        *answers, done = await self._broker.ask(
            *fleet.ask_broker(positions.queues, claims=self._ownership.configured),
            read_acknowledged(self._keys, places),
        )
        for queue, letter in fleet.take_broker(answers):
            session.dead(queue, letter, self._clock())
        if fleet.answered(done, "what was acknowledged") and not isinstance(done, QueryRefusedError):
            session.acknowledged(done, self._clock())
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

    async def _read_streams(self, session: Session) -> bool:
        """Read a bite of each stream; return whether there is more."""
        positions = session.positions
        if not positions.at:
            return False
        entries = await self._broker.answer(read_entries(positions.at, self._config.max_entries))
        for entry in entries.found:
            if not session.entered(entry, self._clock()):
                self._telemetry.emit(events.EntryUndecodable(self._id, entry.stream, entry.entry))
        positions.passed(entries)
        self._note_lag(entries)
        return bool(entries.more)

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
        counts = flights.counts.copy()
        flights.counts.clear()
        for reason in ("max_tasks", "task_ttl"):
            if counts[reason]:
                self._telemetry.emit(events.TasksDropped(self._id, reason, counts[reason], flights.dropped))
        if counts["ambiguous"]:
            self._telemetry.emit(events.RecordAmbiguous(self._id, counts["ambiguous"]))
        if counts["hidden"]:
            self._telemetry.emit(events.RecordsHidden(self._id, counts["hidden"]))
        if counts["overlooked"]:
            self._telemetry.emit(events.AttemptsOverlooked(self._id, counts["overlooked"]))

    def _failed(self, subject: str, error: Exception, *readers: RedisReader) -> None:
        asked = readers or (self._broker, self._results)  # an error does not say which of them it came from
        servers = " or ".join(dict.fromkeys(reader.url.address for reader in asked))
        reason = no_answer(error)
        event = events.NotificationsFailed if subject == "notifications" else events.TailFailed
        self._telemetry.emit(event(self._id, servers, subject, reason))
        if subject == "notifications":
            self._records.degraded(f"no keyspace notifications from redis {servers}: {reason}")
        else:
            self._streams.recovering(f"failed to read {subject} from redis {servers}: {reason}")
