"""The memory of this process: how much there is of it, and giving back what is free."""

import ctypes
import os
from pathlib import Path

_STATM = Path("/proc/self/statm")  # proc(5): sizes in pages; the second is the resident set


def resident_bytes() -> int | None:
    """Return the resident memory in bytes; None where the platform does not tell (it is not Linux)."""
    try:
        pages = int(_STATM.read_text(encoding="ascii").split()[1])
    except OSError:
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")


def give_back() -> None:
    """Give memory that is free back to the system, where the C library can (glibc's `malloc_trim`); takes milliseconds.

    Without it, freed batches stay in the heap: the memory in use would not fall, and more would be dropped for it.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)  # releases the interpreter's lock while it works
