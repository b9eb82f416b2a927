"""Facts in, telemetry out: hands each fact to who is concerned. Pure; time is an argument."""

from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from datetime import tzinfo
from typing import NamedTuple

from agent.core.clock import NANOSECONDS
from agent.core.kept import KeptStateError
from agent.correlate.attempt import END_SIGNALS, chain
from agent.correlate.config import CorrelateConfig
from agent.correlate.control import log_command
from agent.correlate.counters import EVICTED, HANDED_OVER, LATE, UNATTRIBUTED, Counters
from agent.correlate.process import FOLLOWED_NS, Life, Process, Processes
from agent.correlate.readings import Readings
from agent.correlate.recorder import Recorder
from agent.correlate.repair import RepairQueue
from agent.correlate.schedules import Schedules
from agent.correlate.state import State, decode, encode
from agent.correlate.tasks import Tasks
from agent.correlate.workers import LIFECYCLE, Workers
from agent.correlate.workflows import Workflows
from agent.stem.catalogue import SIGNAL_NAMES, SignalName
from agent.stem.channels import HEARTBEATS
from agent.stem.heartbeat import Heartbeat
from agent.stem.status import TaskStatus
from agent.stem.timestamps import epoch_ns
from agent.stem.wire import Fact, Gap, Lapse, Outage, Recorded, Released, ServerClock, Shed, Signal, Tailed, TakenOver

Handler = Callable[[Signal, Process, int, int], None]


BESIDE_NS = 3 * NANOSECONDS
"""For so long after a record was read, the signal of what it says may still come."""
MOST_BESIDE = 100_000
HEARD_NS = 60 * NANOSECONDS
"""For so long a worker that says nothing may only have nothing to do."""
PARTED_NS = 60 * NANOSECONDS
"""For so long it is remembered whose signals went to another agent, which soon shows in its claims."""


class Restored(NamedTuple):
    """What came of a snapshot: open attempts, the time away (ns), and whether the metrics go on."""

    attempts: int
    away_ns: int
    metrics: bool


