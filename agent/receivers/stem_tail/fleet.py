"""Which queues and workers a fleet has, what was given up there, and who else listens to it. Pure."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from agent.receivers.stem_tail.config import StemTailConfig
from agent.stem.keys import Keys
from agent.stem.questions.claims import read_claims
from agent.stem.questions.dead_letters import LetterWatch
from agent.stem.questions.discovery import QueueWalk
from agent.stem.questions.query import Query, QueryRefusedError
from agent.stem.questions.workers import read_heartbeats

if TYPE_CHECKING:
    from agent.stem.heartbeat import Heartbeat

MAX_WORKERS = 10_000


class FleetWatch:
    """Asks now and then. `queues` are all that were found, `troubles` says what could not be."""

    def __init__(self, config: StemTailConfig) -> None:
        self._config = config
        self._keys, self._result_keys = Keys(config.store_namespace), Keys(config.results.namespace)
        self._walk = QueueWalk(self._keys)
        self._letters: dict[str, LetterWatch] = {}
        self._beats: dict[str, Heartbeat] = {}
        self._claimed: set[tuple[str, str]] = set()
        self._asked: list[str] = []
        self.queues: set[str] = set()
        self.troubles: list[str] = []

    def ask_workers(self) -> list[Query[Any]]:
        """Ask for heartbeats."""
        return [read_heartbeats(self._result_keys, MAX_WORKERS, ())]

    def take_workers(self, answers: Sequence[Any]) -> None:
        """Note who there is, and which queues they serve."""
        self.troubles = []
        (found,) = answers
        if self._answered(found, "heartbeats"):
            self._beats = {each.heartbeat.worker_id: each.heartbeat for each in found.alive}
            for beat in self._beats.values():
                self.queues |= {*beat.extras.subscriptions.queues, *(each.name for each in beat.queues)}

    def ask_broker(self, queues: Iterable[str], *, claims: bool) -> list[Query[Any]]:
        """Ask for more queues, for new dead letters of those that are followed, and for `claims` of other agents."""
        self._letters = {queue: self._letters.get(queue) or LetterWatch(self._keys, queue) for queue in queues}
        self._asked = sorted({self.namespace_of(worker) for worker in self._beats}) if claims else []
        return [
            self._walk.read(self._config.scan_budget),
            *(watch.read() for watch in self._letters.values()),
            *(read_claims(self._hosts(namespace), namespace) for namespace in self._asked),
        ]

    def take_broker(self, answers: Sequence[Any]) -> list[str]:
        """Note what was found; return the tasks that were given up."""
        found, *others = answers
        if self._answered(found, "looking for queues"):
            self.queues |= found
        letters, claims = others[: len(self._letters)], others[len(self._letters) :]
        for namespace, hosts in zip(self._asked, claims, strict=True):
            if self._answered(hosts, "claims of other agents"):
                self._claimed = {each for each in self._claimed if each[0] != namespace}
                self._claimed |= {(namespace, host) for host in hosts}
        read = [letter for told in letters if self._answered(told, "dead letters") for letter in told]
        return [letter.envelope.id for letter in read if letter.envelope.id]

    def namespace_of(self, worker: str | None) -> str:
        """Return the worker namespace that a worker says it is in; else that of the configuration."""
        beat = self._beats.get(worker) if worker else None
        return (beat.own_namespace if beat else None) or self._config.namespace

    def is_claimed(self, worker: str | None) -> bool:
        """Whether an agent listens to a worker's signals; of a worker that nobody names, whether any does."""
        if worker is None:
            return bool(self._claimed)
        beat = self._beats.get(worker)
        return beat is not None and (self.namespace_of(worker), beat.extras.host or "") in self._claimed

    def _hosts(self, namespace: str) -> list[str]:
        beats = (beat for worker, beat in self._beats.items() if self.namespace_of(worker) == namespace)
        return sorted({beat.extras.host for beat in beats if beat.extras.host})

    def _answered(self, answer: Any, what: str) -> bool:
        if isinstance(answer, QueryRefusedError):
            self.troubles.append(f"{what}: {answer}")
            return False
        return True
