"""What joins two components of a running graph: the one before keeps it, the one behind may be another from now on.

While a next step is away, what is on its way is held here, in its order; nothing is lost, and nobody waits.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import tzinfo

from agent.otlp.batch import Batch, Consumer, Fanout, Kind
from agent.stem.wire import Fact, SignalConsumer, Tailed


class SignalFanout:
    """Hands facts to several connectors, or to none."""

    def __init__(self, consumers: Sequence[SignalConsumer]) -> None:
        self._consumers = tuple(consumers)

    def consume_facts(self, facts: Sequence[Fact], zone: tzinfo) -> None:
        """Hand the facts to each consumer in turn."""
        for consumer in self._consumers:
            consumer.consume_facts(facts, zone)

    def consume_tailed(self, receiver: str, facts: Sequence[Tailed], zone: tzinfo) -> None:
        """Hand what was read to each consumer in turn."""
        for consumer in self._consumers:
            consumer.consume_tailed(receiver, facts, zone)

    def take_up(self, receiver: str, totals: Mapping[str, bytes]) -> None:
        """Have each consumer begin, from totals whose names begin with its place."""
        for place, consumer in enumerate(self._consumers):
            own = {key.removeprefix(f"{place}."): each for key, each in totals.items() if key.startswith(f"{place}.")}
            consumer.take_up(receiver, own)

    def totals(self, receiver: str, *, everything: bool = False) -> dict[str, bytes | None]:
        """Return the totals of all consumers."""
        return {
            f"{place}.{key}": each
            for place, consumer in enumerate(self._consumers)
            for key, each in consumer.totals(receiver, everything=everything).items()
        }

    def give_up(self, receiver: str, *, told: bool) -> None:
        """Have each consumer tell no more of the fleet."""
        for consumer in self._consumers:
            consumer.give_up(receiver, told=told)


class _Holding:
    """Lets calls through, or holds them until there is somebody again."""

    def __init__(self) -> None:
        self._held: list[Callable[[], None]] | None = None

    def hold(self) -> None:
        """Hold from now on what comes."""
        if self._held is None:
            self._held = []

    def let_go(self) -> None:
        """Let through what was held, and from now on everything."""
        held, self._held = self._held or [], None
        for call in held:
            call()


class SignalJoint(_Holding):
    """The next step of a receiver. What is asked for an answer is not held: who asks stops before it."""

    def __init__(self) -> None:
        super().__init__()
        self._next: SignalConsumer = SignalFanout(())

    def lead_to(self, consumers: Sequence[SignalConsumer]) -> None:
        """Lead to these connectors from now on."""
        self._next = consumers[0] if len(consumers) == 1 else SignalFanout(consumers)

    def consume_facts(self, facts: Sequence[Fact], zone: tzinfo) -> None:
        """Hand facts on, or hold them."""
        if self._held is None:
            self._next.consume_facts(facts, zone)
        else:
            self._held.append(lambda: self._next.consume_facts(facts, zone))

    def consume_tailed(self, receiver: str, facts: Sequence[Tailed], zone: tzinfo) -> None:
        """Hand what was read on, or hold it."""
        if self._held is None:
            self._next.consume_tailed(receiver, facts, zone)
        else:
            self._held.append(lambda: self._next.consume_tailed(receiver, facts, zone))

    def take_up(self, receiver: str, totals: Mapping[str, bytes]) -> None:
        """Have the next step begin to tell of the fleet."""
        self._next.take_up(receiver, totals)

    def totals(self, receiver: str, *, everything: bool = False) -> dict[str, bytes | None]:
        """Return the totals of the next step."""
        return self._next.totals(receiver, everything=everything)

    def give_up(self, receiver: str, *, told: bool) -> None:
        """Have the next step tell no more of the fleet."""
        self._next.give_up(receiver, told=told)


class TelemetryJoint(_Holding):
    """The first step of all pipelines of one kind that begin at one component."""

    def __init__(self) -> None:
        super().__init__()
        self._next: Consumer = Fanout(())

    def lead_to(self, consumers: Sequence[Consumer]) -> None:
        """Lead to these steps from now on."""
        self._next = consumers[0] if len(consumers) == 1 else Fanout(consumers)

    def consume(self, batch: Batch) -> None:
        """Hand a batch on, or hold it."""
        if self._held is None:
            self._next.consume(batch)
        else:
            self._held.append(lambda: self._next.consume(batch))


@dataclass(slots=True)
class Joints:
    """Everything that one component hands something to; kinds without a pipeline have no joint."""

    signals: SignalJoint = field(default_factory=SignalJoint)
    telemetry: dict[Kind, TelemetryJoint] = field(default_factory=dict)

    def lead_to(self, heads: Mapping[Kind, Sequence[Consumer]]) -> None:
        """Lead each kind to the first steps of its pipelines from now on."""
        for kind in [kind for kind in self.telemetry if kind not in heads]:
            self.telemetry.pop(kind).let_go()
        for kind, consumers in heads.items():
            self.telemetry.setdefault(kind, TelemetryJoint()).lead_to(consumers)
