"""Ending background tasks."""

import asyncio
from collections.abc import Iterable
from typing import Any

_AGAIN_SECONDS = 0.05


async def cancel(tasks: Iterable["asyncio.Task[Any]"]) -> None:
    """Cancel tasks and wait until they have ended, however often it takes.

    One cancellation may be lost: a library whose own timeout expires in the same moment (aiohttp's does, redis-py's
    too) takes it for its own and raises `TimeoutError` instead, and a loop that retries on timeouts would go on for
    ever.
    """
    left = {task for task in tasks if not task.done()}
    while left:
        for task in left:
            task.cancel()
        _, left = await asyncio.wait(left, timeout=_AGAIN_SECONDS)
