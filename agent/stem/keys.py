"""Names of the Redis keys under which Stem keeps its queues, results, schedules and workflows: pure text.

Source: Stem's `redis_broker.dart`, `redis_backend.dart`, `redis_schedule_store.dart`, `redis_workflow_store.dart`,
`redis_revoke_store.dart`, `redis_lock_store.dart`.
"""

from dataclasses import dataclass

PRIORITIES = range(9, -1, -1)
"""Highest first, as workers read them. A queue has one stream for each."""

_GLOB = str.maketrans({char: f"\\{char}" for char in "\\*?[]"})


def glob_escaped(name: str) -> str:
    """Return a name as a pattern that matches nothing else."""
    return name.translate(_GLOB)


@dataclass(frozen=True, slots=True)
class Keys:
    """The names under one store's `namespace`, which is not the worker namespace of the channels."""

    namespace: str = "stem"

    def _name(self, *parts: str) -> str:
        return ":".join((self.namespace, *parts))

    # --- broker ----------------------------------------------------------------------------------------------------

    def stream(self, queue: str, priority: int = 0) -> str:
        """Stream of a queue's envelopes; priorities are clamped to 0 to 9."""
        priority = min(max(priority, 0), 9)
        return self._name("stream", queue, *([f"p{priority}"] if priority else []))

    def streams(self, queue: str) -> list[str]:
        """Every stream of a queue, highest priority first."""
        return [self.stream(queue, priority) for priority in PRIORITIES]

    def events(self, queue: str) -> str:
        """Stream of the events that applications tell to whoever listens to a queue."""
        return self._name("broadcast", f"stem:events:{queue}")

    def group(self, queue: str) -> str:
        """Consumer group on each stream of a queue: a group's name, not a key."""
        return self._name("group", queue)

    def delayed(self, queue: str) -> str:
        """Sorted set of envelopes (JSON) that are not due yet; the score is `notBefore` in epoch milliseconds."""
        return self._name("delayed", queue)

    def dead(self, queue: str) -> str:
        """List of dead letters (JSON), newest first."""
        return self._name("dead", queue)

    # --- result backend --------------------------------------------------------------------------------------------

    def result(self, task_id: str) -> str:
        """TaskStatus (JSON) of a task."""
        return self._name("result", task_id)

    def task_group(self, group_id: str) -> str:
        """Descriptor (JSON) of a group of tasks."""
        return self._name("group", group_id)

    def task_group_results(self, group_id: str) -> str:
        """Hash of a group's results: task id to TaskStatus (JSON)."""
        return self._name("group", group_id, "results")

    def task_group_claim(self, group_id: str) -> str:
        """Claim of the one worker that dispatches a chord's callback."""
        return self._name("group", group_id, "claim")

    def heartbeat(self, worker_id: str) -> str:
        """Last heartbeat (JSON) of a worker."""
        return self._name("worker", "heartbeat", worker_id)

    @property
    def heartbeats(self) -> str:
        """Set of worker ids, also of those that are gone."""
        return self._name("worker", "heartbeats")

    # --- schedules, locks, revocations -----------------------------------------------------------------------------

    @property
    def schedules(self) -> str:
        """Sorted set of schedule ids; the score is `nextRunAt` in epoch milliseconds."""
        return self._name("schedule", "index")

    def schedule(self, entry_id: str) -> str:
        """Hash of a schedule's entry."""
        return self._name("schedule", entry_id)

    def schedule_lock(self, entry_id: str) -> str:
        """Lock that the schedule store takes when it hands an entry out as due."""
        return self._name("schedule", entry_id, "lock")

    def schedule_history(self, entry_id: str) -> str:
        """Stream of a schedule's runs, cut to about 1000."""
        return self._name("schedule", entry_id, "history")

    def lock(self, name: str) -> str:
        """Named lock; Beat's are called `stem:schedule:{id}`."""
        return self._name("lock", name)

    @property
    def revokes(self) -> str:
        """Hash of revocations (JSON) by task id; also of paused queues."""
        return self._name("control", "revokes")

    # --- workflows -------------------------------------------------------------------------------------------------

    def workflow(self, run_id: str) -> str:
        """Hash of a workflow run."""
        return self._name("wf", run_id)

    def workflow_steps(self, run_id: str) -> str:
        """Hash of a run's finished steps: name to value (JSON)."""
        return self._name("wf", run_id, "steps")

    def workflow_order(self, run_id: str) -> str:
        """Sorted set of a run's finished steps; the score is their index."""
        return self._name("wf", run_id, "order")

    @property
    def workflows_due(self) -> str:
        """Sorted set of suspended runs; the score is the time to wake them in epoch milliseconds."""
        return self._name("wf", "due")
