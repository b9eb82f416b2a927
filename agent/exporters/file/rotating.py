"""A file that lines are appended to, whole or not at all, and that begins anew when it is large enough."""

import contextlib
import fcntl
import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

_MODE = 0o640
_TAIL_BYTES = 64 << 10


class LockedError(OSError):
    """Another process writes to the file."""


class RotatingFile:
    """Appends to `path`; blocks, so it belongs into a thread, one at a time. Every method raises `OSError`.

    `max_size` in bytes, 0 for no limit; `max_backups` old files are kept. A file that somebody else moved away is
    begun anew. `now` names old files.
    """

    def __init__(
        self, path: Path, *, max_size: int, max_backups: int, now: Callable[[], datetime] | None = None
    ) -> None:
        self._path = path
        self._max_size = max_size
        self._max_backups = max_backups
        self._now = now or (lambda: datetime.now(UTC))
        self._file: int | None = None
        self._size = 0
        self._is_new = False

    def append(self, line: bytes) -> None:
        """Write a line: all of it, or, if that fails, nothing."""
        file = self._opened()
        if self._max_size and self._size and self._size + len(line) > self._max_size:
            self._rotate()
            file = self._opened()
        try:
            left = memoryview(line)
            while left:
                left = left[os.write(file, left) :]
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(file, self._size)
            raise
        self._size += len(line)

    def sync(self) -> None:
        """Return when the disk has everything that was written, and the name of a file that is new."""
        if self._file is not None:
            os.fsync(self._file)
        if self._is_new:
            directory = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)
            self._is_new = False

    def close(self) -> None:
        """Close the file; may be called twice."""
        file, self._file = self._file, None
        if file is not None:
            os.close(file)

    def _opened(self) -> int:
        """Return the file, opened if it is not, or no longer the one that its name leads to."""
        if self._file is not None and self._is_current(self._file):
            return self._file
        self.close()
        self._path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, _MODE)
        try:
            self._size = _prepared(file)
        except BaseException:
            os.close(file)
            raise
        self._file, self._is_new = file, not self._size
        return file

    def _is_current(self, file: int) -> bool:
        try:
            return os.path.samestat(os.fstat(file), self._path.stat())
        except FileNotFoundError:
            return False

    def _rotate(self) -> None:
        """Give the full file another name, and remove what is too many."""
        stem, suffix = self._path.stem, self._path.suffix
        moment = self._now().strftime("%Y%m%dT%H%M%S.%fZ")
        self.sync()
        self._path.rename(self._path.with_name(f"{stem}-{moment}{suffix}"))
        self.close()
        old = sorted(self._path.parent.glob(f"{stem}-*{suffix}"))
        for each in old[: len(old) - self._max_backups]:
            each.unlink(missing_ok=True)


def _prepared(file: int) -> int:
    """Lock a file, take off the line that a process before could not finish, and return the size."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise LockedError(error.errno, "another process writes to it") from None
    size = os.fstat(file).st_size
    whole = size
    while whole > 0:
        start = max(0, whole - _TAIL_BYTES)
        end = os.pread(file, whole - start, start).rfind(b"\n")
        if end >= 0:
            whole = start + end + 1
            break
        whole = start
    if whole < size:
        os.ftruncate(file, whole)
    return whole
