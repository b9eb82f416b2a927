"""Dead letters as they come: each is counted once, with its reason. Pure."""

from collections.abc import Sequence
from datetime import tzinfo
from typing import Any

from agent.instruments import DEAD_LETTERED
from agent.receivers.stem_state.notes import LetterNotes
from agent.receivers.stem_state.survey import Moment, Survey
from agent.stem.keys import Keys
from agent.stem.questions.dead_letters import DeadLetter, LetterWatch
from agent.stem.questions.query import Query

CARDINALITY_LIMIT = 2000
"""Series of letters: the names of their tasks and their reasons are whatever somebody wrote."""
SERIES_TTL_SECONDS = 3600.0
"""After so long without another letter a series ends."""


class LetterSurvey(Survey):
    """Counts the letters that were added to the dead of each queue since they were first read."""

    def __init__(self, keys: Keys, namespace: str, zone: tzinfo, now_ns: int) -> None:
        super().__init__(namespace, zone, now_ns, cardinality_limit=CARDINALITY_LIMIT, series_ttl=SERIES_TTL_SECONDS)
        self._keys = keys
        self.queues: list[str] = []
        self.new: set[str] = set()
        """Those that were not there when all were looked for."""
        self._watches: dict[str, LetterWatch] = {}
        self._noted: dict[str, tuple[int, list[bytes]]] = {}

    def notes(self) -> LetterNotes:
        """Return what the next leader has to know."""
        states = {queue: watch.state for queue, watch in self._watches.items()}
        return LetterNotes(self._noted | {queue: state for queue, state in states.items() if state})

    def restore(self, notes: LetterNotes) -> None:
        """Go on from the notes of the leader before, with each queue that is found again."""
        self._noted = notes.seen

    def _watch(self, queue: str) -> LetterWatch:
        watch = LetterWatch(self._keys, queue, new=queue in self.new)
        if noted := self._noted.pop(queue, None):
            watch.restore(noted)
        return watch

    def ask(self, redis_ms: int) -> list[Query[Any]]:  # noqa: ARG002 - letters have no age here
        """Ask each queue for its new letters."""
        self._watches = {queue: self._watches.get(queue) or self._watch(queue) for queue in self.queues}
        return [watch.read() for watch in self._watches.values()]

    def take(self, answers: Sequence[Any], moment: Moment) -> None:
        """Count them."""
        uncounted = []
        for (queue, watch), letters in zip(self._watches.items(), answers, strict=True):
            if self.answered(letters, f"dead letters of queue {queue}"):
                for letter in letters:
                    self.add(DEAD_LETTERED, self._series(letter, queue), moment)
                uncounted += [queue] if watch.overrun else []
        if uncounted:
            self.troubles.append(f"more dead letters than can be counted in one turn: queue {', '.join(uncounted)}")

    def _series(self, letter: DeadLetter, queue: str) -> tuple[str, ...]:
        return letter.envelope.name or "", queue, self.namespace, letter.reason or ""
