"""What a comparison comes to: rows to print, and shares to judge by."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum


class Verdict(StrEnum):
    """How an attempt was told.

    `exact`: the one right span, counts and log records. `incomplete`: what was told says too little, and says so
    itself or lacks a count or a log record. `missing`: no span. `wrong`: a span that contradicts what happened.
    """

    EXACT = "exact"
    INCOMPLETE = "incomplete"
    MISSING = "missing"
    WRONG = "wrong"


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the comparison: how many there were, how many arrived, and of those how many say too little.

    `incomplete` items say so themselves (`stem.incomplete`); `wrong` ones contradict the fleet, or came twice; `notes`
    say how.
    """

    what: str
    expected: int
    received: int
    incomplete: int = 0
    wrong: int = 0
    notes: tuple[str, ...] = ()

    @property
    def exact(self) -> bool:
        """Whether everything arrived, and is right."""
        return self.expected == self.received and not self.incomplete and not self.wrong

    @property
    def accounted(self) -> bool:
        """Whether everything arrived and nothing is wrong, though some may say that it does not know everything."""
        return self.expected == self.received and not self.wrong

    @property
    def true(self) -> bool:
        """Whether nothing is wrong or invented, though something may be missing."""
        return self.received <= self.expected and not self.wrong


@dataclass(frozen=True, slots=True)
class Fidelity:
    """A run in numbers: attempts by verdict, and what else was doubled, invented or contradicts the fleet."""

    attempts: int
    exact: int
    incomplete: int
    missing: int
    wrong: int
    invented: int

    def share(self, verdict: Verdict) -> float:
        """Return the share of attempts with a verdict, 1 of exact ones where there were none at all."""
        if not self.attempts:
            return float(verdict is Verdict.EXACT)
        return int(getattr(self, verdict.value)) / self.attempts


@dataclass(frozen=True, slots=True)
class Comparison:
    """Everything about a run; `examples` say of single attempts and items what differs."""

    rows: list[Row]
    fidelity: Fidelity
    examples: list[str]


def fidelity(verdicts: Counter[Verdict], invented: int, others: Sequence[Row], uncounted: int) -> Fidelity:
    """Add up; `uncounted` attempts lack nothing but their counts, and are told incompletely for that."""
    uncounted = min(uncounted, verdicts[Verdict.EXACT])
    excess = sum(max(row.wrong, row.received - row.expected) for row in others)
    return Fidelity(
        attempts=verdicts.total(),
        exact=verdicts[Verdict.EXACT] - uncounted,
        incomplete=verdicts[Verdict.INCOMPLETE] + uncounted,
        missing=verdicts[Verdict.MISSING],
        wrong=verdicts[Verdict.WRONG],
        invented=invented + excess,
    )
