"""Files as a transport: each line is written in a thread, so that a slow disk holds up nobody else."""

import asyncio
import contextlib
import os
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from agent.core.errors import StartupError
from agent.exporters.file.config import FileConfig
from agent.exporters.file.lines import line_of
from agent.exporters.file.rotating import LockedError, RotatingFile
from agent.exporters.sending.outcome import Delivered, Outcome, Retry
from agent.exporters.sending.sealed import Coding, Sealed
from agent.otlp.batch import Kind

_CODING = "otlp-json"


class FileTransport:
    """Appends sealed lines; a disk that is full or gone is tried again, as a destination that is away."""

    def __init__(self, identity: str, config: FileConfig) -> None:
        self._id = identity
        self._config = config
        self._directory = Path(config.directory)
        self._executor: ThreadPoolExecutor | None = None
        self._syncing: asyncio.TimerHandle | None = None
        self._unsynced: set[Kind] = set()
        self._files = {
            kind: RotatingFile(
                self._directory / f"{kind}.jsonl", max_size=config.max_size, max_backups=config.max_backups
            )
            for kind in Kind
        }

    async def open(self) -> None:
        """Make the directory. Raises `StartupError` if that cannot be, or nothing can be written there."""
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._unusable(error.strerror or "no directory") from None
        if not os.access(self._directory, os.W_OK | os.X_OK):
            raise self._unusable("permission denied")
        self._executor = ThreadPoolExecutor(1, thread_name_prefix=f"{self._id}: write")

    async def close(self) -> None:
        """Have the disk write what it has not yet, unless told otherwise, and close the files."""
        if self._syncing:
            self._syncing.cancel()
            self._syncing = None
        executor, self._executor = self._executor, None
        if executor is None:
            return
        try:
            with contextlib.suppress(OSError):
                await asyncio.get_running_loop().run_in_executor(executor, self._close)
        finally:
            executor.shutdown(wait=False)

    def coding(self, kind: Kind) -> Coding:
        """Return how a request of a kind becomes a line."""
        return Coding(_CODING, partial(line_of, kind))

    async def send(self, kind: Kind, sealed: Sealed) -> tuple[str, Outcome]:
        """Append a line."""
        if self._executor is None:
            return "closed", Retry("closed", "the exporter is not started")
        loop = asyncio.get_running_loop()
        try:
            await loop.run_in_executor(self._executor, self._append, kind, sealed.body)
        except OSError as error:
            reason = "locked" if isinstance(error, LockedError) else "output_failed"
            said = (error.strerror or type(error).__name__).lower()
            return reason, Retry(reason, f"failed to write {self._directory}/{kind}.jsonl: {said}")
        self._schedule(loop)
        return "ok", Delivered()

    def _schedule(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._config.sync == "interval" and self._syncing is None and self._executor:
            self._syncing = loop.call_later(self._config.sync_interval, self._sync_soon)

    def _append(self, kind: Kind, line: bytes) -> None:
        self._files[kind].append(line)
        self._unsynced.add(kind)
        if self._config.sync == "batch":
            self._sync()

    def _sync_soon(self) -> None:
        self._syncing = None
        if self._executor:
            # What cannot be written is found by the next line, which is told.
            self._executor.submit(self._sync)

    def _sync(self) -> None:
        while self._unsynced:
            self._files[self._unsynced.pop()].sync()

    def _close(self) -> None:
        try:
            if self._config.sync != "off":
                self._sync()
        finally:
            for file in self._files.values():
                file.close()

    def _unusable(self, reason: str) -> StartupError:
        return StartupError(
            f"{self._id}: failed to use directory {self._directory}: {reason.lower()}; choose another one"
            f" (exporters.{self._id}.directory)"
        )