class Correlator:
    """Facts in through `handle`, time through `tick`, records through `answered`; the recorder collects what they make.

    `repairs` holds the tasks whose result records are wanted; without `with_repair` nothing is asked.
    """

    def __init__(self, config: CorrelateConfig, now_ns: int, *, with_repair: bool = False) -> None:
        self.counters: Counters = Counter()
        self.recorder = Recorder(config, now_ns)
        self.repairs = RepairQueue(config.max_tasks, enabled=with_repair)
        self.workers = Workers(
            self.recorder.log, self.recorder.metrics, timeout=config.heartbeat_timeout, ttl=config.worker_ttl
        )
        self._processes = Processes(timeout=config.heartbeat_timeout, ttl=config.worker_ttl)
        self._leaving: deque[tuple[int, Process, str]] = deque()
        self._lapses = 0
        self._settle_ns = int(config.settle * NANOSECONDS)
        self._task_ttl_ns = int(config.task_ttl * NANOSECONDS)
        self._worker_ttl_ns = int(config.worker_ttl * NANOSECONDS)
        self.workflows = Workflows(config, self.recorder)
        self.tasks = Tasks(config, self.recorder, self.counters, self.workflows, self._processes, self.repairs)
        self._schedules = Schedules(self.recorder)
        self._readings = Readings(self.tasks, self._processes, self.recorder, self.counters)
        self._beside: deque[tuple[int, tzinfo, Recorded]] = deque()
        self._parted: dict[tuple[str, str], int] = {}
        self._zone = self.tasks.zone
        self._handlers: dict[str, Handler] = {
            **dict.fromkeys((SignalName.BEFORE_TASK_PUBLISH, SignalName.AFTER_TASK_PUBLISH), self._publish),
            **dict.fromkeys(
                (SignalName.TASK_RECEIVED, SignalName.TASK_PRERUN, SignalName.TASK_POSTRUN, *END_SIGNALS),
                self.tasks.heard,
            ),
            SignalName.WORKER_HEARTBEAT: self._worker_heartbeat,
            **dict.fromkeys(LIFECYCLE, self._worker_lifecycle),
            **{name: self._other for name in SIGNAL_NAMES if name.startswith(("workflow-", "schedule-", "control-"))},
        }

    def handle(self, fact: Fact, zone: tzinfo, now_ns: int) -> None:
        """Merge one fact; its times without an offset are in `zone`."""
        self._zone = self.tasks.zone = zone
        if isinstance(fact, Signal):
            time_ns = epoch_ns(fact.occurred_at, zone)
            process = self._processes.heard(fact, time_ns, now_ns)
            if process.life is Life.LOST:
                process.life, process.followed_ns = Life.ALIVE, 0
                self.tasks.reclaim(process)
            if handler := self._handlers.get(fact.event_name):
                handler(fact, process, time_ns, now_ns)
            else:
                self.recorder.unknown(fact, time_ns, now_ns)
        elif isinstance(fact, Heartbeat):
            self._heartbeat(fact, now_ns)
        elif isinstance(fact, Gap):
            self.recorder.gap(fact, now_ns)
            self._suspect(fact, now_ns)
        elif isinstance(fact, Shed):
            self._suspect(fact, now_ns)
        elif isinstance(fact, Released | TakenOver):
            self._hand_over(fact, now_ns)
        else:
            self._circumstance(fact, now_ns)

    # --- what is read of those who say nothing -----------------------------------------------------------------------

    def read(self, fact: Tailed, zone: tzinfo, now_ns: int) -> None:
        """Merge a fact that was read; its times without an offset are in `zone`."""
        self._zone = self.tasks.zone = zone
        self._readings.take(fact, now_ns)

    def read_beside(self, fact: Recorded, zone: tzinfo, now_ns: int) -> None:
        """Take a record of somebody who is heard: it counts if no signal has told that by the time it is due."""
        self._beside.append((now_ns + BESIDE_NS, zone, fact))
        if len(self._beside) > MOST_BESIDE:
            self._beside.popleft()

    def hears(self, namespace: str, worker: str, now_ns: int) -> bool:
        """Whether what a worker does is told by its signals, which came here or now go to another agent."""
        if self._processes.of_worker(namespace, worker):
            return True
        if now_ns - self.tasks.speakers.get((namespace, worker), -self._worker_ttl_ns) < self._worker_ttl_ns:
            return True
        return now_ns - self._parted.get((namespace, worker), -PARTED_NS) < PARTED_NS

    def heard(self, now_ns: int) -> set[tuple[str, str]]:
        """Return who was heard of late: worker namespaces and ids, and each namespace with an empty id."""
        heard = {key for key, ns in self.tasks.speakers.items() if now_ns - ns < HEARD_NS}
        for process in self._processes.speaking():
            if now_ns - process.heard_ns < HEARD_NS:
                heard.add((process.namespace, ""))
                heard |= {(process.namespace, worker) for worker in process.workers}
        return heard

    def hears_anybody(self, namespace: str) -> bool:
        """Whether anybody's signals come here."""
        return next(self._processes.all(namespace), None) is not None

    def _mend_beside(self, now_ns: int) -> None:
        while self._beside and self._beside[0][0] <= now_ns:
            _, zone, fact = self._beside.popleft()
            if not self.paused:
                self._zone = self.tasks.zone = zone
                self._readings.mend(fact, now_ns)

    def _circumstance(self, fact: ServerClock | Outage, now_ns: int) -> None:
        if isinstance(fact, ServerClock):
            self.workers.redis_offsets_ns[fact.namespace] = fact.offset_ns
        else:
            self._outage(fact, now_ns)

    @property
    def paused(self) -> bool:
        """Whether nothing may be concluded from records: it may be another agent's to tell."""
        return self._lapses > 0

    def _hand_over(self, fact: Released | TakenOver, now_ns: int) -> None:
        if isinstance(fact, TakenOver):
            self._processes.take_over(fact.namespace, fact.emitter)
            return
        namespace, emitters = fact.namespace, frozenset(fact.emitters)
        if dropped := self.tasks.part(namespace, emitters, now_ns):
            self.counters[HANDED_OVER, ""] += dropped
        for process in self._processes.all(namespace):
            for worker in process.workers if process.emitter in emitters else ():
                self.workers.part((worker, namespace))
                self._parted[namespace, worker] = now_ns
        self._parted = {key: ns for key, ns in self._parted.items() if now_ns - ns < PARTED_NS}
        self._processes.part(namespace, emitters)
        if HEARTBEATS in emitters:
            self.workers.part_natives(namespace)

    def _suspect(self, fact: Gap | Shed, now_ns: int) -> None:
        if process := self._processes.get(fact.namespace, fact.emitter, fact.boot):
            self.tasks.mender.suspect([process], now_ns)

    def answered(self, records: Mapping[str, TaskStatus | None], now_ns: int) -> None:
        """Take the records that were wanted."""
        self.tasks.mender.answered(records, self._zone, now_ns)

    def unanswered(self, task_ids: Iterable[str]) -> None:
        """Take note that the records could not be read now."""
        self.repairs.unanswered(task_ids, self.tasks.mender.awaits)

    def stalled(self, now_ns: int) -> None:
        """Note that the agent itself stood still: nobody was silent, we did not listen."""
        self._processes.stalled(now_ns)
        self.workers.stalled(now_ns)

    def tick(self, now_ns: int) -> None:
        """Judge who is silent, settle what is due, forget what may be forgotten."""
        left: set[tuple[Process, str | None]] = set()
        for process, why in self._processes.lost(now_ns):
            if not why and any(self.workers.beats(worker, process.namespace, now_ns) for worker in process.workers):
                process.life = Life.ALIVE  # Stem's own heartbeats go on: its bridge is silent, not its worker
                continue
            for worker in process.workers if why else ():
                self.workers.replaced(process, worker, why, now_ns)
            left.add((process, None))
        for process, worker in self.tasks.left:
            self._leaving.append((now_ns + self._settle_ns, process, worker))
        self.tasks.left.clear()
        while self._leaving and self._leaving[0][0] <= now_ns:
            left.add(self._leaving.popleft()[1:])
        self.tasks.abandon(left, now_ns)
        self._mend_beside(now_ns)
        self.tasks.tick(now_ns)
        self.workflows.tick(now_ns)
        self.workers.tick(now_ns)
        if self.workflows.evicted:
            self.counters[EVICTED, "workflow"] += self.workflows.evicted
            self.workflows.evicted = 0

    def ask_at_last(self, now_ns: int) -> None:
        """Ask for the records of everything that signals were lost of, because there will be no later."""
        self.tasks.mender.ask_at_last(now_ns)

    def collect(self, now_ns: int) -> None:
        """Bring the gauges up to date."""
        self.workers.collect(now_ns)
        self.recorder.running(self.tasks.attempts, now_ns)

    def close(self, now_ns: int, *, keep: bool = False) -> None:
        """Settle everything whose end was heard; drop and count the rest, or `keep` it for a snapshot."""
        self.tasks.close(now_ns, keep=keep)
        self.workflows.close(now_ns, keep=keep)

    # --- from one process to the next --------------------------------------------------------------------------------

    def snapshot(self, now_ns: int, resource: bytes = b"") -> bytes:
        """Return everything that is known, for `restore`; `resource` (encoded) is who tells the metrics.

        What was made and not taken yet (spans, log records, counters) is not in it. Raises `OverflowError` for integers
        beyond 64 bits.
        """
        leaving = [
            *self._leaving,
            *((now_ns + self._settle_ns, process, worker) for process, worker in self.tasks.left),
        ]
        return encode(
            State(
                *(now_ns, self.tasks.state(), self.workflows.state(), self.workers.state()),
                *(self.recorder.state(resource), self._processes.state(), leaving, []),
            )
        )

    def restore(self, state: bytes, now_ns: int, resource: bytes = b"") -> Restored:
        """Go on from a snapshot, with nothing heard so far. Raises `KeptStateError`, after which this is of no use.

        The time between was deafness: nobody was silent in it, nobody grew too old. What is older than `task_ttl`
        is forgotten altogether, and its open attempts are counted as evicted.
        """
        known, shift = decode(state, now_ns)
        if shift.away_ns >= self._task_ttl_ns:
            self.counters[EVICTED, "task_ttl"] += sum(1 for head in known.tasks.attempts.heads for _ in chain(head))
            return Restored(0, shift.away_ns, metrics=False)
        try:
            self.tasks.restore(known.tasks, shift, now_ns)
        except IndexError as error:
            raise KeptStateError("broken", "an attempt is not in its place") from error
        self.workflows.restore(known.workflows, shift)
        self.workers.restore(known.workers, shift)
        metrics = self.recorder.restore(known.recorder, resource, shift, now_ns)
        self._processes.restore(known.processes)
        self._leaving.extend((shift(due_ns), process, worker) for due_ns, process, worker in known.leaving)
        if shift.away:
            self.stalled(now_ns)
            self.tasks.mender.suspect(self._processes.speaking(), now_ns)
        return Restored(len(self.tasks.attempts), shift.away_ns, metrics=metrics)

    def _publish(self, signal: Signal, _process: Process, time_ns: int, now_ns: int) -> None:
        new = self.tasks.publishes.heard(signal, time_ns, self._zone, now_ns)
        if not new:
            self.counters[UNATTRIBUTED if new is None else LATE, signal.event_name] += 1

    # --- workers -----------------------------------------------------------------------------------------------------

    def _worker_lifecycle(self, signal: Signal, process: Process, time_ns: int, now_ns: int) -> None:
        if not process.boot and not self.tasks.attempts.once(_fact(signal, time_ns), now_ns):
            self.counters[LATE, signal.event_name] += 1
            return
        _introduce(process, signal)
        worker = (signal.attributes.worker_id or signal.worker_id or "", signal.namespace)
        name, reason = SignalName(signal.event_name), signal.attributes.reason
        self.workers.lifecycle(name, worker, time_ns=time_ns, now_ns=now_ns, reason=reason)
        if name is SignalName.WORKER_SHUTDOWN and process.boot:
            process.workers.discard(worker[0])
            if not process.workers:  # several workers may share a process
                process.life, process.goodbye_ns = Life.STOPPED, now_ns
            # What it holds open was sent back to its queue, and nobody will signal an end.
            self._leaving.append((now_ns + self._settle_ns, process, worker[0]))

    def _worker_heartbeat(self, signal: Signal, process: Process, time_ns: int, now_ns: int) -> None:
        _introduce(process, signal)
        process.beats = True
        if process.life is Life.STOPPED and now_ns - process.goodbye_ns > FOLLOWED_NS:
            process.life = Life.ALIVE  # no straggler: another worker was started in it
        # A process without a worker (a producer, a Beat) beats for the number in its signal alone.
        if worker_id := signal.attributes.worker_id or signal.worker_id:
            key, face = (worker_id, signal.namespace), process.boot or process.emitter
            self.workers.heartbeat(key, face, process.place, native=False, time_ns=time_ns, now_ns=now_ns)

    def _heartbeat(self, heartbeat: Heartbeat, now_ns: int) -> None:
        worker, extras = (heartbeat.worker_id, heartbeat.namespace), heartbeat.extras
        time_ns = epoch_ns(heartbeat.timestamp, self._zone)
        place = f"pid {extras.pid} on {extras.host}"
        self.workers.heartbeat(worker, place, place, native=True, time_ns=time_ns, now_ns=now_ns)
        self.workers.load(
            worker,
            now_ns,
            inflight=heartbeat.inflight,
            concurrency=extras.concurrency,
            memory=extras.memory_bytes,
        )

    def _outage(self, outage: Outage, now_ns: int) -> None:
        begins = not outage.to_ns
        if isinstance(outage, Lapse):
            self._lapses = max(0, self._lapses + (1 if begins else -1))
        self.workers.deaf(begins=begins, namespace=outage.namespace, now_ns=now_ns)
        self._processes.deaf(begins=begins, namespace=outage.namespace, now_ns=now_ns)
        if not begins:
            self.tasks.mender.suspect(self._processes.speaking(outage.namespace), now_ns)

    # --- everything else ---------------------------------------------------------------------------------------------

    def _other(self, signal: Signal, process: Process, time_ns: int, now_ns: int) -> None:
        if not process.boot and not self.tasks.attempts.once(_fact(signal, time_ns), now_ns):
            self.counters[LATE, signal.event_name] += 1  # nobody numbered it, so nobody else recognises a repeat
        elif signal.event_name.startswith("control-"):
            log_command(signal, self.recorder.log, time_ns, now_ns)
        elif signal.event_name.startswith("schedule-"):
            self._schedules.heard(signal, time_ns, self._zone, now_ns)
        elif not self.workflows.heard(signal, time_ns, now_ns):
            self.counters[LATE, signal.event_name] += 1


def _fact(signal: Signal, time_ns: int) -> tuple[str, ...]:
    told = signal.attributes
    subject = (told.run_id, told.step, told.entry_id, told.request_id, told.worker_id or signal.worker_id)
    return (signal.event_name, signal.namespace, str(time_ns), *(each or "" for each in subject))


def _introduce(process: Process, signal: Signal) -> None:
    """Note who a process says it is."""
    if worker := signal.attributes.worker_id or signal.worker_id:
        process.workers.add(worker)
    process.host = signal.host or process.host
    process.pid = signal.pid or process.pid
