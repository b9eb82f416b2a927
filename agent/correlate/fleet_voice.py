"""What is read of a fleet, told in its name: who speaks for itself is left out. Thin: the correlators decide.

Each receiver that follows a fleet has a correlator of its own, while it leads. It shares nothing with that of the
signals: what is told there is this agent's, and what is told here goes on with the next leader.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import tzinfo

import msgspec

from agent.core.kept import KeptStateError
from agent.correlate.correlator import Correlator
from agent.correlate.teller import Teller
from agent.otlp.metrics import AggregatorState, InstrumentState
from agent.stem.wire import Enqueued, LostAttempt, Recorded, Tailed, Unended

_total = msgspec.msgpack.Decoder(InstrumentState)
_encoder = msgspec.msgpack.Encoder()


class FleetVoice:
    """Tells what is read by receivers that lead, each through a teller that `make` returns."""

    def __init__(self, make: Callable[[], Teller]) -> None:
        self._make = make
        self._tellers: dict[str, Teller] = {}
        self._asked_ns: dict[str, int] = {}

    def __iter__(self) -> Iterator[Teller]:
        return iter(list(self._tellers.values()))

    def take_up(self, receiver: str, totals: Mapping[str, bytes], now_ns: int) -> Teller:
        """Begin, going on from totals, and return who does; raises `KeptStateError` if they are none."""
        teller = self._make()
        teller.source = f"{teller.source} {receiver}"
        try:
            known = [_total.decode(total) for total in totals.values()]
        except msgspec.DecodeError as error:
            raise KeptStateError("broken", f"totals do not fit: {error}") from error
        teller.correlator.recorder.go_on(AggregatorState(now_ns, known), now_ns)
        self._tellers[receiver] = teller
        self._asked_ns[receiver] = now_ns
        return teller

    def totals(self, receiver: str, now_ns: int, *, everything: bool) -> dict[str, bytes | None]:
        """Return the metrics of what was told: all, or those that moved since this was asked last."""
        metrics = self._tellers[receiver].correlator.recorder.metrics
        since_ns, self._asked_ns[receiver] = self._asked_ns[receiver], now_ns
        moved = metrics.changes(0 if everything else since_ns)
        return {name: _encoder.encode(total) if total else None for name, total in moved}

    def give_up(self, receiver: str) -> Teller | None:
        """Tell no more; return who did, for a last word."""
        return self._tellers.pop(receiver, None)

    def take(
        self, receiver: str, facts: Sequence[Tailed], zone: tzinfo, heard: Correlator, now_ns: int
    ) -> Iterator[Callable[[], None]]:
        """Yield a step for each fact: what those tell that are `heard` serves as repair there."""
        teller = self._tellers.get(receiver) or next(iter(self._tellers.values()), None)
        fleet = teller.correlator if teller else None
        for fact in facts:
            if step := _step(fact, zone, heard, fleet, now_ns):
                yield step


def _step(
    fact: Tailed, zone: tzinfo, heard: Correlator, fleet: Correlator | None, now_ns: int
) -> Callable[[], None] | None:
    if isinstance(fact, Recorded | Unended):
        worker = fact.record.worker if isinstance(fact, Recorded) else fact.worker
        speaks = heard.hears(fact.namespace, worker, now_ns) if worker else heard.hears_anybody(fact.namespace)
        if speaks:
            beside = isinstance(fact, Recorded) and bool(worker)
            return (lambda: heard.read_beside(fact, zone, now_ns)) if beside else None  # type: ignore[arg-type]
        if fact.claimed:
            return None
    elif isinstance(fact, LostAttempt):
        if heard.hears(fact.namespace, fact.worker, now_ns):
            return None  # who is heard here is judged here
        fleet = fleet or heard
    elif isinstance(fact, Enqueued) and heard.hears_anybody(fact.namespace):
        fact = msgspec.structs.replace(fact, claimed=True)
    told = fleet
    return (lambda: told.read(fact, zone, now_ns)) if told else None
