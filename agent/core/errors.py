"""The agent's errors, typed by what the caller should do.

    AgentError
    ├── ConfigError        the operator must change the configuration; carries every problem found   exit 78
    └── StartupError       a peer refused us for a reason that will not heal by waiting              exit 78

Failures of a running agent are not exceptions but values: a delivery's `Outcome`, a session's `SessionEnd`.
Exit codes follow `sysexits.h` where it has a name for the case.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from traceback import extract_tb

EXIT_OK = 0
EXIT_HELD = 3  # stopped, and something is on the disk that the next start will deliver
EXIT_LOST = 4  # stopped, but something that was accepted did not reach its destination
EXIT_CONFIG = 78  # EX_CONFIG


class AgentError(Exception):
    """Base of all errors the agent raises on purpose; `exit_code` is what the process ends with."""

    exit_code = EXIT_CONFIG


class StartupError(AgentError):
    """A component cannot start and waiting will not help: wrong password, no permission, untrusted certificate."""


class Level(StrEnum):
    """What is looked at to find a mistake in a configuration; each needs what those before it need."""

    SYNTAX = "syntax"
    REFERENCES = "references"
    ENVIRONMENT = "environment"
    CONNECTIVITY = "connectivity"


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong in the configuration, with the place to mend it.

    `line` and `column` count from 1; 0 means that the place has none (an environment variable, a flag).
    """

    file: str
    line: int
    column: int
    path: str
    message: str
    level: Level = Level.SYNTAX

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}:{self.column}" if self.line else self.file
        # A flag's place is its path.
        path = "" if place.endswith(f" {self.path}") else self.path
        return f"{place}: {path}: {self.message}" if path else f"{place}: {self.message}"


class ConfigError(AgentError):
    """Everything that is wrong in a configuration, at once."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(sorted(problems, key=lambda p: (p.file, p.line, p.column)))
        super().__init__("\n".join(map(str, self.problems)))


def fault(error: BaseException) -> str:
    """Say what kind of fault of ours it is and where, as `KeyError at tasks.py:120`.

    Never what it says: that may quote the data it happened on, which is not ours to show.
    """
    frames = extract_tb(error.__traceback__)
    place = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}{place}"
