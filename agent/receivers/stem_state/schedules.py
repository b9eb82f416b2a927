"""Schedules: who is late, and what became of each dispatch. Pure."""

from collections.abc import Sequence
from datetime import tzinfo
from typing import Any

from agent import instruments as shared
from agent.receivers.stem_state import instruments as of
from agent.receivers.stem_state.notes import ScheduleNotes
from agent.receivers.stem_state.survey import Moment, Survey
from agent.stem.keys import Keys
from agent.stem.questions.query import Query
from agent.stem.questions.schedules import HistoryWatch, read_schedules

_RUNS = 100
"""Runs read of one entry in one turn; those beyond are read in the next."""
_TOTALS = (shared.SCHEDULER_DRIFT, shared.DISPATCH_SUCCESS, shared.DISPATCH_FAILED)


class ScheduleSurvey(Survey):
    """Reads the entries, those due first, and what was added to their histories since the last turn."""

    def __init__(self, keys: Keys, namespace: str, zone: tzinfo, now_ns: int, *, most: int) -> None:
        super().__init__(namespace, zone, now_ns)
        self._keys = keys
        self._most = most
        self._histories: dict[str, HistoryWatch] = {}
        self._looked = False

    def notes(self) -> ScheduleNotes:
        """Return what the next leader has to know."""
        read = {entry: watch.position for entry, watch in self._histories.items() if watch.position}
        return ScheduleNotes(self._looked, read)

    def restore(self, notes: ScheduleNotes) -> None:
        """Go on from the notes of the leader before."""
        self._looked = notes.complete
        for entry, position in notes.positions.items():
            self._histories[entry] = watch = HistoryWatch(self._keys, entry)
            watch.position = position

    def ask(self, redis_ms: int) -> list[Query[Any]]:  # noqa: ARG002 - nothing is asked about a time
        """Ask for the entries, and for the new runs of those that are known."""
        return [read_schedules(self._keys, self._most), *(each.read(_RUNS) for each in self._histories.values())]

    def take(self, answers: Sequence[Any], moment: Moment) -> None:
        """Tell who is late; count the runs."""
        entries, *histories = answers
        for entry, runs in zip(list(self._histories), histories, strict=True):
            if self.answered(runs, f"history of schedule {entry}"):
                for run in runs:
                    values = (entry, self.namespace)
                    counter = shared.DISPATCH_SUCCESS if run.success else shared.DISPATCH_FAILED
                    self.add(counter, values, moment)
                    if run.success and run.late_s is not None:
                        self.record(shared.SCHEDULER_DRIFT, values, abs(run.late_s), moment)
        if not self.answered(entries, "schedules"):
            return
        for entry in entries:
            overdue_s = entry.overdue_ms(moment.redis_ms, self.zone) / 1000
            self.level(of.SCHEDULE_OVERDUE, (entry.id, self.namespace), overdue_s)
            self._histories.setdefault(entry.id, HistoryWatch(self._keys, entry.id, new=self._looked))
        for gone in set(self._histories) - {entry.id for entry in entries}:
            del self._histories[gone]
            self.ended(_TOTALS, (gone, self.namespace))
        self._looked = len(entries) < self._most
        if not self._looked:
            self.troubles.append("there may be more schedules than max_schedules: the others are not read")
