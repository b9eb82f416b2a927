"""A component's state in a storage, from one process to the next, and what can go wrong with it."""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, TypeVar

from agent.core.errors import fault
from agent.core.kept import KeptStateError
from agent.core.states import StateStore
from agent.telemetry.events import Event, Telemetry

KEEP_SECONDS = 2.0
"""For the storage, however little is left of the deadline: what it does not take is lost."""

Known = TypeVar("Known")


@dataclass(frozen=True, slots=True)
class StateRefused(Event):
    """What the process before left cannot be used: `reason` is `foreign`, `version`, `broken` or `internal_error`."""

    component: str
    reason: str
    detail: str

    phrase: ClassVar[str] = "refused the state of the process before; beginning without it"
    level: ClassVar[int] = logging.ERROR
    counter: ClassVar[str | None] = "stem_agent.state.refused"
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


class Keeping:
    """Takes a component's state from a store and puts it back; tells and counts what fails, and never raises for it.

    `began`: the state of before was taken, so there will be one to leave behind.
    """

    def __init__(self, store: StateStore, key: str, identity: str, telemetry: Telemetry) -> None:
        self._store = store
        self._key = key
        self._id = identity
        self._telemetry = telemetry
        self.began = False

    async def take(self, read: Callable[[bytes], Known]) -> Known | None:
        """Return what `read` makes of the state; None without one, or if it raises `KeptStateError`."""
        state = await self._store.take(self._key)
        self.began = True
        if state is None:
            return None
        try:
            return read(state)
        except KeptStateError as error:
            self._telemetry.emit(StateRefused(self._id, error.reason, str(error)))
        except Exception as error:  # noqa: BLE001 - a fault of ours costs the state, which is taken, not the start
            self._telemetry.emit(StateRefused(self._id, "internal_error", fault(error)))
        return None

    async def put(self, state: bytes, timeout: float) -> bool:  # noqa: ASYNC109 - the rest of a deadline
        """Leave a state to the next process; return False if that was not possible."""
        seconds = max(timeout, KEEP_SECONDS)
        try:
            async with asyncio.timeout(seconds):
                failure = "" if await self._store.put(self._key, state) else "the storage cannot be used"
        except TimeoutError:
            failure = f"the storage did not take it within {seconds:g} s"
        self.began = False
        if failure:
            self.failed(failure)
        return not failure

    def failed(self, reason: str) -> None:
        """Tell that there is nothing to leave behind."""
        self._telemetry.emit(StateNotKept(self._id, reason))
