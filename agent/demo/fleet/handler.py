"""What a task's handler does: it takes its time, and then succeeds, fails, asks for a retry or is revoked."""

import asyncio
import random

from agent.demo.fleet.kinds import Kind

MAX_RUN_SECONDS = 4.0
COPY_SECONDS = 0.02


class TaskFailed(Exception):  # noqa: N818 - not an error of ours
    """What a handler throws; `final` when no retry may follow."""

    def __init__(self, text: str, *, final: bool) -> None:
        super().__init__(text)
        self.final = final


class RetryRequested(Exception):  # noqa: N818
    """What a handler throws to be run again: Stem's `TaskRetryRequested`."""


class TaskRevoked(Exception):  # noqa: N818
    """The task was revoked while it ran."""


async def work(kind: Kind, attempt: int, chance: random.Random) -> None:
    """Be the handler of a task in its `attempt`; return if it succeeds."""
    await asyncio.sleep(min(chance.lognormvariate(0, 0.5) * kind.run_s, MAX_RUN_SECONDS))
    if chance.random() < kind.revoke / 2:
        raise TaskRevoked("revoked while running")
    if chance.random() < kind.again:
        raise RetryRequested(kind.error)
    harder = 1 + 4 * attempt  # what failed once is likely to fail again
    if chance.random() < kind.retry * harder:
        raise TaskFailed(kind.error, final=False)
    if chance.random() < kind.fail * harder:
        raise TaskFailed(kind.error, final=True)


async def see_that_it_was_done() -> None:
    """Be the handler of a delivery that is the copy of a lease: it finds the work done, or another at it."""
    await asyncio.sleep(COPY_SECONDS)
