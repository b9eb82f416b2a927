"""The shell around the correlator: ends the signals pipeline, begins traces, metrics and logs."""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import tzinfo
from functools import partial
from typing import ClassVar

from agent.core.backoff import Backoff
from agent.core.clock import NANOSECONDS, Clock
from agent.core.errors import fault
from agent.core.ownership import LETTERS, SCHEDULES, WORKERS, Ownership
from agent.core.states import StateStore
from agent.core.status import Reporter, Reports
from agent.core.tasks import cancel
from agent.correlate.config import CorrelateConfig
from agent.correlate.correlator import Correlator
from agent.correlate.fleet_voice import FleetVoice
from agent.correlate.metrics import OF_LETTERS, OF_SCHEDULES, OF_WORKERS
from agent.correlate.results import ResultReader
from agent.correlate.teller import Teller
from agent.otlp.batch import Consumer, Kind
from agent.otlp.metrics import Instrument
from agent.otlp.resource import Resource
from agent.stem.wire import Fact, Tailed
from agent.telemetry.events import Event, Telemetry
from agent.telemetry.keeping import Keeping

TICK_SECONDS = 0.25
_STALL_NS = NANOSECONDS
"""A tick so late means that nothing was heard meanwhile, whoever spoke."""
_CALM_NS = 60 * NANOSECONDS
"""Trouble that did not come again for so long is over."""
_MAX_REPAIR_BACKOFF_SECONDS = 5.0
_REPAIR_SHARE = 0.2  # of the deadline of a stop: delivering the rest needs more
_DUTIES = {WORKERS: OF_WORKERS, SCHEDULES: OF_SCHEDULES, LETTERS: OF_LETTERS}


@dataclass(frozen=True, slots=True)
class AttemptsKept(Event):
    """Open attempts wait for the next process."""

    connector: str
    open_attempts: int
    size: int

    phrase: ClassVar[str] = "kept what is known for the next start"
    level: ClassVar[int] = logging.INFO


@dataclass(frozen=True, slots=True)
class AttemptsRestored(Event):
    """What the process before knew is known again; `metrics` go on, or begin anew under another resource."""

    connector: str
    open_attempts: int
    away_s: float
    metrics: str

    phrase: ClassVar[str] = "going on from where the process before stopped"
    level: ClassVar[int] = logging.INFO


@dataclass(frozen=True, slots=True)
class FactFailed(Event):
    """A fact made the correlator fail: a fault of ours, which must not cost the other facts."""

    connector: str
    error: str

    phrase: ClassVar[str] = "failed to correlate a signal; please report this"
    level: ClassVar[int] = logging.ERROR
    counter: ClassVar[str | None] = "stem_agent.signals.lost"
    constant: ClassVar[tuple[tuple[str, str], ...]] = (("reason", "internal_error"),)


