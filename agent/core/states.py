"""Keeping what a component knows across restarts: the interface; who keeps it is chosen in the configuration."""

from typing import Protocol


class StateStore(Protocol):
    """Keeps one value for each key, from the stop of one process to the start of the next.

    Neither method raises for what a disk does: what cannot be kept or read is counted and told by the store.
    """

    async def put(self, key: str, value: bytes) -> bool:
        """Keep a value, in place of the one that was kept; return False if that could not be done."""

    async def take(self, key: str) -> bytes | None:
        """Return what was kept and forget it, so that nobody begins twice from the same state; None for nothing."""
