"""How much memory this process may use: its cgroup's limit (version 2 or 1), else what the machine has."""

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

_V2, _V1 = "memory.max", "memory.limit_in_bytes"


def available_bytes(root: Path = Path("/")) -> int:
    """Return the smallest limit of the cgroup and those around it, or the machine's memory if that is less.

    cgroup v2: https://docs.kernel.org/admin-guide/cgroup-v2.html, `memory.max`; v1 writes a huge number for no limit.
    """
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min([machine, *filter(None, map(_limit, _files(root)))])


def _files(root: Path) -> Iterator[Path]:
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    mount = root / "sys/fs/cgroup"
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if not controllers:
            base, name = mount, _V2
        elif "memory" in controllers.split(","):
            base, name = mount / "memory", _V1
        else:
            continue
        # In a container the path may be the host's, which is not seen from within: the mount itself is our cgroup then.
        inside = PurePosixPath(path.lstrip("/"))
        yield from (base / folder / name for folder in (inside, *inside.parents))


def _limit(file: Path) -> int | None:
    try:
        text = file.read_text(encoding="ascii").strip()
    except OSError:
        return None
    return int(text) if text.isdigit() and int(text) else None