class CorrelateConnector:
    """Feeds facts to the correlator, gives it the time, and hands on what it makes.

    `outputs` holds the next step of each pipeline that begins here; kinds without a pipeline are not kept.
    """

    def __init__(
        self,
        identity: str,
        config: CorrelateConfig,
        outputs: Mapping[Kind, Consumer],
        resource: Resource,
        telemetry: Telemetry,
        clock: Clock,
        reports: Reports,
        store: StateStore | None = None,
    ) -> None:
        self._id = identity
        self._keeping = Keeping(store, f"connectors/{identity}", identity, telemetry) if store else None
        self._inherited: Keeping | None = None
        self._state: bytes | None = None
        self._config = config
        self._telemetry = telemetry
        self._clock = clock
        results = config.results
        self._reader = ResultReader(results, identity, telemetry, reports.part("repair")) if results.enabled else None
        self._ownership = Ownership()
        voice = (outputs, resource, telemetry, clock, self._attempts_dropped)
        self._own = Teller(identity, self._new_correlator(), *voice)
        of_the_fleet = (outputs, resource.of_the_fleet(), telemetry, clock, self._attempts_dropped)
        self._fleet = FleetVoice(lambda: Teller(identity, Correlator(config, clock()), *of_the_fleet))
        self._zone_known = False
        self._speakers = 0
        self._signals = reports.part("signals")
        self._attempts = reports.part("attempts")
        self._calm_at_ns = 0
        self._tasks: list[asyncio.Task[None]] = []
        self._stopped = False
        telemetry.gauge(
            "stem_agent.correlate.open_attempts",
            lambda: float(len(self._correlator.tasks.attempts)),
            connector=identity,
        )

    @property
    def _correlator(self) -> Correlator:
        return self._own.correlator

    def _attempts_dropped(self, reason: str) -> None:
        self._trouble(self._attempts, f"open attempts are dropped: {reason}")

    def _new_correlator(self) -> Correlator:
        return Correlator(self._config, self._clock(), with_repair=self._reader is not None)

    def share(self, ownership: Ownership) -> None:
        """Leave to the leader of the fleet what it tells, while there is one; tell others who is heard here."""
        self._ownership = ownership
        ownership.hearers.append(lambda: self._correlator.heard(self._clock()))

    def consume_facts(self, facts: Sequence[Fact], zone: tzinfo) -> None:
        """Merge facts in the order they came, and hand on what is finished."""
        now_ns = self._clock()
        self._zone_known = True
        handle = self._correlator.handle
        for fact in facts:
            try:
                handle(fact, zone, now_ns)
            except Exception as error:  # noqa: BLE001 - one bad fact must not cost the others
                self._failed(error)
        self._hand_on()
        if (known := len(self._correlator.tasks.speakers)) != self._speakers:
            self._speakers = known
            self._ownership.wake()  # whoever reads of them is to know soon that they speak

    def consume_tailed(self, receiver: str, facts: Sequence[Tailed], zone: tzinfo) -> None:
        """Merge what was read of those who say nothing; what others tell is left to them."""
        for step in self._fleet.take(receiver, facts, zone, self._correlator, self._clock()):
            self._guarded(step)
        self._hand_on()

    def take_up(self, receiver: str, totals: Mapping[str, bytes]) -> None:
        """Begin to tell of the fleet, going on from totals; raises `KeptStateError` if they are none."""
        teller = self._fleet.take_up(receiver, totals, self._clock())
        self._guarded(lambda: teller.hand_on_metrics(self._told_by_others(), goes_on=True))

    def totals(self, receiver: str, *, everything: bool = False) -> dict[str, bytes | None]:
        """Return the totals of what was told of the fleet, by name: those that changed since this was asked last."""
        return self._fleet.totals(receiver, self._clock(), everything=everything)

    def give_up(self, receiver: str, *, told: bool) -> None:
        """Tell no more of the fleet; `told`: its metrics once more."""
        if not (teller := self._fleet.give_up(receiver)):
            return
        if told:
            self._guarded(teller.hand_on)
            self._guarded(lambda: teller.hand_on_metrics(self._told_by_others()))
        self._guarded(teller.end)

    async def start(self) -> None:
        """Go on from where the process before stopped, if that was kept; start the timers."""
        self._stopped = False
        if self._keeping and not self._inherited:
            await self._restore(self._keeping)
        elif self._inherited:
            await self._inherit(self._inherited)
        self._tasks = [
            asyncio.create_task(self._tick(), name=f"{self._id}: tick"),
            asyncio.create_task(self._collect(), name=f"{self._id}: metrics"),
        ]
        if self._reader:
            self._tasks.append(asyncio.create_task(self._repair(self._reader), name=f"{self._id}: repair"))

    async def stop(self, timeout: float) -> None:  # noqa: ASYNC109 - see Component
        """Settle what can be settled, hand on everything including a last snapshot of the metrics; keep the rest.

        What signals were lost of is asked for once more, for a share of the time. A stop that was cancelled can be
        called again.
        """
        tasks, self._tasks = self._tasks, []
        await cancel(tasks)
        if not self._stopped:
            if self._reader:
                await self._ask_once_more(self._reader, timeout * _REPAIR_SHARE)
            self._stopped = True
            self._close()
        if self._keeping and self._state is not None:
            await self._keep(self._keeping, self._state, timeout)
        if self._reader:
            await self._reader.close()

    def _close(self) -> None:
        keeping = self._keeping if self._keeping and self._keeping.began else None
        self._guarded(lambda: self._correlator.close(self._clock(), keep=keeping is not None))
        self._guarded(self._hand_on)
        self._guarded(self._hand_on_metrics)
        if keeping:
            try:
                self._state = self._correlator.snapshot(self._clock(), self._own.resource.encoded)
            except Exception as error:  # noqa: BLE001 - a fault of ours must not keep the others from stopping
                keeping.failed(fault(error))
                self._drop()

    def _drop(self) -> None:
        """Account for everything that should have been kept."""
        self._guarded(lambda: self._correlator.close(self._clock()))
        self._guarded(self._hand_on)

    # --- from one process, or one configuration, to the next ----------------------------------------------------------

    def hand_over(self, store: StateStore) -> None:
        """Leave what is known to the connector that follows in this process."""
        self._keeping = Keeping(store, f"connectors/{self._id}", self._id, self._telemetry)
        self._keeping.began = True

    def take_over(self, store: StateStore) -> None:
        """Go on, when started, from what the connector before left."""
        self._inherited = Keeping(store, f"connectors/{self._id}", self._id, self._telemetry)

    async def _inherit(self, keeping: Keeping) -> None:
        self._inherited = None
        await self._restore(keeping)
        if self._keeping:  # what may still be there is older
            await self._keeping.take(lambda _: None)

    async def _restore(self, keeping: Keeping) -> None:
        correlator = self._new_correlator()
        restored = await keeping.take(
            lambda state: correlator.restore(state, self._clock(), self._own.resource.encoded)
        )
        if restored:
            self._own.correlator = correlator
            away_s = round(restored.away_ns / NANOSECONDS, 3)
            metrics = "go on" if restored.metrics else "begin anew"
            self._telemetry.emit(AttemptsRestored(self._id, restored.attempts, away_s, metrics))
            # Before anything is added: whoever tells differences has to know where these go on.
            self._guarded(lambda: self._own.hand_on_metrics(self._told_by_others(), goes_on=True))

    async def _keep(self, keeping: Keeping, state: bytes, seconds: float) -> None:
        if await keeping.put(state, seconds):
            self._telemetry.emit(AttemptsKept(self._id, len(self._correlator.tasks.attempts), len(state)))
        else:
            self._drop()
        self._state = None

    async def _repair(self, reader: ResultReader) -> None:
        backoff = Backoff(TICK_SECONDS, _MAX_REPAIR_BACKOFF_SECONDS)
        while True:
            if not await self._ask(reader):
                await asyncio.sleep(backoff.next())
                continue
            backoff.reset()
            # The reader paces itself; this only looks whether there is anything to ask.
            busy = self._asks and len(self._correlator.repairs)
            await asyncio.sleep(0 if busy else TICK_SECONDS)

    @property
    def _asks(self) -> bool:
        return self._zone_known and not self._correlator.paused

    async def _ask(self, reader: ResultReader) -> bool:
        """Read the records that are wanted most; return False if they could not be read."""
        # Nothing is asked before the receiver spoke: times without an offset are in its zone.
        wanted = self._correlator.repairs.take(self._config.results.batch) if self._asks else []
        if not wanted:
            return True
        try:
            records = await reader.read(wanted)
        except asyncio.CancelledError:
            self._correlator.unanswered(wanted)
            raise
        if records is None:
            self._correlator.unanswered(wanted)
            return False
        if self._correlator.paused:
            self._correlator.unanswered(wanted)
            return True
        self._guarded(lambda: self._correlator.answered(records, self._clock()))
        self._guarded(self._hand_on)
        return True

    async def _ask_once_more(self, reader: ResultReader, seconds: float) -> None:
        self._guarded(lambda: self._correlator.ask_at_last(self._clock()))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self._asks and len(self._correlator.repairs) and await self._ask(reader):
                    pass

    async def _tick(self) -> None:
        while True:
            before_ns = self._clock()
            await asyncio.sleep(TICK_SECONDS)
            if self._clock() - before_ns > _STALL_NS:
                self._guarded(lambda: self._correlator.stalled(self._clock()))
            for teller in (self._own, *self._fleet):
                self._guarded(partial(teller.correlator.tick, self._clock()))
            self._guarded(self._hand_on)
            if self._calm_at_ns and self._clock() >= self._calm_at_ns:
                self._calm_at_ns = 0
                self._signals.ok()
                self._attempts.ok()

    async def _collect(self) -> None:
        while True:
            await asyncio.sleep(self._config.metrics_interval)
            self._guarded(self._hand_on_metrics)

    def _guarded(self, step: Callable[[], None]) -> None:
        """Take a step of a timer: a fault of ours must not stop the timer, or nothing would ever settle."""
        try:
            step()
        except Exception as error:  # noqa: BLE001 - see above
            self._failed(error)

    def _failed(self, error: Exception) -> None:
        where = fault(error)
        self._telemetry.emit(FactFailed(self._id, where))
        self._trouble(self._signals, f"a fault of the agent cost a signal: {where}")

    def _trouble(self, part: Reporter, reason: str) -> None:
        """Tell of something that ends by itself: when it has not come again for a while."""
        part.degraded(reason)
        self._calm_at_ns = self._clock() + _CALM_NS

    def _hand_on(self) -> None:
        for teller in (self._own, *self._fleet):
            teller.hand_on()

    def _hand_on_metrics(self) -> None:
        without = self._told_by_others()
        for teller in (self._own, *self._fleet):
            teller.hand_on_metrics(without)

    def _told_by_others(self) -> list[Instrument]:
        now_ns = self._clock()
        return [
            instrument
            for duty, instruments in _DUTIES.items()
            if self._ownership.fleet_is_told(duty, now_ns)
            for instrument in instruments
        ]
