"""The shell that looks for what ran on workers that are late, and tells what was lost with those that are gone."""

from collections.abc import Iterable, Iterator, Mapping
from datetime import tzinfo
from itertools import islice

from agent.receivers.stem_state.vanished import MOST_PENDING, Records, Vanishing
from agent.stem.client.reader import RedisReader
from agent.stem.heartbeat import Heartbeat
from agent.stem.keys import Keys
from agent.stem.questions.claims import read_claims
from agent.stem.questions.deliveries import Pending, read_pending
from agent.stem.questions.query import Query, QueryRefusedError
from agent.stem.questions.records import read_records
from agent.stem.wire import LostAttempt

CHUNK = 100
"""Workers asked about at once: a whole node's, and no more than a few thousand commands."""

MOST_OWED = 1000
"""Workers that are down and could not be asked about yet."""

Beats = Mapping[str, Heartbeat]
"""The last heartbeat of each worker, by its id."""


class Search:
    """Asks the broker for what is pending, and the result backend for what runs; nothing while no worker is late.

    The readers are not paced: a turn that waits for thirty workers, one after the other, tells nothing meanwhile, and
    finds nothing in time. Of emitters that an agent has claimed nothing is told: that agent does. Raises
    what redis-py raises, and `QueryRefusedError`; who could not be asked about is asked about again.
    """

    def __init__(
        self, broker: RedisReader, results: RedisReader, keys: Keys, result_keys: Keys, namespace: str, zone: tzinfo
    ) -> None:
        self._broker = broker
        self._results = results
        self._keys = keys
        self._result_keys = result_keys
        self._namespace = namespace
        self._vanishing = Vanishing(zone)
        self._down: dict[str, Heartbeat] = {}
        self._found: list[LostAttempt] = []

    async def look(self, late: Beats, queues: Iterable[str]) -> None:
        """See what runs on the workers that are late; every worker that is not, and did not go down, is back."""
        self._vanishing.only({*late, *self._down})
        known = list(queues)
        for some in _chunks(late):
            questions = [(worker, each) for worker, beat in some.items() for each in self._pending(worker, beat, known)]
            answers = await self._broker.ask(*(question for _, question in questions))
            pending: dict[str, list[Pending]] = {worker: [] for worker in some}
            for (worker, _), told in zip(questions, answers, strict=True):
                pending[worker] += [] if isinstance(told, QueryRefusedError) else told
            ids = {each.envelope.id for held in pending.values() for each in held if each.envelope}
            records = await self._records(filter(None, ids))
            for worker, held in pending.items():
                self._vanishing.saw(worker, held, records)

    def _pending(self, worker: str, beat: Heartbeat, known: list[str]) -> Iterator[Query[list[Pending]]]:
        theirs = [queue for queue in known if queue in beat.extras.subscriptions.queues] or known
        return (read_pending(self._keys, queue, MOST_PENDING, worker) for queue in theirs)

    async def lost(self, down: Beats) -> list[LostAttempt]:
        """Return what was lost with the workers that went down."""
        self._down |= {worker: beat for worker, beat in down.items() if self._vanishing.wanted(worker)}
        for oldest in list(self._down)[:-MOST_OWED]:
            del self._down[oldest]
        for some in _chunks(self._down):
            await self._give_up(some)
        found, self._found = self._found, []
        return found

    async def _give_up(self, down: Beats) -> None:
        claims = await self._broker.ask(*(self._claims(beat) for beat in down.values()))
        wanted = [task for worker in down for task in self._vanishing.wanted(worker)]
        records = await self._records(wanted)
        for (worker, beat), claimed in zip(down.items(), claims, strict=True):
            if isinstance(claimed, QueryRefusedError):
                raise claimed
            if not claimed:
                self._found += self._vanishing.gone(worker, beat, self._namespace, records)
            del self._down[worker]

    def _claims(self, beat: Heartbeat) -> Query[set[str]]:
        emitters = [beat.extras.host] if beat.extras.host else []
        return read_claims(emitters, beat.own_namespace or self._namespace)

    async def _records(self, task_ids: Iterable[str]) -> Records:
        return await self._results.answer(read_records(self._result_keys, sorted(task_ids)))


def _chunks(beats: Beats) -> Iterator[Beats]:
    rest = iter(list(beats.items()))
    return iter(lambda: dict(islice(rest, CHUNK)), {})
