"""The shell that asks workers: sends a command to each, waits for all replies at once, and takes back what it wrote."""

import asyncio
from datetime import UTC, datetime

from agent.stem.client.errors import RefusedError
from agent.stem.client.store import Store
from agent.stem.control.inquiry import Inquiry

BLOCK_SECONDS = 1.0
"""Redis is asked to hold back its answer for so long at the most; the timeout of the broker's store is to be longer."""


async def ask_workers(broker: Store, inquiry: Inquiry, timeout_s: float) -> None:
    """Ask; return when all have answered, or after `timeout_s`. What was written is taken back, also on an error.

    Raises `UnreachableError` and `RefusedError`; `inquiry.left_behind` are the commands that then could not be taken
    back.
    """
    try:
        await _ask(broker, inquiry, timeout_s)
    except RefusedError as refused:
        if refused.missing and "~" in refused.missing:  # a right to keys: to write there, too
            missing = f"~{inquiry.pattern}"
            raise RefusedError(refused.store, refused.server, refused.reason, missing) from refused
        raise


async def _ask(broker: Store, inquiry: Inquiry, timeout_s: float) -> None:
    await broker.answer(inquiry.prepare())
    try:
        await broker.answer(inquiry.send(datetime.now(UTC)))
        loop = asyncio.get_running_loop()
        until = loop.time() + timeout_s
        while inquiry.waiting and (left := until - loop.time()) > 0:
            await broker.answer(inquiry.listen(round(min(left, BLOCK_SECONDS) * 1000)))
    finally:
        await broker.answer(inquiry.withdraw())
