"""Workflow runs in the store, counted by workflow and status. Pure.

Source: Stem's `redis_workflow_store.dart`. Runs are kept for ever, so they are counted on a walk through the keyspace,
a stretch at a time; Stem's own listing misses those whose ids are UUIDs, which are nearly all.
"""

from collections import Counter

from agent.stem.keys import Keys, glob_escaped
from agent.stem.questions.query import Command, Query, Reply, shaped, text

STEPS = 2
_FIELDS = "workflow", "status"


class WorkflowWalk:
    """Walks through the runs again and again; `counts` is what the last whole walk found, None before its end."""

    def __init__(self, keys: Keys) -> None:
        self._prefix = keys.workflow("")
        self._pattern = f"{glob_escaped(keys.namespace)}:wf:*"
        self._cursor = "0"
        self._found: Counter[tuple[str, str]] = Counter()
        self.counts: Counter[tuple[str, str]] | None = None

    def read(self, budget: int) -> Query[None]:
        """Look at about `budget` keys, in `STEPS` + 1 round trips; raises `QueryRefusedError` if it may not."""
        runs: list[Command] = []
        cursor, found = self._cursor, Counter[tuple[str, str]]()
        for step in range(STEPS + 1):
            ends = step == STEPS or (step > 0 and cursor == "0")
            scan = [] if ends else [("SCAN", cursor, "MATCH", self._pattern, "COUNT", max(1, budget // STEPS))]
            replies = yield [*runs, *scan]
            found += Counter(run for fields in replies[: len(runs)] if (run := _run(fields)))
            if ends:
                break
            after, keys = shaped(replies[-1], tuple[bytes, list[bytes]])
            cursor = text(after)
            runs = [("HMGET", key, *_FIELDS) for key in map(text, keys) if self._is_run(key)]
        self._cursor = cursor  # only now: what was found before a failure is found again
        self._found += found
        if cursor == "0":
            self.counts, self._found = self._found, Counter()

    def _is_run(self, key: str) -> bool:
        name = key.removeprefix(self._prefix)
        return ":" not in name and name not in {"due", "watchers"}


def _run(fields: Reply) -> tuple[str, str] | None:
    """Return a run's workflow and status; a run deleted meanwhile has nothing, and what is no hash is no run."""
    if not isinstance(fields, list) or len(fields) != len(_FIELDS) or not all(fields):
        return None
    return text(fields[0]), text(fields[1])
