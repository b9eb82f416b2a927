"""Workflow runs in the store, counted by workflow and status. Pure.

Source: Stem's `redis_workflow_store.dart`. Runs are kept for ever, so they are counted on a walk through the keyspace,
a stretch at a time; Stem's own listing misses those whose ids are UUIDs, which are nearly all.
"""

from collections import Counter

from agent.stem.keys import Keys, glob_escaped
from agent.stem.query import Command, Query, Reply, needed, text

STEPS = 2


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
        for step in range(STEPS + 1):
            ends = step == STEPS or (step > 0 and self._cursor == "0")
            scan = [] if ends else [("SCAN", self._cursor, "MATCH", self._pattern, "COUNT", max(1, budget // STEPS))]
            replies = yield [*runs, *scan]
            for fields in replies[: len(runs)]:
                self._count(fields)
            if ends:
                break
            cursor, keys = needed(replies[-1])
            self._cursor = text(cursor)
            runs = [("HMGET", key, "workflow", "status") for key in map(text, keys) if self._is_run(key)]
        if self._cursor == "0":
            self.counts, self._found = self._found, Counter()

    def _count(self, fields: Reply) -> None:
        # A run that was deleted meanwhile has nothing; what is no hash is no run.
        if isinstance(fields, list) and all(fields):
            workflow, status = map(text, fields)
            self._found[workflow, status] += 1

    def _is_run(self, key: str) -> bool:
        name = key.removeprefix(self._prefix)
        return ":" not in name and name not in {"due", "watchers"}
