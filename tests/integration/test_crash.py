"""A process that is killed at any moment loses nothing that was sealed. `make chaos` does the same, more often."""

import os
import random
from pathlib import Path

from tests.kills import kill_often

KILLS = int(os.environ.get("STEM_TEST_KILLS", "30"))


async def test_a_process_killed_at_any_moment_loses_nothing_that_was_sealed(tmp_path: Path) -> None:
    heard = await kill_often(tmp_path, KILLS, random.Random())
    assert heard.kills == KILLS
