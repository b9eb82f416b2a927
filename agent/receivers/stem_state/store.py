"""One server and database: everything that is read from it is asked together, and timed by its clock."""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from agent.core.clock import Clock
from agent.core.status import Reporter
from agent.receivers.stem_state.survey import Moment, Survey
from agent.stem.client.reader import RedisReader
from agent.stem.questions.query import QueryRefusedError, read_clock

_MS_NS = 1_000_000


class Told(NamedTuple):
    """Encoded metrics with how many data points each has; and what could not be told, by subject."""

    items: list[bytes]
    counts: list[int]
    troubles: list[tuple[str, str]]


@dataclass(slots=True)
class Store:
    """What is read from one place, by subject; `offset_ms` is its clock minus ours, None until it was asked."""

    reader: RedisReader
    report: Reporter
    clock: Clock
    surveys: dict[str, Survey] = field(default_factory=dict)
    offset_ms: int | None = None

    @property
    def subjects(self) -> str:
        """What is read from it, for people."""
        return ", ".join(self.surveys)

    def begin(self, surveys: dict[str, Survey]) -> None:
        """Begin anew, with nothing known."""
        self.surveys, self.offset_ms, self.reader.throttle = surveys, None, None

    async def told(self) -> Told:
        """Take a turn with every subject; raises what redis-py raises."""
        if self.offset_ms is None:
            self._set_clock(*await self.reader.ask(read_clock()))
        asked = {name: survey.ask(self._now_ms) for name, survey in self.surveys.items()}
        time, *answers = await self.reader.ask(read_clock(), *(query for each in asked.values() for query in each))
        self._set_clock(time)
        moment, told = Moment(self._now_ms, self.clock()), Told([], [], [])
        for name, queries in asked.items():
            mine, answers = answers[: len(queries)], answers[len(queries) :]
            items, counts = self.surveys[name].told(mine, moment)
            told.items.extend(items)
            told.counts.extend(counts)
            told.troubles.extend((name, trouble) for trouble in self.surveys[name].troubles)
        return told

    def _set_clock(self, time: Any) -> None:
        """Note the server's clock; one that may not tell its own is taken to have ours."""
        self.offset_ms = 0 if isinstance(time, QueryRefusedError) else time - self.clock() // _MS_NS

    @property
    def _now_ms(self) -> int:
        return self.clock() // _MS_NS + (self.offset_ms or 0)
