"""The processes that speak: who they are, and when each was heard last. Pure; time is an argument."""

from collections import Counter
from collections.abc import Collection, Iterator
from enum import Enum, auto

from msgspec import Struct

from agent.core.clock import NANOSECONDS
from agent.correlate.shift import Shift
from agent.stem.timestamps import MAX_NS
from agent.stem.wire import Signal

MAX_PROCESSES = 10_000
"""Remembered; beyond that the one heard of first is forgotten, and is not missed when it falls silent."""

FOLLOWED_NS = 2 * NANOSECONDS
"""A process heard so long after another began to speak under its emitter was not replaced by it."""
LOOK_NS = NANOSECONDS // 2
"""How often the silent are looked for: there may be thousands of processes."""


class Life(Enum):
    """What is known of a process."""

    ALIVE = auto()
    STOPPED = auto()  # it said goodbye
    LOST = auto()  # it fell silent, or another took its place


class ProcessState(Struct, array_like=True):
    """Everything that is known of a process."""

    namespace: str
    emitter: str
    boot: str
    workers: set[str]
    host: str
    pid: int
    beats: bool
    life: Life
    heard_ns: int
    told_ns: int
    began_ns: int
    first_heard: bool
    goodbye_ns: int
    gapped_ns: int
    followed_ns: int
    taken_ns: int


class Process:
    """One emitter process (`boot`); without a boot, everything that its emitter says without one.

    `heard_ns` is our clock's time of its last signal; by its own clock, `told_ns` is the latest time that it told and
    `began_ns` the earliest, before which it told nothing if its first signal was heard (`first_heard`).
    `beats`: it sends heartbeats, so its silence means something.
    """

    __slots__ = (
        "beats",
        "began_ns",
        "boot",
        "emitter",
        "first_heard",
        "followed_ns",
        "gapped_ns",
        "goodbye_ns",
        "heard_ns",
        "host",
        "life",
        "namespace",
        "pid",
        "taken_ns",
        "told_ns",
        "workers",
    )

    def __init__(self, namespace: str, emitter: str, boot: str, now_ns: int) -> None:
        self.namespace = namespace
        self.emitter = emitter
        self.boot = boot
        self.workers: set[str] = set()  # those that said that they are in it
        self.host = ""
        self.pid = 0
        self.beats = False
        self.life = Life.ALIVE
        self.heard_ns = now_ns
        self.told_ns = 0
        self.began_ns = MAX_NS
        self.first_heard = False
        self.goodbye_ns = 0  # when we heard it say so
        self.gapped_ns = 0  # when we last knew that signals of it were lost
        self.followed_ns = 0  # when another process began to speak under the same emitter
        self.taken_ns = 0  # its first signal that was ours, by its own clock; what was before another agent told

    def same(self, other: "Process") -> bool:
        """Whether two are one: a process that was forgotten may be met again."""
        return self.boot == other.boot and self.emitter == other.emitter and self.namespace == other.namespace

    @property
    def place(self) -> str:
        """Where it runs, for people."""
        pid = f"pid {self.pid}" if self.pid else f"boot {self.boot}"
        return f"{pid} on {self.host}" if self.host else f"{pid} of {self.emitter}"

    def state(self) -> ProcessState:
        """Return what is known of it."""
        return ProcessState(
            *(self.namespace, self.emitter, self.boot, self.workers, self.host, self.pid, self.beats, self.life),
            *(self.heard_ns, self.told_ns, self.began_ns, self.first_heard),
            *(self.goodbye_ns, self.gapped_ns, self.followed_ns, self.taken_ns),
        )

    def restore(self, state: ProcessState, shift: Shift) -> None:
        """Go on from a state."""
        self.namespace, self.emitter, self.boot = state.namespace, state.emitter, state.boot
        self.workers, self.host, self.pid = state.workers, state.host, state.pid
        self.beats, self.life, self.told_ns, self.taken_ns = state.beats, state.life, state.told_ns, state.taken_ns
        self.began_ns, self.first_heard = state.began_ns, state.first_heard
        self.heard_ns, self.goodbye_ns = shift(state.heard_ns), shift(state.goodbye_ns)
        self.gapped_ns, self.followed_ns = shift(state.gapped_ns), shift(state.followed_ns)


class ProcessesState(Struct, array_like=True):
    """Who is known, in the order of their first signals, who speaks for each emitter, and which were taken over."""

    known: list[Process]
    speaking: list[Process]
    taken: list[tuple[str, str]]


