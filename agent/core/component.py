"""What a component is, to the application that starts and stops it."""

from typing import Protocol


class Component(Protocol):
    """Anything with a life of its own: receiver, connector, processor, exporter, extension.

    `start` returns when the component works or will work without further help; it raises `StartupError` for
    what will not heal. `stop` hands on or reports everything still held, within `timeout` seconds, and may be
    called twice, or without a start.
    """

    async def start(self) -> None:
        """Begin."""

    async def stop(self, timeout: float) -> None:  # noqa: ASYNC109 - the deadline is shared by many stops
        """End, within `timeout` seconds."""


class Passive:
    """A component that has nothing to start and nothing to stop."""

    async def start(self) -> None:
        """Do nothing."""

    async def stop(self, timeout: float) -> None:  # noqa: ASYNC109 - see Component
        """Do nothing."""
