"""Whether a directory that an operator named can be written to; asked of one that need not be there yet."""

import os
from pathlib import Path


def nearest_there(directory: Path) -> Path:
    """Return the directory, or the nearest one above it that there is."""
    return next((each for each in (directory, *directory.parents) if each.exists()), Path())


def unusable(directory: Path, variable: str) -> str:
    """Say why nothing can be written there, and what to do; empty where it can. `variable` names another one."""
    there = nearest_there(directory)
    if not there.is_dir():
        return f"{there} is no directory; name another as directory ({variable})"
    if not os.access(there, os.W_OK | os.X_OK):
        verb = "written to" if there == directory else f"made: {there} cannot be written to"
        return f"{directory} cannot be {verb} by user {os.getuid()}; mount a volume there, or name another directory"
    return ""
