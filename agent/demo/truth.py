"""What the fleet did: the ground truth, written as one JSON file."""

from collections import Counter
from pathlib import Path

import msgspec


class AttemptTruth(msgspec.Struct, frozen=True):
    """One attempt as the worker lived it; times are Unix microseconds, 0 for an attempt that never started."""

    task_id: str
    number: int
    worker: str
    task: str
    queue: str
    state: str
    trace_id: str
    traced: bool
    started_us: int
    ended_us: int


class Truth(msgspec.Struct):
    """Everything the fleet did."""

    published: list[tuple[str, str, str]] = msgspec.field(default_factory=list)
    """(task id, task, queue)"""
    attempts: list[AttemptTruth] = msgspec.field(default_factory=list)
    dropped_signals: int = 0

    def states(self) -> Counter[str]:
        """Return the number of attempts by state."""
        return Counter(attempt.state for attempt in self.attempts)

    def write(self, path: Path) -> None:
        """Write the file, whole or not at all."""
        partial = path.with_suffix(".partial")
        partial.write_bytes(msgspec.json.encode(self))
        partial.replace(path)


def read_truth(path: Path) -> Truth:
    """Read the file that a fleet wrote."""
    return msgspec.json.decode(path.read_bytes(), type=Truth)