class Processes:
    """Everybody who was heard, and the judgement over those who are heard no more.

    A process that sends heartbeats, three in `timeout` seconds, is lost when it was silent for so long; or for a third
    of that after another process began to speak under the same emitter (an emitter names one container: the new one
    is what was restarted). The silence of a process that sends none means nothing.
    """

    def __init__(self, *, timeout: float, ttl: float) -> None:
        self._timeout_ns = int(timeout * NANOSECONDS)
        self._follow_ns = self._timeout_ns * 2 // 5  # one interval, and something for its delay
        self._ttl_ns = int(ttl * NANOSECONDS)
        self._known: dict[tuple[str, str, str], Process] = {}
        self._speaking: dict[tuple[str, str], Process] = {}
        self._taken: set[tuple[str, str]] = set()
        self._deaf: Counter[str] = Counter()
        self._next_look_ns = 0

    def heard(self, signal: Signal, time_ns: int, now_ns: int) -> Process:
        """Note that a process spoke, and return it."""
        key = (signal.namespace, signal.emitter or "", signal.boot or "")
        process = self._known.get(key)
        if process is None:
            process = self._meet(key, now_ns)
            if key[:2] in self._taken:
                process.taken_ns = time_ns
        process.heard_ns = now_ns
        if process.followed_ns and now_ns - process.followed_ns > FOLLOWED_NS:
            process.followed_ns = 0  # it was no follower, but a neighbour
        if time_ns > process.told_ns:  # noqa: PLR1730 - runs per signal: max() costs three times as much
            process.told_ns = time_ns
        if time_ns <= process.began_ns:
            process.began_ns = time_ns
            process.first_heard = process.first_heard or signal.seq == 1
        return process

    def _meet(self, key: tuple[str, str, str], now_ns: int) -> Process:
        if len(self._known) >= MAX_PROCESSES:
            self._make_room()
        process = self._known[key] = Process(*key, now_ns)
        if process.boot:
            before = self._speaking.get(key[:2])
            if before and before.life is Life.ALIVE:
                before.followed_ns = now_ns
            self._speaking[key[:2]] = process
        return process

    def _make_room(self) -> None:
        """Forget those that were heard longest ago: a tenth at once, because whoever floods us goes on."""
        oldest = sorted(self._known, key=lambda key: self._known[key].heard_ns)
        for key in oldest[: MAX_PROCESSES // 10]:
            self._forget(key)

    def take_over(self, namespace: str, emitter: str) -> None:
        """Note that another agent told of everybody who spoke under an emitter until now."""
        self._taken.add((namespace, emitter))

    def part(self, namespace: str, emitters: Collection[str]) -> None:
        """Forget everybody who speaks under these emitters: another agent goes on with them."""
        for key in [key for key in self._known if key[0] == namespace and key[1] in emitters]:
            self._forget(key)
        self._taken -= {(namespace, emitter) for emitter in emitters}

    def get(self, namespace: str, emitter: str, boot: str) -> Process | None:
        """Return a process that was heard."""
        return self._known.get((namespace, emitter, boot))

    def of_worker(self, namespace: str, worker: str) -> Process | None:
        """Return the process that speaks for a worker, the newest if there were several; None if nobody was heard."""
        return next(self._of_worker(namespace, worker), None)

    def in_which(self, namespace: str, worker: str, began_ns: int) -> Process | None:
        """Return the process in which a worker began something, at a time of its own clock; None if nobody can know.

        It is the newest that had begun by then, but one that began unheard may have begun before what was heard of it.
        """
        for process in self._of_worker(namespace, worker):
            if process.began_ns <= began_ns:
                return process
            if not process.first_heard:
                return None
        return None

    def replaced(self, process: Process, time_ns: int) -> bool:
        """Whether another had taken a process' place, under its emitter after its last word, by a time they told."""
        if self._speaking.get((process.namespace, process.emitter)) in {None, process}:
            return False
        return any(
            process.told_ns < other.began_ns <= time_ns
            for other in self.all(process.namespace)
            if other.emitter == process.emitter and not other.same(process)
        )

    def _of_worker(self, namespace: str, worker: str) -> Iterator[Process]:
        return (p for p in reversed(self._known.values()) if worker in p.workers and p.namespace == namespace)

    def all(self, namespace: str) -> Iterator[Process]:
        """Yield every process of a namespace."""
        return (process for process in self._known.values() if process.namespace == namespace)

    def deaf(self, *, begins: bool, namespace: str, now_ns: int) -> None:
        """Note that nobody can be heard, or can again: our deafness must not be taken for their silence."""
        if begins:
            self._deaf[namespace] += 1
            return
        self._deaf[namespace] = max(0, self._deaf[namespace] - 1)
        for process in self.all(namespace):
            process.heard_ns = max(process.heard_ns, now_ns)

    def speaking(self, namespace: str | None = None) -> Iterator[Process]:
        """Yield the processes, of one namespace or all, that may have spoken while nobody could be heard."""
        known = self._known.values() if namespace is None else self.all(namespace)
        return (process for process in known if process.life is not Life.STOPPED)

    def stalled(self, now_ns: int) -> None:
        """Note that we did not listen for a while: what was said meanwhile is still to be read."""
        for process in self._known.values():
            process.heard_ns = max(process.heard_ns, now_ns)

    def lost(self, now_ns: int) -> Iterator[tuple[Process, str]]:
        """Yield each process that is to be given up now, with what is known of why; forget those long gone."""
        if now_ns < self._next_look_ns:
            return
        self._next_look_ns = now_ns + LOOK_NS
        for key, process in list(self._known.items()):
            if self._deaf[process.namespace]:
                continue
            silence_ns = now_ns - process.heard_ns
            if process.life is not Life.ALIVE:
                if silence_ns > self._ttl_ns:
                    self._forget(key)
            elif not process.beats:
                if silence_ns > 2 * self._ttl_ns:
                    self._forget(key)
            elif process.followed_ns and silence_ns > self._follow_ns:
                process.life = Life.LOST
                yield process, "another process took its place"
            elif silence_ns > self._timeout_ns:
                process.life = Life.LOST
                yield process, ""

    def state(self) -> ProcessesState:
        """Return who is known; who cannot be heard just now is told anew by whoever listens next."""
        return ProcessesState(list(self._known.values()), list(self._speaking.values()), sorted(self._taken))

    def restore(self, state: ProcessesState) -> None:
        """Go on from a state whose processes are restored."""
        self._known = {(p.namespace, p.emitter, p.boot): p for p in state.known}
        self._speaking = {(p.namespace, p.emitter): p for p in state.speaking}
        self._taken = set(state.taken)

    def _forget(self, key: tuple[str, str, str]) -> None:
        process = self._known.pop(key)
        if self._speaking.get(key[:2]) is process:
            del self._speaking[key[:2]]
