"""The shell that looks for what ran on workers that are late, and tells what was lost with those that are gone."""

from collections.abc import Iterable, Mapping
from datetime import tzinfo

from agent.receivers.stem_state.vanished import MOST_PENDING, Vanishing, read_claims
from agent.stem.client.reader import RedisReader
from agent.stem.heartbeat import Heartbeat
from agent.stem.keys import Keys
from agent.stem.questions.deliveries import read_pending
from agent.stem.questions.query import QueryRefusedError
from agent.stem.questions.records import read_records
from agent.stem.wire import LostAttempt

Beats = Mapping[str, Heartbeat]


class Search:
    """Asks the broker for what is pending, and the result backend for what runs; nothing while no worker is late.

    Of emitters that an agent has claimed nothing is told: that agent does. Raises what redis-py raises, and
    `QueryRefusedError`.
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

    async def look(self, late: Beats, queues: Iterable[str]) -> None:
        """See what runs on the workers that are late; every worker that is not, is back."""
        self._vanishing.only(late)
        known = list(queues)
        for worker, beat in late.items():
            theirs = [queue for queue in known if queue in beat.extras.subscriptions.queues] or known
            questions = [read_pending(self._keys, queue, MOST_PENDING, worker) for queue in theirs]
            answers = await self._broker.ask(*questions)
            pending = [each for told in answers if not isinstance(told, QueryRefusedError) for each in told]
            ids = {each.envelope.id for each in pending if each.envelope and each.envelope.id}
            records = await self._results.answer(read_records(self._result_keys, sorted(ids)))
            self._vanishing.saw(worker, pending, records)

    async def lost(self, down: Beats) -> list[LostAttempt]:
        """Return what was lost with the workers that went down."""
        found: list[LostAttempt] = []
        for worker, beat in down.items():
            if not (wanted := self._vanishing.wanted(worker)):
                continue
            namespace = beat.own_namespace or self._namespace
            emitters = [beat.extras.host] if beat.extras.host else []
            if await self._broker.answer(read_claims(emitters, namespace)):
                continue
            records = await self._results.answer(read_records(self._result_keys, wanted))
            found += self._vanishing.gone(worker, beat, namespace, records)
        return found
