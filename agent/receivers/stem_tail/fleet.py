"""Which queues and workers a fleet has, what was given up there, and who else listens to it. Pure."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from agent.receivers.stem_tail.config import StemTailConfig
from agent.receivers.stem_tail.notes import Letters
from agent.stem.keys import Keys
from agent.stem.questions.claims import read_speakers
from agent.stem.questions.dead_letters import DeadLetter, LetterWatch
from agent.stem.questions.discovery import QueueWalk
from agent.stem.questions.query import Query, QueryRefusedError
from agent.stem.questions.workers import read_heartbeats

if TYPE_CHECKING:
    from agent.stem.heartbeat import Heartbeat

MAX_WORKERS = 10_000


class FleetWatch:
    """Asks now and then. `queues` are all that were found, `troubles` says what could not be."""

    def __init__(self, config: StemTailConfig, letters: Letters) -> None:
        self._config = config
        self._left = dict(letters)
        self._keys, self._result_keys = Keys(config.store_namespace), Keys(config.results.namespace)
        self._walk = QueueWalk(self._keys)
        self._letters: dict[str, LetterWatch] = {}
        self._beats: dict[str, Heartbeat] = {}
        self._namespaces: dict[str, str] = {}  # of every worker that was ever seen: it may be read of when it is gone
        self._heard: set[tuple[str, str]] = set()
        self._asked: list[str] = []
        self._rounds = 0
        self._new: set[str] = set()
        self.queues: set[str] = set()
        self.troubles: list[str] = []

    def ask_workers(self) -> list[Query[Any]]:
        """Ask for heartbeats."""
        return [read_heartbeats(self._result_keys, MAX_WORKERS, ())]

    def take_workers(self, answers: Sequence[Any]) -> None:
        """Note who there is, and which queues they serve."""
        self.troubles = []
        (found,) = answers
        if self.answered(found, "heartbeats"):
            self._beats = {each.heartbeat.worker_id: each.heartbeat for each in found.alive}
            for beat in self._beats.values():
                self._remember(beat)
                self.queues |= {*beat.extras.subscriptions.queues, *(each.name for each in beat.queues)}

    def _remember(self, beat: "Heartbeat") -> None:
        if beat.own_namespace:
            self._namespaces.pop(beat.worker_id, None)
            self._namespaces[beat.worker_id] = beat.own_namespace
        if len(self._namespaces) > MAX_WORKERS:
            del self._namespaces[next(iter(self._namespaces))]

    def ask_broker(self, queues: Iterable[str], *, claims: bool) -> list[Query[Any]]:
        """Ask for more queues, for new dead letters of those that are followed, and whom agents hear, if `claims`."""
        self._letters = {queue: self._letters.get(queue) or self._watch(queue) for queue in queues}
        namespaces = {self._config.namespace, *(self.namespace_of(worker) for worker in self._beats)}
        self._asked = sorted(namespaces) if claims else []
        return [
            self._walk.read(self._config.scan_budget),
            *(watch.read() for watch in self._letters.values()),
            *(read_speakers(namespace) for namespace in self._asked),
        ]

    def _watch(self, queue: str) -> LetterWatch:
        watch = LetterWatch(self._keys, queue, new=queue in self._new)
        self._new.discard(queue)
        if left := self._left.pop(queue, None):
            watch.restore(left)
        return watch

    def letters(self) -> Letters:
        """Return up to where dead letters were read."""
        return {queue: watch.state for queue, watch in self._letters.items() if watch.state is not None}

    def take_broker(self, answers: Sequence[Any]) -> list[tuple[str, DeadLetter]]:
        """Note what was found; return the letters of tasks that were given up, by queue, oldest first."""
        found, *others = answers
        rounds, self._rounds = self._rounds, self._walk.rounds
        if self.answered(found, "looking for queues"):
            self._new |= found - self.queues if rounds else set()  # else they may have been there before
            self.queues |= found
        letters, claims = others[: len(self._letters)], others[len(self._letters) :]
        for namespace, workers in zip(self._asked, claims, strict=True):
            if self.answered(workers, "whom other agents hear"):
                self._heard = {each for each in self._heard if each[0] != namespace}
                self._heard |= {(namespace, worker) for worker in workers}
        read: list[tuple[str, DeadLetter]] = []
        for queue, told in zip(self._letters, letters, strict=True):
            if self.answered(told, "dead letters"):
                read += [(queue, letter) for letter in reversed(told) if letter.envelope.id]
            if self._letters[queue].overrun:
                self.troubles.append(f"more dead letters in {queue} than are read at once")
        return read

    def namespace_of(self, worker: str | None) -> str:
        """Return the worker namespace that a worker says, or said, it is in; else that of the configuration."""
        return self._namespaces.get(worker or "") or self._config.namespace

    def is_claimed(self, worker: str | None) -> bool:
        """Whether an agent listens to a worker's signals; of a worker that nobody names, whether any does."""
        return (self.namespace_of(worker), worker or "") in self._heard

    def answered(self, answer: Any, what: str) -> bool:
        """Whether a question was answered; else it is a trouble."""
        if isinstance(answer, QueryRefusedError):
            self.troubles.append(f"{what}: {answer}")
            return False
        return True
