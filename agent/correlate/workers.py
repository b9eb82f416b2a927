"""The life of workers, from their heartbeats and lifecycle signals: pure, time is an argument."""

from collections import Counter, deque

from msgspec import Struct

from agent import instruments
from agent.core.clock import NANOSECONDS
from agent.correlate import logs
from agent.correlate.logs import LogEvent, LogWriter, event
from agent.correlate.process import Process
from agent.correlate.shift import Shift
from agent.otlp.log_record import Severity
from agent.otlp.metrics import Aggregator
from agent.stem.catalogue import SignalName

_WORKER_ID = logs.key("stem.worker.id")
_NAMESPACE = logs.key("stem.namespace")
_REASON = logs.key("stem.worker.shutdown.reason")

LIFECYCLE = {
    SignalName.WORKER_INIT: (event("stem.worker.init", Severity.INFO), "worker {} is starting"),
    SignalName.WORKER_READY: (event("stem.worker.ready", Severity.INFO), "worker {} is ready"),
    SignalName.WORKER_STOPPING: (event("stem.worker.stopping", Severity.INFO), "worker {} is stopping"),
    SignalName.WORKER_SHUTDOWN: (event("stem.worker.shutdown", Severity.INFO), "worker {} has stopped"),
    SignalName.WORKER_CHILD_INIT: (
        event("stem.worker.child_init", Severity.DEBUG),
        "worker {} started an isolate",
    ),
    SignalName.WORKER_CHILD_SHUTDOWN: (
        event("stem.worker.child_shutdown", Severity.DEBUG),
        "worker {} disposed of an isolate",
    ),
}
HEARTBEAT = event("stem.worker.heartbeat", Severity.TRACE)
LOST = event("stem.worker.lost", Severity.ERROR)
RECOVERED = event("stem.worker.recovered", Severity.INFO)
REPLACED = event("stem.worker.replaced", Severity.INFO)
COLLISION = event("stem.worker.collision", Severity.WARN)

SKEW_BEATS = 16
"""Heartbeats of which the one that was under way for the shortest time tells the skew."""
STRAGGLER_NS = 2 * NANOSECONDS
COLLISION_NS = 2 * NANOSECONDS
"""A process heard so long after another took its name is no straggler: both are alive."""
_GAUGES = (
    instruments.WORKER_UP,
    instruments.WORKER_AGE,
    instruments.WORKER_INFLIGHT,
    instruments.WORKER_CONCURRENCY,
    instruments.WORKER_MEMORY,
    instruments.WORKER_SKEW,
)

WorkerKey = tuple[str, str]
"""Worker id and namespace, as the metrics' attributes have them."""


class FacesState(Struct, array_like=True):
    """Who spoke last, and who did before: where each runs, and when it took over."""

    current: str = ""
    known: dict[str, tuple[str, int]] = {}


class WorkerState(Struct, array_like=True):
    """Everything that is known of a worker."""

    key: WorkerKey
    last_seen_ns: int
    up: bool
    stopped: bool
    beat_ns: int
    signals: FacesState
    beats: FacesState
    collided_ns: int
    skews: list[int]


class WorkersState(Struct, array_like=True):
    """All workers, those that said goodbye (when, by their clock and ours), and the offsets of the Redis servers."""

    workers: list[WorkerState]
    stopped: list[tuple[WorkerKey, int, int]]
    redis_offsets_ns: dict[str, int]


class Faces:
    """The processes that speak for one worker id, told apart as one kind of heartbeat can.

    Two that take turns are two processes with one name: Stem's default worker ids collide in containers.
    """

    __slots__ = ("_current", "_known")

    def __init__(self) -> None:
        self._current = ""
        self._known: dict[str, tuple[str, int]] = {}  # where it runs, when it took over

    @property
    def current(self) -> str:
        """Who spoke last."""
        return self._current

    def state(self) -> FacesState:
        """Return who spoke."""
        return FacesState(self._current, self._known)

    def restore(self, state: FacesState, shift: Shift) -> None:
        """Go on from a state."""
        self._current = state.current
        self._known = {face: (place, shift(since_ns)) for face, (place, since_ns) in state.known.items()}

    def meet(self, face: str, place: str, now_ns: int) -> tuple[bool, str]:
        """Note who speaks; return whether it is another than before, and where its rival runs, if they take turns."""
        other, self._current = self._current, face
        if other in {"", face}:
            self._known.setdefault(face, (place, now_ns))
            return False, ""
        was_here = face in self._known
        where, since_ns = self._known[other]
        self._known = {other: (where, since_ns), face: (place, now_ns)}
        return True, where if was_here and now_ns - since_ns > COLLISION_NS else ""


