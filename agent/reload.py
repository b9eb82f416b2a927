"""When a running agent takes another configuration: on SIGHUP, and with `--watch-config` when a file changed.

What is read is checked first, and what is wrong with it changes nothing. Every try costs one line and one count.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from agent.configuration import AgentConfig
from agent.core.errors import AgentError, ConfigError
from agent.settings.reloading import Stamp, stamp
from agent.telemetry.events import Event, Telemetry

RELOADS = "stem_agent.config.reloads"
LOOK_SECONDS = 1.0
"""How often watched files are looked at; one that changed is read when it has not changed again for so long."""
_MOST_PROBLEMS = 3

Load = Callable[[], AgentConfig]
"""Reads the configuration anew, and checks it; raises `AgentError`."""


@dataclass(frozen=True, slots=True)
class ConfigReloaded(Event):
    """Another configuration is in use."""

    why: str
    replaced: str
    removed: str
    added: str

    phrase: ClassVar[str] = "reloaded the configuration"
    level: ClassVar[int] = logging.INFO
    counter: ClassVar[str | None] = RELOADS
    limited: ClassVar[bool] = False
    constant: ClassVar[tuple[tuple[str, str], ...]] = (("result", "applied"),)


@dataclass(frozen=True, slots=True)
class ConfigUnchanged(Event):
    """What was read says the same as before."""

    why: str

    phrase: ClassVar[str] = "the configuration is the same as before; nothing was done"
    level: ClassVar[int] = logging.INFO
    counter: ClassVar[str | None] = RELOADS
    limited: ClassVar[bool] = False
    constant: ClassVar[tuple[tuple[str, str], ...]] = (("result", "unchanged"),)


@dataclass(frozen=True, slots=True)
class ConfigRejected(Event):
    """What was read cannot be used; nothing was touched."""

    why: str
    problems: int
    error: str

    phrase: ClassVar[str] = "failed to reload the configuration; the one before stays in use"
    level: ClassVar[int] = logging.ERROR
    counter: ClassVar[str | None] = RELOADS
    limited: ClassVar[bool] = False
    constant: ClassVar[tuple[tuple[str, str], ...]] = (("result", "rejected"),)


@dataclass(frozen=True, slots=True)
class ConfigRolledBack(Event):
    """A component could not start with the new configuration; the one before is in use again."""

    why: str
    error: str

    phrase: ClassVar[str] = "the new configuration could not start; went back to the one before"
    level: ClassVar[int] = logging.ERROR
    counter: ClassVar[str | None] = RELOADS
    limited: ClassVar[bool] = False
    constant: ClassVar[tuple[tuple[str, str], ...]] = (("result", "rolled_back"),)


class Reloader:
    """Reads the configuration when somebody asks, one at a time, and hands it to `apply`.

    `apply` is told why; it tells its own outcome, and raises `AgentError` where the agent cannot go on.
    """

    def __init__(
        self,
        load: Load,
        apply: Callable[[AgentConfig, str], Awaitable[None]],
        telemetry: Telemetry,
        watched: Sequence[Path] = (),
    ) -> None:
        self._load = load
        self._apply = apply
        self._telemetry = telemetry
        self._watched = tuple(watched)
        self._why = ""
        self._asked = asyncio.Event()
        self._stamps = self._look()

    def ask(self, why: str) -> None:
        """Have the configuration read anew, now or after the reload that is under way."""
        self._why = why
        self._asked.set()

    async def run(self) -> None:
        """Wait for somebody to ask, for ever; raises what `apply` raises."""
        watch = asyncio.create_task(self._watch(), name="configuration: watch") if self._watched else None
        try:
            while True:
                await self._asked.wait()
                self._asked.clear()
                await self._reload(self._why)
        finally:
            if watch:
                watch.cancel()
                await asyncio.gather(watch, return_exceptions=True)

    async def _reload(self, why: str) -> None:
        try:
            config = await asyncio.to_thread(self._load)
        except AgentError as error:
            problems = [str(each) for each in error.problems] if isinstance(error, ConfigError) else [str(error)]
            told = "; ".join(problems[:_MOST_PROBLEMS])
            self._telemetry.emit(ConfigRejected(why, len(problems), told))
            return
        await self._apply(config, why)

    async def _watch(self) -> None:
        """Look at the files; what changed is read when it stayed the same from one look to the next."""
        moving = self._stamps
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            stamps = await asyncio.to_thread(self._look)
            if stamps == moving and stamps != self._stamps:
                self._stamps = stamps
                self.ask("file changed")
            moving = stamps

    def _look(self) -> tuple[Stamp, ...]:
        return tuple(stamp(file) for file in self._watched)
