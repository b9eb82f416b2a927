"""Do the books add up? What the agent's disk says, what its processes said, and what the endpoint counted: pure.

A batch is *known* if it was ever on the disk, which the journal in the agent's own file says; else it was in memory
alone, which is right only in a process whose disk failed. For every kind of telemetry, in items, must hold:

    accepted (by the disk) = delivered + rejected + dropped + held,                  and in the end nothing is held
    counted by the endpoint, each batch once = delivered + rejected + told late + memory only

*Told late* are the items of damaged batches that the endpoint had accepted before the agent could know and their rows
were damaged; *memory only* those of batches that the disk never had. Beside the sums, every single batch is looked at.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from agent.core.errors import EXIT_HELD, EXIT_LOST, EXIT_OK
from agent.exporters.sending.disk_queue import STORAGE_CORRUPT
from agent.exporters.sending.sender import SHUTDOWN
from agent.storage.rows import Books, End
from tests.chaos.endpoint import Acceptance, Receipt
from tests.chaos.journal import Journal
from tests.chaos.process import Life, Told

KINDS = ("traces", "metrics", "logs")


@dataclass(frozen=True, slots=True)
class Evidence:
    """Everything that is known at the end. `timeout` is the exporter's, in seconds; `damaged` says when."""

    journal: Journal
    books: Mapping[str, Books]
    receipts: Mapping[str, Receipt]
    differing: set[str]
    lives: list[Life]
    damaged: Mapping[str, float]
    unhealthy: list[str]
    timeout: float


@dataclass(frozen=True, slots=True)
class Line:
    """One kind of telemetry, in items; `batches` and `repeats` in batches, as the endpoint counted them."""

    kind: str
    accepted: int
    delivered: int
    rejected: int
    dropped: Mapping[str, int]
    held: int
    counted: int
    told_late: int
    memory_only: int
    lost_in_memory: int
    batches: int
    repeats: int

    @property
    def exact(self) -> bool:
        """Whether both equations hold."""
        on_disk = self.delivered + self.rejected + sum(self.dropped.values()) + self.held
        at_endpoint = self.delivered + self.rejected + self.told_late + self.memory_only
        return (self.accepted, self.counted, self.held) == (on_disk, at_endpoint, 0)


def ledger(evidence: Evidence) -> list[Line]:
    """Return the ledger, a line for each kind."""
    lines = []
    for kind in KINDS:
        books = evidence.books.get(kind, Books(0, 0, 0, {}, 0))
        receipts = {identity: receipt for identity, receipt in evidence.receipts.items() if receipt.kind == kind}
        lines.append(
            Line(
                kind,
                books.accepted,
                books.delivered,
                books.rejected,
                books.dropped,
                books.held,
                counted=sum(receipt.items for receipt in receipts.values()),
                told_late=sum(receipt.items for identity, receipt in receipts.items() if _corrupt(evidence, identity)),
                memory_only=sum(
                    receipt.items for identity, receipt in receipts.items() if identity not in evidence.journal.entries
                ),
                lost_in_memory=sum(
                    life.told[kind].dropped.get(SHUTDOWN, 0) for life in evidence.lives if kind in life.told
                ),
                batches=len(receipts),
                repeats=sum(len(receipt.acceptances) - 1 for receipt in receipts.values()),
            )
        )
    return lines


def _corrupt(evidence: Evidence, identity: str) -> bool:
    entry = evidence.journal.entries.get(identity)
    return bool(entry and entry.end and entry.end.reason == STORAGE_CORRUPT)


def differences(evidence: Evidence) -> list[str]:
    """Return everything that does not add up."""
    return [
        *evidence.journal.strange,
        *(f"batch {identity} came with different items" for identity in evidence.differing),
        *evidence.unhealthy,
        *_sums(evidence),
        *_known(evidence),
        *_unknown(evidence),
        *_repeats(evidence),
        *(text for life in evidence.lives for text in _life(evidence, life)),
    ]


def _sums(evidence: Evidence) -> Iterator[str]:
    for line in ledger(evidence):
        if not line.exact:
            yield f"{line.kind}: the books are not exact: {line}"
        if not line.accepted:
            yield f"{line.kind}: nothing happened"
        entries = [entry for entry in evidence.journal.entries.values() if entry.kind == line.kind]
        accepted, ends = sum(entry.items for entry in entries), [entry.end or End() for entry in entries]
        dropped = Counter[str]()
        for end in ends:
            dropped[end.reason] += end.dropped
        journal = (accepted, sum(end.delivered for end in ends), sum(end.rejected for end in ends), +dropped)
        if journal != (line.accepted, line.delivered, line.rejected, Counter(line.dropped)):
            yield f"{line.kind}: the books say {line}, their journal {journal}"


