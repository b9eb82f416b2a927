"""What can happen while the fleet's state is polled, each as one log line and one counter."""

import logging
from dataclasses import dataclass
from typing import ClassVar

from agent.telemetry.events import Event


@dataclass(frozen=True, slots=True)
class PollFailed(Event):
    """A server could not be asked; what only it can tell is not told meanwhile."""

    receiver: str
    redis: str
    subjects: str
    reason: str

    phrase: ClassVar[str] = "failed to read the fleet's state; it is not reported meanwhile"
    counter: ClassVar[str | None] = "stem_agent.polls.failed"
    labels: ClassVar[tuple[str, ...]] = ("receiver", "subjects")


@dataclass(frozen=True, slots=True)
class PollIncomplete(Event):
    """A part of the fleet's state cannot be told; `detail` says which, and why."""

    receiver: str
    redis: str
    subject: str
    detail: str

    phrase: ClassVar[str] = "a part of the fleet's state cannot be told"
    counter: ClassVar[str | None] = "stem_agent.polls.incomplete"
    labels: ClassVar[tuple[str, ...]] = ("receiver", "subject")


@dataclass(frozen=True, slots=True)
class PollLate(Event):
    """A turn took longer than the interval, so turns were left out."""

    receiver: str
    seconds: float
    interval: float

    phrase: ClassVar[str] = "reading the fleet's state takes longer than the interval"
    counter: ClassVar[str | None] = "stem_agent.polls.late"
    labels: ClassVar[tuple[str, ...]] = ("receiver",)


@dataclass(frozen=True, slots=True)
class TotalsGoOn(Event):
    """Another agent led before; what happened in between is counted by what it left."""

    receiver: str
    away_s: float

    phrase: ClassVar[str] = "going on from where the leader before stopped"
    level: ClassVar[int] = logging.INFO


@dataclass(frozen=True, slots=True)
class TotalsInterrupted(Event):
    """What the leader before left cannot be used: what happened since it told its totals last is in nobody's."""

    receiver: str
    reason: str

    phrase: ClassVar[str] = "the totals of the fleet begin anew; what happened since the leader before is not in them"
    counter: ClassVar[str | None] = "stem_agent.polls.interrupted"
    labels: ClassVar[tuple[str, ...]] = ("receiver",)
