"""The shell: asks the stores every `interval` while this agent leads, and hands on what they answered."""

import asyncio
import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from zoneinfo import ZoneInfo

from asyncio_throttle.throttler import Throttler

from agent.core.clock import NANOSECONDS, Clock
from agent.core.kept import KeptStateError
from agent.core.ownership import LETTERS, SCHEDULES, WORKERS, Ownership
from agent.core.pressure import Priority
from agent.core.status import Reports
from agent.core.tasks import cancel
from agent.otlp.batch import Batch, Consumer, Kind
from agent.otlp.resource import Resource
from agent.receivers.stem_state import events, notes
from agent.receivers.stem_state.config import StemStateConfig
from agent.receivers.stem_state.search import Search
from agent.receivers.stem_state.store import Store, Told
from agent.receivers.stem_state.subjects import Subjects
from agent.settings.redis_tls import RedisTls
from agent.settings.types import RedisUrl
from agent.stem.client.reader import RedisReader, no_answer
from agent.stem.keys import Keys
from agent.stem.wire import LostAttempt, SignalConsumer
from agent.telemetry.events import FileUnusable, Telemetry

MOST_ROUND_TRIPS = 3
"""To each server in an interval, however many queues and workers there are."""
_NOT_OURS = "not read: this agent does not lead"
_LAST_TURN_SHARE = 0.2  # of the deadline of a stop: delivering what is held needs more


@dataclass(frozen=True, slots=True)
class FleetMetrics:
    """Where the metrics go, and whose they are: the fleet's, whichever agent tells them. `source` is the receiver."""

    consumer: Consumer
    resource: Resource
    source: str

    def tell(self, told: Sequence[Told]) -> None:
        """Hand on what all stores told, as one batch; nothing while none of them answers."""
        items = [item for each in told for item in each.items]
        counts = [count for each in told for count in each.counts]
        if items:
            self.consumer.consume(self._batch(items, counts))

    def end(self) -> None:
        """Say that what was told has ended here: another agent goes on with it."""
        self.consumer.consume(self._batch([], []))

    def _batch(self, items: Sequence[bytes], counts: Sequence[int]) -> Batch:
        return Batch(Kind.METRICS, self.resource, items, sum(counts), 0, Priority.METRICS, counts, self.source)


