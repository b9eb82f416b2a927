"""What can happen to the receiver, each as one log line and one counter."""

import logging
from dataclasses import dataclass
from typing import ClassVar

from agent.telemetry.events import Event


@dataclass(frozen=True, slots=True)
class Subscribed(Event):
    """The subscription stands."""

    receiver: str
    redis: str
    channels: str

    phrase: ClassVar[str] = "subscribed to signals"
    level: ClassVar[int] = logging.INFO
    labels: ClassVar[tuple[str, ...]] = ("receiver",)


@dataclass(frozen=True, slots=True)
class StepDeclined(Event):
    """Redis refused something that the agent can do without."""

    receiver: str
    step: str
    answer: str

    phrase: ClassVar[str] = "redis declined an optional step; going on without it"
    labels: ClassVar[tuple[str, ...]] = ("receiver", "step")


@dataclass(frozen=True, slots=True)
class ConnectFailed(Event):
    """An attempt to connect failed and will be repeated."""

    receiver: str
    redis: str
    reason: str
    retry_in: float

    phrase: ClassVar[str] = "failed to connect to redis; signals published meanwhile are lost"
    counter: ClassVar[str | None] = "stem_agent.receiver.connect_failures"
    labels: ClassVar[tuple[str, ...]] = ("receiver",)


@dataclass(frozen=True, slots=True)
class Disconnected(Event):
    """A standing subscription ended: whatever is published until the next one is lost."""

    receiver: str
    redis: str
    reason: str

    phrase: ClassVar[str] = "lost the connection to redis; reconnecting"
    counter: ClassVar[str | None] = "stem_agent.receiver.reconnects"
    labels: ClassVar[tuple[str, ...]] = ("receiver",)


@dataclass(frozen=True, slots=True)
class CanaryUnpublished(Event):
    """A canary could not be published, so nothing is known about the subscription."""

    receiver: str
    reason: str

    phrase: ClassVar[str] = "failed to publish a canary; a subscription that hears nothing goes unnoticed meanwhile"
    counter: ClassVar[str | None] = "stem_agent.canary.failures"
    labels: ClassVar[tuple[str, ...]] = ("receiver",)


@dataclass(frozen=True, slots=True)
class CanaryMissed(Event):
    """A canary was published and did not come back."""

    receiver: str
    timeout: float

    phrase: ClassVar[str] = "a canary was published but not heard; subscribing anew"
    counter: ClassVar[str | None] = "stem_agent.canary.missed"
    labels: ClassVar[tuple[str, ...]] = ("receiver",)


@dataclass(frozen=True, slots=True)
class SignalsMissing(Event):
    """Signals with numbers between two that arrived did not arrive."""

    receiver: str
    emitter: str
    boot: str
    first: int
    last: int

    phrase: ClassVar[str] = "signals were lost on the way"
    counter: ClassVar[str | None] = "stem_agent.signals.lost"
    labels: ClassVar[tuple[str, ...]] = ("receiver",)
    constant: ClassVar[tuple[tuple[str, str], ...]] = (("reason", "gap"),)

    @property
    def amount(self) -> int:
        """How many numbers are missing."""
        return self.last - self.first + 1


@dataclass(frozen=True, slots=True)
class SignalUndecodable(Event):
    """A payload is not a signal; `detail` names what is wrong with it, and never quotes it."""

    receiver: str
    emitter: str
    detail: str

    phrase: ClassVar[str] = "signal could not be decoded"
    counter: ClassVar[str | None] = "stem_agent.signals.lost"
    labels: ClassVar[tuple[str, ...]] = ("receiver",)
    constant: ClassVar[tuple[tuple[str, str], ...]] = (("reason", "decode"),)


@dataclass(frozen=True, slots=True)
class SignalOversize(Event):
    """A payload is larger than `max_payload`."""

    receiver: str
    emitter: str
    size: int
    limit: int

    phrase: ClassVar[str] = "signal is larger than max_payload"
    counter: ClassVar[str | None] = "stem_agent.signals.lost"
    labels: ClassVar[tuple[str, ...]] = ("receiver",)
    constant: ClassVar[tuple[tuple[str, str], ...]] = (("reason", "oversize"),)


@dataclass(frozen=True, slots=True)
class SignalShed(Event):
    """A raw signal had to go because the backlog was full, or memory short."""

    receiver: str
    backlog: int

    phrase: ClassVar[str] = "shedding the oldest signals: the backlog is full, or memory is short"
    level: ClassVar[int] = logging.ERROR
    counter: ClassVar[str | None] = "stem_agent.signals.lost"
    labels: ClassVar[tuple[str, ...]] = ("receiver",)
    constant: ClassVar[tuple[tuple[str, str], ...]] = (("reason", "shed"),)


@dataclass(frozen=True, slots=True)
class SignalUnread(Event):
    """A raw signal was still waiting to be decoded when the agent had to stop."""

    receiver: str

    phrase: ClassVar[str] = "stopped before all signals were decoded"
    level: ClassVar[int] = logging.ERROR
    counter: ClassVar[str | None] = "stem_agent.signals.lost"
    labels: ClassVar[tuple[str, ...]] = ("receiver",)
    constant: ClassVar[tuple[tuple[str, str], ...]] = (("reason", "shutdown"),)


@dataclass(frozen=True, slots=True)
class SignalNotOwned(Event):
    """A signal came while nobody could say whether it is ours to process."""

    receiver: str

    phrase: ClassVar[str] = "signals are thrown away: the lease on their emitter is over; another agent may have it"
    counter: ClassVar[str | None] = "stem_agent.signals.lost"
    labels: ClassVar[tuple[str, ...]] = ("receiver",)
    constant: ClassVar[tuple[tuple[str, str], ...]] = (("reason", "not_owned"),)


@dataclass(frozen=True, slots=True)
class KeptShed(Event):
    """A signal of an emitter that is not ours yet had to go; where its owner did not process it, it is a gap later."""

    receiver: str
    count: int
    limit: int

    phrase: ClassVar[str] = "shedding the oldest signals that are kept for a hand-over: too many, or memory is short"
    counter: ClassVar[str | None] = "stem_agent.ownership.shed"
    labels: ClassVar[tuple[str, ...]] = ("receiver",)
    amount_in: ClassVar[str] = "count"


@dataclass(frozen=True, slots=True)
class EmittersTaken(Event):
    """This agent processes the signals of more emitters."""

    receiver: str
    emitters: int
    first: str

    phrase: ClassVar[str] = "took over emitters"
    level: ClassVar[int] = logging.INFO
    labels: ClassVar[tuple[str, ...]] = ("receiver",)
    amount_in: ClassVar[str] = "emitters"


@dataclass(frozen=True, slots=True)
class EmittersReleased(EmittersTaken):
    """This agent handed emitters over."""

    phrase: ClassVar[str] = "handed over emitters"


@dataclass(frozen=True, slots=True)
class EmittersLost(EmittersTaken):
    """Another agent took over while we could not renew our leases."""

    phrase: ClassVar[str] = "lost emitters to another agent; what was heard and not processed meanwhile is lost"
    level: ClassVar[int] = logging.WARNING


@dataclass(frozen=True, slots=True)
class LeasesLapsed(EmittersTaken):
    """The leases ended before they could be renewed."""

    phrase: ClassVar[str] = "the leases on emitters ended before they could be renewed; nothing of theirs is processed"
    level: ClassVar[int] = logging.WARNING
