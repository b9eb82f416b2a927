"""Where notes are kept: in Redis among several agents, in a storage by one that is alone. The shell."""

import asyncio
from typing import Protocol

from agent.core.kept import KeptStateError
from agent.core.ledger import Ledger
from agent.core.ownership import Ownership
from agent.core.states import StateStore
from agent.receivers.stem_tail import notes
from agent.receivers.stem_tail.events import NotesRefused
from agent.receivers.stem_tail.journal import Journal
from agent.receivers.stem_tail.notes import Notes
from agent.receivers.stem_tail.session import Session
from agent.telemetry.events import Telemetry
from agent.telemetry.keeping import Keeping


class Totals(Protocol):
    """Returns the totals of what was told: those that changed, or all."""

    def __call__(self, *, everything: bool = False) -> dict[str, bytes | None]:
        """Return them by name."""


class Memory:
    """Recalls the notes of whoever led before, and leaves those of this agent.

    Among several agents the leader before need not have been this one, so its disk knows nothing that counts.
    `delivered` is set whenever notes may have become true. Methods raise what the notebook raises.
    """

    def __init__(
        self, identity: str, ownership: Ownership, ledger: Ledger, telemetry: Telemetry, store: StateStore | None = None
    ) -> None:
        self._id = identity
        self._ownership = ownership
        self._ledger = ledger
        self._keeping = Keeping(store, f"receivers/{identity}", identity, telemetry) if store else None
        self._telemetry = telemetry
        self._inherited: Keeping | None = None
        self._stored: Notes | None = None
        self._journal: Journal | None = None
        self._listens = False
        self.delivered = asyncio.Event()

    async def open(self) -> None:
        """Read what the process before left on the disk, or who was here before in this process."""
        inherited, self._inherited = self._inherited, None
        if keeping := inherited or self._keeping:
            self._stored = await keeping.take(notes.unpack)
        if inherited and self._keeping:  # what may still be there is older
            await self._keeping.take(lambda _: None)

    def hand_over(self, store: StateStore) -> None:
        """Leave everything to whoever follows in this process, unless it is left to other agents."""
        self._keeping = Keeping(store, f"receivers/{self._id}", self._id, self._telemetry)
        self._keeping.began = True

    def take_over(self, store: StateStore) -> None:
        """Go on from what whoever was here before in this process left."""
        self._inherited = Keeping(store, f"receivers/{self._id}", self._id, self._telemetry)

    async def recall(self) -> Notes | None:
        """Return the notes to go on from; None where there are none that can be used, which is told."""
        if not (notebook := self._ownership.notebook):
            return self._stored
        self._journal = Journal(notebook, self._id, self._ledger)
        if not self._listens:
            self._ledger.on_end(self.delivered.set)
            self._listens = True
        left = await notebook.read_all(self._id)
        try:
            found = notes.decode(left)
        except KeptStateError as error:
            await self.refuse(error)
            return None
        if found is None and left:
            await notebook.amend(self._id, dict.fromkeys(left))
        return found

    async def refuse(self, error: KeptStateError) -> None:
        """Tell why notes cannot be used, and strike them, so that nobody takes a part of them for the next ones."""
        self._telemetry.emit(NotesRefused(self._id, error.reason, str(error)))
        self._stored = None
        if notebook := self._ownership.notebook:
            await notebook.amend(self._id, dict.fromkeys(await notebook.read_all(self._id)))

    def close(self, session: Session, totals: Totals, now_ns: int) -> None:
        """Take notes of what was told, where others may follow."""
        journal = self._journal
        # What waits to be told is in the tasks already, and not in the totals.
        if journal and not len(session.hold) and journal.is_due(now_ns, news=session.told):
            journal.close(notes.encode(session.standing(), session.changes(), totals()), now_ns)

    async def write(self) -> None:
        """Write the notes of what has arrived."""
        if self._journal:
            await self._journal.write()

    async def leave(self, session: Session, totals: Totals, now_ns: int, timeout: float) -> bool:  # noqa: ASYNC109
        """Leave everything to whoever follows; return whether somebody keeps it."""
        if journal := self._journal:
            journal.close(notes.encode(session.standing(), session.changes(), totals()), now_ns)
            await journal.write(everything=True)
            return True
        if self._keeping and self._keeping.began:
            everything = notes.encode(session.standing(), session.changes(everything=True), totals(everything=True))
            return await self._keeping.put(notes.pack(everything), timeout)
        return False
