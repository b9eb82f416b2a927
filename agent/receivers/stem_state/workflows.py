"""Workflow runs, by workflow and status. Pure."""

from collections import Counter
from collections.abc import Sequence
from datetime import tzinfo
from typing import Any

from agent.receivers.stem_state import instruments as of
from agent.receivers.stem_state.survey import Moment, Survey
from agent.stem.keys import Keys
from agent.stem.questions.query import Query
from agent.stem.questions.workflows import WorkflowWalk

MOST_SERIES = 2000
"""Kinds of runs told: workflows are called whatever somebody calls them."""


class WorkflowSurvey(Survey):
    """Tells what the last whole walk through the store found."""

    def __init__(self, keys: Keys, namespace: str, zone: tzinfo, now_ns: int, *, budget: int) -> None:
        super().__init__(namespace, zone, now_ns)
        self._walk = WorkflowWalk(keys)
        self._budget = budget

    def ask(self, redis_ms: int) -> list[Query[Any]]:  # noqa: ARG002 - runs are counted, not timed
        """Go on walking."""
        return [self._walk.read(self._budget)]

    def take(self, answers: Sequence[Any], moment: Moment) -> None:  # noqa: ARG002 - it has no age
        """Tell the counts."""
        if self.answered(answers[0], "workflow runs"):
            counts = self._walk.counts or Counter()
            for (workflow, status), runs in counts.most_common(MOST_SERIES):
                self.level(of.WORKFLOW_RUNS, (workflow, status, self.namespace), runs)
            if len(counts) > MOST_SERIES:
                self.troubles.append(f"of {len(counts)} kinds of runs only the {MOST_SERIES} commonest are told")
