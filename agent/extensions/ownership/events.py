"""What the keeper of the leases has to say."""

import logging
from dataclasses import dataclass
from typing import ClassVar

from agent.telemetry.events import Event

FAILURES = "stem_agent.ownership.failures"


@dataclass(frozen=True, slots=True)
class BecameLeader(Event):
    """This agent speaks for the fleet now."""

    ownership: str
    namespace: str
    duties: str

    phrase: ClassVar[str] = "became the leader of the fleet"
    level: ClassVar[int] = logging.INFO
    labels: ClassVar[tuple[str, ...]] = ("ownership",)


@dataclass(frozen=True, slots=True)
class LeaderResigned(Event):
    """This agent gave the leadership up because it stops."""

    ownership: str
    namespace: str

    phrase: ClassVar[str] = "gave up leading the fleet; another agent may do so at once"
    level: ClassVar[int] = logging.INFO
    labels: ClassVar[tuple[str, ...]] = ("ownership",)


@dataclass(frozen=True, slots=True)
class LeaderLost(Event):
    """This agent led the fleet, and does no more."""

    ownership: str
    namespace: str
    reason: str

    phrase: ClassVar[str] = "leads the fleet no more; another agent may, and tells its state"
    labels: ClassVar[tuple[str, ...]] = ("ownership",)


@dataclass(frozen=True, slots=True)
class LeasesUnreachable(Event):
    """Redis did not take or answer what has to be agreed on."""

    ownership: str
    redis: str
    reason: str

    phrase: ClassVar[str] = "failed to agree with other agents; leases run out unless that heals"
    counter: ClassVar[str | None] = FAILURES
    labels: ClassVar[tuple[str, ...]] = ("ownership",)


@dataclass(frozen=True, slots=True)
class NewsUnheard(Event):
    """The channel on which agents tell of changes cannot be used."""

    ownership: str
    redis: str
    reason: str

    phrase: ClassVar[str] = "failed to tell or hear of changes at once; hand-overs wait for the next renewal"
    labels: ClassVar[tuple[str, ...]] = ("ownership",)
