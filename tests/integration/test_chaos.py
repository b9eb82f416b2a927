"""A short run of `make chaos`: everything goes wrong at once, and the books are exact."""

import pytest

from tests.chaos.audit import differences, ledger
from tests.chaos.faults import What
from tests.chaos.stage import play

SECONDS = 12.0
SEED = 6337
"""In so short a time not everything can happen; with this one the worst does: see below."""
WORST = {What.REFUSES, What.LOSES, What.PARTLY, What.CUT, What.UNWRITABLE, What.DAMAGED, What.KILLED, What.ENDED}


@pytest.mark.timeout(150)  # it ends in 20 s, unless something stands still; then the parts say so before this
async def test_the_books_are_exact_after_everything_went_wrong_at_once() -> None:
    evidence, happened = await play(SECONDS, seed=SEED)
    wrong = differences(evidence)
    assert not wrong, "\n".join(wrong[:20])
    assert all(line.accepted > 100 for line in ledger(evidence))
    assert len(evidence.lives) > 2
    assert happened.keys() >= WORST
    assert evidence.damaged