class StemStateReceiver:
    """Polls the stores of one fleet; several with the same URL are one server, asked together.

    Raises `StartupError` if a TLS file cannot be used. `signals` takes what was lost with workers that nobody
    else can tell of.
    """

    def __init__(
        self,
        identity: str,
        config: StemStateConfig,
        metrics: FleetMetrics,
        signals: SignalConsumer,
        telemetry: Telemetry,
        clock: Clock,
        reports: Reports,
        ownership: Ownership,
    ) -> None:
        self._id = identity
        self._config = config
        self._metrics = metrics
        self._signals = signals
        self._zone = ZoneInfo(config.assume_timezone)
        self._telemetry = telemetry
        self._clock = clock
        self._reports = reports
        self._ownership = ownership
        self._subjects = Subjects(config, clock())
        self._fresh = True
        self._stores: list[Store] = []
        self._unpaced: tuple[RedisReader, RedisReader]
        self._search: Search
        self._tasks: list[asyncio.Task[None]] = []
        self._changed = asyncio.Event()
        self._duties = [WORKERS, LETTERS, *([SCHEDULES] if config.schedules.url else [])]
        for duty in self._duties:
            ownership.stand(duty)
        ownership.on_change(self._changed.set)

    async def start(self) -> None:
        """Connect to every store once, then poll in the background.

        Raises `StartupError` if one refuses for a reason that will not heal; one that is away is tried again.
        """
        self._connect()
        for store in self._stores:
            if error := await store.reader.greet(self._id):
                self._failed(store, error)
        self._tasks = [asyncio.create_task(self._poll(), name=f"{self._id}: poll")]

    async def stop(self, timeout: float) -> None:  # noqa: ASYNC109 - see Component
        """Stop polling; the leader takes a last turn, so that totals are whole, and whoever follows leads at once."""
        tasks, self._tasks = self._tasks, []
        await cancel(tasks)
        try:
            if tasks and self._ownership.leads(self._clock()):
                await self._last_turn(timeout * _LAST_TURN_SHARE)
        finally:
            for duty in self._duties:
                self._ownership.withdraw(duty)
            await self._disconnect()

    async def _last_turn(self, seconds: float) -> None:
        for store in self._stores:
            store.reader.throttle = None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._turn()

    # --- stores ------------------------------------------------------------------------------------------------------

    def _connect(self) -> None:
        """Make the readers, once: a TLS file that is away when it is read anew must not end the polling."""
        config, self._stores = self._config, list(self._connected())
        self._unpaced = self._reader(config.url, config.tls), self._reader(*config.result_store)
        self._search = self._new_search()

    def _new_search(self) -> Search:
        keys = Keys(self._config.store_namespace), Keys(self._config.results.namespace)
        return Search(*self._unpaced, *keys, self._config.namespace, self._zone)

    async def _disconnect(self) -> None:
        for reader in (*(store.reader for store in self._stores), *self._unpaced) if self._stores else ():
            await reader.close()

    def _connected(self) -> Iterator[Store]:
        """Yield each server that something is read from."""
        config, stores = self._config, dict[tuple[Any, ...], Store]()
        for url, tls, *names in (
            (config.url, config.tls, "queues", "letters"),
            (*config.result_store, "workers", "pauses"),
            (config.schedules.url, config.schedules.tls, "schedules"),
            (config.workflows.url, config.workflows.tls, "workflows"),
        ):
            if url is None:
                continue
            key = (url.address, url.database, url.username, url.password, url.tls, tls)
            store = stores.get(key) or Store(
                self._reader(url, tls), self._reports.part(f"{url.address}/{url.database}"), self._clock
            )
            stores[key] = store
            store.surveys |= {name: getattr(self._subjects, name) for name in names}
        yield from stores.values()

    def _reader(self, url: RedisUrl, tls: RedisTls) -> RedisReader:
        return RedisReader(
            url,
            tls,
            timeout=self._config.timeout,
            on_failure=lambda reason: self._telemetry.emit(FileUnusable(self._id, reason)),
        )

    # --- polling -----------------------------------------------------------------------------------------------------

    async def _poll(self) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time()
        while True:
            self._changed.clear()
            try:
                await self._turn_or_rest()
            except Exception as error:  # noqa: BLE001 - a fault of ours must not end the polling
                self._telemetry.emit(
                    events.PollFailed(self._id, self._config.url.address, "everything", no_answer(error))
                )
            due += self._config.interval
            if (late := loop.time() - due) > 0:
                self._telemetry.emit(
                    events.PollLate(self._id, round(late + self._config.interval, 3), self._config.interval)
                )
                due = loop.time()
            due = await self._next(due)

    async def _turn_or_rest(self) -> None:
        if self._ownership.leads(self._clock()):
            await self._turn()
            return
        if not self._fresh:
            await self._rest()
        for store in self._stores:  # what could not be read before is no trouble of ours any more
            store.report.ok(_NOT_OURS)

    async def _next(self, due: float) -> float:
        """Wait until the next turn is due, or this agent begins to lead, or ceases to; return when that was."""
        loop = asyncio.get_running_loop()
        while (left := due - loop.time()) > 0:
            try:
                async with asyncio.timeout(left):
                    await self._changed.wait()
            except TimeoutError:
                break
            self._changed.clear()
            if self._fresh is self._ownership.leads(self._clock()):
                return loop.time()
        return due

    async def _turn(self) -> None:
        """Ask all stores at once, and hand on what they answered, if that is still ours to tell."""
        if self._fresh:
            await self._take_up()
        self._subjects.prepare()
        known = len(self._subjects.queues.queues)
        told = await asyncio.gather(*map(self._ask, self._stores))
        self._subjects.prepare()
        if self._fresh:
            self._fresh = False
            for store in self._stores:
                store.reader.throttle = Throttler(MOST_ROUND_TRIPS, period=self._config.interval)
            if len(self._subjects.queues.queues) > known:  # what the first turn found is not to wait for the next
                told = await asyncio.gather(*map(self._ask, self._stores))
        if not await self._note() or not self._ownership.leads(self._clock()):
            return
        self._metrics.tell(told)  # at once: whether anything was lost may take long to find out
        lost = await self._lost()
        if lost and self._ownership.leads(self._clock()):
            self._signals.consume_tailed(self._id, lost, self._zone)

    async def _take_up(self) -> None:
        """Go on from what the leader before left; say so if there is something that cannot be used."""
        if not (notebook := self._ownership.notebook):
            return
        try:
            if not (left := await notebook.read(self._id)):
                return
            noted = notes.decode(left)
            self._subjects.restore(noted)
        except KeptStateError as error:
            self._telemetry.emit(events.TotalsInterrupted(self._id, str(error)))
        except Exception as error:  # noqa: BLE001 - the fleet is to be told of all the same
            self._telemetry.emit(events.TotalsInterrupted(self._id, no_answer(error)))
        else:
            away_s = round((self._clock() - noted.taken_ns) / NANOSECONDS, 1)
            self._telemetry.emit(events.TotalsGoOn(self._id, away_s))

    async def _note(self) -> bool:
        """Leave to the next leader what is about to be told; return whether that may be told."""
        if not (notebook := self._ownership.notebook):
            return True
        try:
            await notebook.write(self._id, notes.encode(self._subjects.notes(self._clock())))
        except Exception as error:  # noqa: BLE001 - told without a note it could be told twice
            reason = no_answer(error)
            self._telemetry.emit(events.PollFailed(self._id, self._config.url.address, "notes", reason))
            return False
        return True

    async def _lost(self) -> list[LostAttempt]:
        """Return what was lost with the workers that went down; look at those that are about to."""
        workers, lost = self._subjects.workers, list[LostAttempt]()
        try:
            lost = await self._search.lost(workers.down)
            await self._search.look(workers.late, self._subjects.queues.queues)
        except Exception as error:  # noqa: BLE001 - who could not be asked about is asked about in the next turn
            reason = no_answer(error)
            self._telemetry.emit(events.PollFailed(self._id, self._config.url.address, "lost attempts", reason))
        return lost

    async def _rest(self) -> None:
        """Forget everything: another agent leads, and what it tells goes on without us."""
        self._fresh = True
        self._metrics.end()
        self._subjects = Subjects(self._config, self._clock())
        await self._disconnect()
        self._search = self._new_search()
        for store in self._stores:
            store.begin({name: getattr(self._subjects, name) for name in store.surveys})

    async def _ask(self, store: Store) -> Told:
        """Return what one store tells; nothing while it cannot be asked."""
        try:
            told = await store.told()
        except Exception as error:  # noqa: BLE001 - whatever it was, the next turn is another chance
            self._failed(store, error)
            return Told([], [], [])
        for subject, trouble in told.troubles:
            self._telemetry.emit(events.PollIncomplete(self._id, store.reader.url.address, subject, trouble))
        if told.troubles:
            store.report.degraded("; ".join(dict.fromkeys(trouble for _, trouble in told.troubles)))
        else:
            store.report.ok()
        return told

    def _failed(self, store: Store, error: Exception) -> None:
        url, reason = store.reader.url, no_answer(error)
        self._telemetry.emit(events.PollFailed(self._id, url.address, store.subjects, reason))
        store.report.recovering(f"failed to read {store.subjects} from redis {url.address}: {reason}")
