"""The judge of `make chaos` finds what it is there to find: a run in which nothing is wrong, and one change each."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agent.storage.database import Database
from agent.storage.disk import FILE
from agent.storage.rows import Books, End, QueueName, Row
from tests.chaos import journal
from tests.chaos.audit import KINDS, Evidence, differences, ledger
from tests.chaos.endpoint import Acceptance, Receipt
from tests.chaos.faults import LANES, Fault, faults_of
from tests.chaos.journal import Entry, Journal, Moment
from tests.chaos.process import Life, Told


def fine() -> Evidence:
    """Agent 1 was killed when `b` was accepted and the answer lost; agent 2 sent it again, and what agent 1 had left.

    Row `c` was damaged in between, after `c` had been accepted. `d` was in memory only while the disk of 2 failed.
    """
    entries: dict[str, Entry] = {}
    receipts: dict[str, Receipt] = {}
    for at, kind in enumerate(KINDS):
        line = 100 * at
        entries |= {
            f"a-{kind}": Entry(kind, 10, line + 1, line + 2, End(10)),
            f"b-{kind}": Entry(kind, 20, line + 3, line + 302, End(15, 5)),
            f"c-{kind}": Entry(kind, 30, line + 4, line + 303, End(dropped=30, reason="storage_corrupt")),
        }
        receipts |= {
            f"a-{kind}": Receipt(kind, 10, 0, [Acceptance(1, 1.0, answered=True)]),
            f"b-{kind}": Receipt(kind, 20, 5, [Acceptance(1, 2.0), Acceptance(2, 5.0, answered=True)]),
            f"c-{kind}": Receipt(kind, 30, 0, [Acceptance(1, 2.5, answered=True)]),
            f"d-{kind}": Receipt(kind, 7, 0, [Acceptance(2, 7.0, answered=True)]),
        }
    told = Told(57, 50, 22, 5, {"storage_corrupt": 30}, 0)
    second = Life(2, Moment(300, dict.fromkeys(KINDS, 50)), Moment(600, {}), 4, dict.fromkeys(KINDS, told), 105, 6.0)
    return Evidence(
        journal=Journal(entries),
        books=dict.fromkeys(KINDS, Books(60, 25, 5, {"storage_corrupt": 30}, 0)),
        receipts=receipts,
        differing=set(),
        lives=[Life(1, Moment(0, {}), Moment(300, dict.fromkeys(KINDS, 50))), second],
        damaged={f"c-{kind}": 3.0 for kind in KINDS},
        unhealthy=[],
        timeout=2.0,
    )


def test_a_run_that_adds_up_has_no_differences() -> None:
    assert differences(fine()) == []
    line = ledger(fine())[0]
    assert line.exact
    assert (line.accepted, line.counted, line.told_late, line.memory_only, line.repeats) == (60, 67, 30, 7, 1)


def a_receipt(**changes: Any) -> Callable[[Evidence], None]:
    def change(evidence: Evidence) -> None:
        receipts: Any = evidence.receipts
        receipts["a-logs"] = dataclasses.replace(receipts["a-logs"], **changes)

    return change


def an_entry(**changes: Any) -> Callable[[Evidence], None]:
    def change(evidence: Evidence) -> None:
        evidence.journal.entries["a-logs"] = dataclasses.replace(evidence.journal.entries["a-logs"], **changes)

    return change


def what_was_told(**changes: Any) -> Callable[[Evidence], None]:
    def change(evidence: Evidence) -> None:
        told = evidence.lives[1].told
        evidence.lives[1].told = {**told, "logs": dataclasses.replace(told["logs"], **changes)}

    return change


def the_books(**changes: Any) -> Callable[[Evidence], None]:
    def change(evidence: Evidence) -> None:
        books: Any = evidence.books
        books["logs"] = books["logs"]._replace(**changes)

    return change


def again(*acceptances: Acceptance) -> Callable[[Evidence], None]:
    return a_receipt(acceptances=list(acceptances))


CHANGES: dict[str, tuple[Callable[[Any], Any], str]] = {
    "lost": (lambda e: e.receipts.pop("a-logs"), "counts as delivered"),
    "a receipt differs": (a_receipt(items=9), "was accepted as"),
    "more rejected": (a_receipt(rejected=1), "was accepted as"),
    "never left": (an_entry(end=None), "was stored and never left"),
    "dropped": (an_entry(end=End(dropped=10, reason="storage_full")), "was dropped: storage_full"),
    "still held": (the_books(held=1, accepted=61), "the books are not exact"),
    "books without a batch": (the_books(accepted=61, delivered=26), "their journal"),
    "damage that nobody saw": (lambda e: e.damaged.update({"a-logs": 3.0}), "was damaged, and not dropped"),
    "corrupt without damage": (lambda e: e.damaged.pop("c-logs"), "was dropped: storage_corrupt"),
    "a damaged row was sent": (lambda e: e.damaged.update({"c-logs": 2.0}), "although its row was damaged"),
    "memory only, with a disk": (lambda e: setattr(e.lives[1], "disk_failed_at", None), "which worked"),
    "memory only, before": (lambda e: setattr(e.lives[1], "disk_failed_at", 8.0), "which worked"),
    "out of memory into the next process": (
        lambda e: e.receipts["d-logs"].acceptances.insert(0, Acceptance(1, 6.5)),
        "outlived its process",
    ),
    "a repeat": (
        again(Acceptance(1, 1.0, answered=True), Acceptance(1, 1.1, answered=True)),
        "sent again for no reason",
    ),
    "a repeat by the next of a process that ended well": (
        again(Acceptance(2, 5.0, answered=True), Acceptance(3, 9.0, answered=True)),
        "sent again for no reason",
    ),
    "other items under the same id": (lambda e: e.differing.add("a-logs"), "came with different items"),
    "a journal that contradicts itself": (lambda e: e.journal.strange.append("line 1"), "line 1"),
    "not alive": (lambda e: e.unhealthy.append("/livez said 503"), "/livez said 503"),
    "a fault of ours": (lambda e: e.lives[0].faults.append("Traceback"), "agent 1: Traceback"),
    "a process's own books": (what_was_told(held=1), "its own books are not exact"),
    "a process says more was delivered": (what_was_told(delivered=23, accepted=58), "the disk says 15 delivered"),
    "a process found less": (what_was_told(restored=49), "the disk held 50 at its start"),
    "a process lost": (
        what_was_told(accepted=58, dropped={"shutdown": 1, "storage_corrupt": 30}),
        "the disk says drop",
    ),
    "an exit code": (lambda e: setattr(e.lives[1], "exit_code", 0), "exit code 0, with 105 lost and 0 held"),
    "a loss that the books do not have": (lambda e: setattr(e.lives[1], "lost", 106), "of which 105 are in its books"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_whatever_does_not_add_up_is_told(name: str) -> None:
    change, text = CHANGES[name]
    evidence = fine()
    if name == "a repeat by the next of a process that ended well":
        evidence.lives.append(Life(3, Moment(600, {}), Moment(600, {})))
    change(evidence)
    assert any(text in difference for difference in differences(evidence)), differences(evidence)


def test_the_journal_tells_what_became_of_every_batch(tmp_path: Path) -> None:
    file, queue = tmp_path / "storage" / FILE, QueueName("otlp_http", "logs")
    journal.begin(file)
    database = Database(file)
    ids = [database.insert(queue, Row(name, 10, 1, "gzip", 5, 5, b"body"))[0] for name in ("a", "b", "c", "d")]
    database.remove(queue, ids[0], End(delivered=7, rejected=3))
    database.remove(queue, ids[1], End(dropped=10, reason="http_400"))
    database.expire(6)
    assert not database.remove(queue, ids[2], End(delivered=10)), "it is not there any more"
    database.insert(queue, Row("e", 10, 1, "gzip", 5, 5, b"body"))
    database.close()
    found = journal.journal_of(file)
    too_old = End(dropped=10, reason="too_old")
    ends = {"a": End(7, 3), "b": End(dropped=10, reason="http_400"), "c": too_old, "d": too_old, "e": None}
    assert {name: entry.end for name, entry in found.entries.items()} == ends
    assert found.strange == []
    assert journal.moment_of(file).held == {"logs": 10}
    assert journal.damage(file) == "e"
    database = Database(file)
    stored = database.next(queue)
    database.close()
    assert stored
    assert stored.row is None, "its checksum tells"


@pytest.mark.parametrize(
    ("lines", "text"),
    [
        ([(1, "removed", "logs", "a", 1, None, None, None)], "about nothing that was stored"),
        ([(1, "stored", "logs", "a", 2, None, None, None)], "2 items of batch a were not booked"),
        (
            [(1, "stored", "logs", "a", 2, None, None, None), (2, "booked", "logs", None, 3, 0, 0, None)],
            "more was booked than batch a has",
        ),
        (
            [
                *((1, "stored", "logs", "a", 2, None, None, None), (2, "booked", "logs", None, 2, 0, 0, None)),
                (3, "stored", "logs", "a", 2, None, None, None),
            ],
            "stored twice",
        ),
    ],
)
def test_a_journal_that_contradicts_itself_is_told(lines: list[Any], text: str) -> None:
    assert any(text in strange for strange in journal.read(lines).strange)


@pytest.mark.parametrize("lane", LANES)
def test_a_seed_gives_the_same_faults_again_and_every_kind_of_them(lane: str) -> None:
    def first(seed: int) -> list[Fault]:
        faults = faults_of(lane, seed)
        return [next(faults) for _ in range(3 * len(LANES[lane].kinds))]

    assert first(1) == first(1) != first(2)
    for at in range(0, len(first(1)), len(LANES[lane].kinds)):
        assert {fault.what for fault in first(1)[at : at + len(LANES[lane].kinds)]} == set(LANES[lane].kinds)
