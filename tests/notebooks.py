"""A notebook in memory, which can be lost or broken on demand."""

from collections.abc import Mapping


class MemoryNotebook:
    """Keeps notes of both kinds; `broken`: it takes no more."""

    def __init__(self) -> None:
        self.kept: dict[str, bytes] = {}
        self.amended: dict[str, dict[str, bytes]] = {}
        self.broken = False

    async def read(self, name: str) -> bytes | None:
        """Return the last notes."""
        return self.kept.get(name)

    async def write(self, name: str, notes: bytes) -> None:
        """Keep notes in place of those before."""
        self._refuse()
        self.kept[name] = notes

    async def read_all(self, name: str) -> dict[str, bytes]:
        """Return notes that were amended."""
        return dict(self.amended.get(name, {}))

    async def amend(self, name: str, changes: Mapping[str, bytes | None]) -> None:
        """Change some notes, and strike those that are None."""
        self._refuse()
        known = self.amended.setdefault(name, {})
        for key, note in changes.items():
            if note is None:
                known.pop(key, None)
            else:
                known[key] = note

    def _refuse(self) -> None:
        if self.broken:
            raise ConnectionRefusedError(111, "refused")