class Worker:
    """What is known of one worker id."""

    __slots__ = ("beat_ns", "beats", "collided_ns", "last_seen_ns", "signals", "skews", "stopped", "up")

    def __init__(self, now_ns: int) -> None:
        self.last_seen_ns = now_ns
        self.up = True
        self.stopped = False
        self.beat_ns = 0
        self.signals = Faces()
        self.beats = Faces()
        self.collided_ns = 0
        self.skews: deque[int] = deque(maxlen=SKEW_BEATS)

    def state(self, key: WorkerKey) -> WorkerState:
        """Return what is known of it."""
        return WorkerState(
            *(key, self.last_seen_ns, self.up, self.stopped, self.beat_ns),
            *(self.signals.state(), self.beats.state(), self.collided_ns, list(self.skews)),
        )

    def restore(self, state: WorkerState, shift: Shift) -> None:
        """Go on from a state."""
        self.up, self.stopped, self.beat_ns = state.up, state.stopped, shift(state.beat_ns)
        self.last_seen_ns, self.collided_ns = shift(state.last_seen_ns), shift(state.collided_ns)
        self.signals.restore(state.signals, shift)
        self.beats.restore(state.beats, shift)
        self.skews.extend(skew_ns + shift.back_ns for skew_ns in state.skews)