def _known(evidence: Evidence) -> Iterator[str]:
    """Look at every batch that was on the disk."""
    for identity, entry in evidence.journal.entries.items():
        end, receipt = entry.end, evidence.receipts.get(identity)
        if end is None:
            yield f"batch {identity} was stored and never left"
        elif end.dropped:
            if end.reason != STORAGE_CORRUPT or identity not in evidence.damaged:
                yield f"batch {identity} was dropped: {end.reason}"
            elif receipt and receipt.acceptances[-1].at > evidence.damaged[identity]:
                yield f"batch {identity} was sent although its row was damaged"
        elif receipt is None:
            yield f"batch {identity} counts as delivered ({end}), and was never accepted"
        elif (receipt.items, receipt.kind, receipt.rejected) != (entry.items, entry.kind, end.rejected):
            yield f"batch {identity} is {entry}, and was accepted as {receipt}"
    for identity in evidence.damaged:
        if not _corrupt(evidence, identity):
            yield f"batch {identity} was damaged, and not dropped for that"


def _unknown(evidence: Evidence) -> Iterator[str]:
    """Look at every batch that the endpoint accepted and the disk never had."""
    lives = {life.run: life for life in evidence.lives}
    for identity, receipt in evidence.receipts.items():
        if identity in evidence.journal.entries:
            continue
        first = receipt.acceptances[0]
        failed_at = lives[first.run].disk_failed_at
        if failed_at is None or failed_at > first.at:
            yield f"batch {identity} of agent {first.run} was never on the disk, which worked"
        if len({acceptance.run for acceptance in receipt.acceptances}) > 1:
            yield f"batch {identity} was never on the disk, and outlived its process"


def _repeats(evidence: Evidence) -> Iterator[str]:
    """Look at every repeat: something must have kept the agent from knowing that the batch was accepted."""
    lives = {life.run: life for life in evidence.lives}
    for identity, receipt in evidence.receipts.items():
        for before, after in zip(receipt.acceptances, receipt.acceptances[1:], strict=False):
            if not _excused(lives[before.run], before, after, evidence.timeout):
                yield f"batch {identity} was sent again for no reason: {before}, {after}"


def _excused(life: Life, before: Acceptance, after: Acceptance, timeout: float) -> bool:
    if before.run == after.run:
        # Without an answer in time it must try again; else it must know, even if its disk has failed.
        return not before.answered or after.at - before.at >= timeout
    return not before.answered or life.exit_code is None or life.failing


def _life(evidence: Evidence, life: Life) -> Iterator[str]:
    """Hold what a process said at its end against what the disk and the endpoint say of its life."""
    yield from (f"agent {life.run}: {text}" for text in life.faults)
    if life.exit_code is None or life.ended is None:
        return
    lost = sum(told.rejected + sum(told.dropped.values()) for told in life.told.values())
    held = sum(told.held for told in life.told.values())
    if life.exit_code != (EXIT_LOST if life.lost else EXIT_HELD if held else EXIT_OK):
        yield f"agent {life.run}: exit code {life.exit_code}, with {life.lost} lost and {held} held"
    if life.lost < lost or (life.lost > lost and not life.failing):
        yield f"agent {life.run}: {life.lost} lost, of which {lost} are in its books"
    for kind in KINDS:
        told = life.told.get(kind) or Told(0, 0, 0, 0, {}, 0)
        for text in _told(evidence, life, kind, told):
            yield f"agent {life.run}: {kind}: {text}: {told}"


def _told(evidence: Evidence, life: Life, kind: str, told: Told) -> Iterator[str]:
    assert life.ended
    first, last = life.began.line, life.ended.line
    entries = [entry for entry in evidence.journal.entries.values() if entry.kind == kind]
    stored = sum(entry.items for entry in entries if first < entry.stored <= last)
    ends = [entry.end for entry in entries if entry.end and first < entry.removed <= last]
    delivered, rejected = sum(end.delivered for end in ends), sum(end.rejected for end in ends)
    dropped = Counter[str]()
    for end in ends:
        dropped[end.reason] += end.dropped
    memory = sum(
        receipt.items
        for identity, receipt in evidence.receipts.items()
        if receipt.kind == kind and identity not in evidence.journal.entries and receipt.acceptances[0].run == life.run
    )
    if told.accepted != told.delivered + told.rejected + sum(told.dropped.values()) + told.held:
        yield "its own books are not exact"
    if life.failing:
        if told.delivered + told.rejected < delivered + rejected:
            yield f"the disk says {delivered} delivered and {rejected} rejected"
        return
    if told.restored != life.began.held.get(kind, 0):
        yield f"the disk held {life.began.held.get(kind, 0)} at its start"
    if told.accepted - told.restored != stored + memory:
        yield f"it stored {stored}, and {memory} more were accepted"
    if told.delivered + told.rejected != delivered + rejected + memory:
        yield f"the disk says {delivered} delivered and {rejected} rejected, and {memory} more were accepted"
    if Counter(told.dropped) != +dropped:
        yield f"the disk says dropped {dict(+dropped)}"
    if told.held != life.ended.held.get(kind, 0):
        yield f"the disk holds {life.ended.held.get(kind, 0)} at its end"
