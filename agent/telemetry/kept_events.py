"""What can happen to the state that a component keeps from one process to the next."""

import logging
from dataclasses import dataclass
from typing import ClassVar

from agent.telemetry.events import Event

REFUSED = "stem_agent.state.refused"


@dataclass(frozen=True, slots=True)
class StateRefused(Event):
    """What the process before left cannot be used: `reason` is `foreign`, `version` or `broken`."""

    component: str
    reason: str
    detail: str

    phrase: ClassVar[str] = "refused the state of the process before; beginning without it"
    level: ClassVar[int] = logging.ERROR
    counter: ClassVar[str | None] = REFUSED
    labels: ClassVar[tuple[str, ...]] = ("component", "reason")


@dataclass(frozen=True, slots=True)
class StateNotKept(Event):
    """What is known could not be handed to the storage."""

    component: str
    reason: str

    phrase: ClassVar[str] = "failed to keep the state; the next process begins without it"
    level: ClassVar[int] = logging.ERROR
    counter: ClassVar[str | None] = "stem_agent.state.not_kept"
    labels: ClassVar[tuple[str, ...]] = ("component",)