class Workers:
    """All workers heard of: fresh for `timeout` seconds after a beat, forgotten after `ttl`.

    `redis_offsets_ns` is the clock of each namespace's Redis minus ours: skews are told against Redis.
    """

    def __init__(self, log: LogWriter, aggregator: Aggregator, *, timeout: float, ttl: float) -> None:
        self._log = log
        self._metrics = aggregator
        self._timeout_ns = int(timeout * NANOSECONDS)
        self._ttl_ns = int(ttl * NANOSECONDS)
        self._workers: dict[WorkerKey, Worker] = {}
        self._stopped: dict[WorkerKey, tuple[int, int]] = {}  # when each said goodbye, by its clock and by ours
        self._deaf: Counter[str] = Counter()
        self.redis_offsets_ns: dict[str, int] = {}

    def heartbeat(self, key: WorkerKey, face: str, place: str, *, native: bool, time_ns: int, now_ns: int) -> None:
        """Note a beat: from Stem's own channel (`native`), or the signal `worker-heartbeat`.

        `face` tells the process apart from others with the same worker id, `place` is where it runs, for people.
        """
        said_ns, heard_ns = self._stopped.get(key, (0, 0))
        if time_ns <= said_ns and now_ns - heard_ns < STRAGGLER_NS:
            return  # it was sent before the worker said goodbye
        self._stopped.pop(key, None)
        worker = self._workers.setdefault(key, Worker(now_ns))
        worker.last_seen_ns = now_ns
        worker.skews.append(time_ns - now_ns)
        if native:
            worker.beat_ns = now_ns
        was_up, worker.up, worker.stopped = worker.up, True, False
        other, collides_with = (worker.beats if native else worker.signals).meet(face, place, now_ns)
        if collides_with and (not worker.collided_ns or now_ns - worker.collided_ns > self._ttl_ns):
            worker.collided_ns = now_ns
            sentence = f"worker id {{}} is used by two processes at once: {place}, and {collides_with}"
            self._write(COLLISION, key, time_ns, now_ns, sentence)
        if not was_up and other:
            self._write(REPLACED, key, time_ns, now_ns, f"worker {{}} is heard again, as a new process: {place}")
        elif not was_up:
            self._write(RECOVERED, key, time_ns, now_ns, "worker {} is heard again")
        self._write(HEARTBEAT, key, time_ns, now_ns, "worker {} is alive")

    def load(
        self, key: WorkerKey, now_ns: int, *, inflight: int | None, concurrency: int | None, memory: int | None
    ) -> None:
        """Set the gauges that only Stem's own heartbeat can tell; bytes, and counts."""
        for instrument, value in (
            (instruments.WORKER_INFLIGHT, inflight),
            (instruments.WORKER_CONCURRENCY, concurrency),
            (instruments.WORKER_MEMORY, memory),
        ):
            if value is not None:
                self._metrics.set(instrument, key, now_ns, value)

    def lifecycle(self, name: SignalName, key: WorkerKey, *, time_ns: int, now_ns: int, reason: str | None) -> None:
        """Note that a worker started or stopped; a graceful stop is no alarm."""
        log_event, sentence = LIFECYCLE[name]
        extra = _REASON.text(reason) if reason else b""
        self._write(log_event, key, time_ns, now_ns, sentence, extra)
        if name is SignalName.WORKER_SHUTDOWN:
            self._forget(key)
            self._stopped[key] = (time_ns, now_ns)
        elif worker := self._workers.get(key):
            # one that never beat is not watched: its silence would mean nothing
            worker.stopped = name is SignalName.WORKER_STOPPING
            worker.last_seen_ns = now_ns

    def beats(self, worker: str, namespace: str, now_ns: int) -> bool:
        """Whether Stem's own heartbeats of a worker are fresh, whatever its bridge does."""
        known = self._workers.get((worker, namespace))
        return known is not None and now_ns - known.beat_ns <= self._timeout_ns and known.beat_ns > 0

    def replaced(self, process: Process, worker_id: str, why: str, now_ns: int) -> None:
        """Note that a process gave way to another without a farewell; its worker is up if somebody beats for it."""
        key = (worker_id, process.namespace)
        worker = self._workers.get(key)
        if worker and worker.signals.current == process.boot:
            worker.up = False
        sentence = f"worker {{}} vanished ({process.place}): {why}"
        self._write(LOST, key, now_ns, now_ns, sentence, boot=process.boot)  # several may be missed at once

    def part(self, key: WorkerKey) -> None:
        """Forget a worker that another agent watches from now on, unless its heartbeats are heard here."""
        if (worker := self._workers.get(key)) and not worker.beat_ns:
            self._forget(key)

    def part_natives(self, namespace: str) -> None:
        """Forget the workers whose heartbeats another agent hears from now on."""
        for key in [key for key, worker in self._workers.items() if key[1] == namespace and worker.beat_ns]:
            self._forget(key)

    def deaf(self, *, begins: bool, namespace: str, now_ns: int) -> None:
        """Note that nobody can be heard, or can again."""
        if begins:
            self._deaf[namespace] += 1
            return
        self._deaf[namespace] = max(0, self._deaf[namespace] - 1)
        for key, worker in self._workers.items():
            if key[1] == namespace:
                worker.last_seen_ns = max(worker.last_seen_ns, now_ns)

    def stalled(self, now_ns: int) -> None:
        """Note that we did not listen for a while."""
        for worker in self._workers.values():
            worker.last_seen_ns = max(worker.last_seen_ns, now_ns)

    def tick(self, now_ns: int) -> None:
        """Tell which workers fell silent; forget those that stay so."""
        for gone in [key for key, (_, at_ns) in self._stopped.items() if now_ns - at_ns > self._ttl_ns]:
            del self._stopped[gone]
        for key, worker in list(self._workers.items()):
            if self._deaf[key[1]]:
                continue
            silence_ns = now_ns - worker.last_seen_ns
            if (worker.stopped and silence_ns > self._timeout_ns) or silence_ns > self._ttl_ns:
                self._forget(key)
            elif worker.up and silence_ns > self._timeout_ns:
                worker.up = False
                silent = logs.duration(silence_ns / NANOSECONDS)
                self._write(LOST, key, now_ns, now_ns, f"worker {{}} has been silent for {silent}")

    def collect(self, now_ns: int) -> None:
        """Bring the gauges of every worker up to date."""
        for key, worker in self._workers.items():
            self._metrics.set(instruments.WORKER_UP, key, now_ns, int(worker.up))
            self._metrics.set(instruments.WORKER_AGE, key, now_ns, (now_ns - worker.last_seen_ns) / NANOSECONDS)
            # Each beat was told some time before it was heard: the one least delayed is nearest to the truth.
            skew_ns = max(worker.skews, default=0) - self.redis_offsets_ns.get(key[1], 0)
            self._metrics.set(instruments.WORKER_SKEW, key, now_ns, skew_ns / NANOSECONDS)

    def state(self) -> WorkersState:
        """Return what is known; who cannot be heard just now is told anew by whoever listens next."""
        return WorkersState(
            [worker.state(key) for key, worker in self._workers.items()],
            [(key, *times) for key, times in self._stopped.items()],
            self.redis_offsets_ns,
        )

    def restore(self, state: WorkersState, shift: Shift) -> None:
        """Go on from a state."""
        for kept in state.workers:
            worker = self._workers[kept.key] = Worker(kept.last_seen_ns)
            worker.restore(kept, shift)
        self._stopped = {key: (said_ns, shift(heard_ns)) for key, said_ns, heard_ns in state.stopped}
        self.redis_offsets_ns = {name: offset + shift.back_ns for name, offset in state.redis_offsets_ns.items()}

    def _forget(self, key: WorkerKey) -> None:
        self._workers.pop(key, None)
        for instrument in _GAUGES:
            self._metrics.remove(instrument, key)

    def _write(
        self,
        log_event: LogEvent,
        key: WorkerKey,
        time_ns: int,
        now_ns: int,
        sentence: str,
        extra: bytes = b"",
        *,
        boot: str = "",
    ) -> None:
        if self._log.wants(log_event):
            worker, namespace = key
            self._log.write(
                log_event,
                subject=(*key, boot) if boot else key,
                time_ns=time_ns,
                now_ns=now_ns,
                body=sentence.replace("{}", worker),
                attributes=_WORKER_ID.text(worker) + _NAMESPACE.text(namespace) + extra,
            )
