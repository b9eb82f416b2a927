"""A value made from files and made anew when they change: a rotated key or certificate needs no restart."""

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Generic, TypeVar

from agent.core.errors import StartupError

T = TypeVar("T")
Stamp = tuple[int, int, int, int] | None


class Reloading(Generic[T]):
    """Holds what `load` made of `files`; `get` loads anew after a change, and looks at most every `interval` seconds.

    The first loading raises what `load` raises: `StartupError`. A later one that fails is told to `on_failure`, once
    every `interval` for as long as it fails, and the last value stays in use: files are often replaced one after the
    other, and a certificate without its key is no reason to stop.
    """

    def __init__(
        self,
        files: Iterable[str | None],
        load: Callable[[], T],
        *,
        interval: float,
        on_failure: Callable[[str], None],
    ) -> None:
        self._files = tuple(dict.fromkeys(filter(None, files)))
        self._load = load
        self._interval = interval
        self._on_failure = on_failure
        # Before loading: what changes in between is loaded twice, and never missed.
        self._stamps: tuple[Stamp, ...] | None = self._look()
        self._value = load()
        self._next_look = float("-inf")

    def get(self, now: float) -> T:
        """Return the value; `now` is the time of a steady clock in seconds. Never raises for what files do."""
        if self._files and now >= self._next_look:
            self._next_look = now + self._interval
            self._reload()
        return self._value

    def _reload(self) -> None:
        stamps = self._look()
        if stamps == self._stamps:
            return
        try:
            self._value = self._load()
        except StartupError as error:
            self._stamps = None  # so that it is tried again
            self._on_failure(str(error))
        else:
            self._stamps = stamps

    def _look(self) -> tuple[Stamp, ...]:
        return tuple(stamp(file) for file in self._files)


def stamp(file: str | Path) -> Stamp:
    """Tell versions of a file apart; Kubernetes swaps a link above it, so device and inode count too."""
    try:
        stat = os.stat(file)  # noqa: PTH116 - a path is a string until it is opened
    except OSError:
        return None
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns
