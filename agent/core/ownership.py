"""Which of several agents does what is to be done once: leases as arithmetic. Pure; time is an argument.

Components ask here. Whoever keeps the leases (the extension `ownership`) writes here; without it every agent believes
that it is alone.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from agent.core.claims import Party

WORKERS, SCHEDULES, LETTERS, TASKS = "workers", "schedules", "letters", "tasks"
"""Duties of a leader: it tells `stem.worker.*`, `stem.scheduler.*`, counts dead letters, or tells of unsignalled tasks,
for the whole fleet."""
_MARGIN_PARTS = 10
"""The last tenth of a lease is not used: two clocks that run apart by less than that never overlap."""
_TOLD_LEASES = 2
"""For so long after a leader was last seen its successor is awaited, and nobody takes over its metrics meanwhile."""


@dataclass(slots=True)
class Lease:
    """A right that ends by itself; nanoseconds of our own steady clock.

    It is counted from before its renewal was *sent*, so that it ends here before it ends at the server.
    """

    length_ns: int = 0
    ends_ns: int = 0

    def renewed(self, sent_ns: int) -> None:
        """Note a renewal that was sent at `sent_ns` and has been confirmed."""
        self.ends_ns = sent_ns + self.length_ns

    def gone(self) -> None:
        """Note that it was given up, or that another has it."""
        self.ends_ns = 0

    @property
    def usable_until_ns(self) -> int:
        """When no more is left of it than the margin."""
        return self.ends_ns - self.length_ns // _MARGIN_PARTS

    def holds(self, now_ns: int) -> bool:
        """Whether there is more left of it than the margin."""
        return now_ns < self.usable_until_ns


def _nobody() -> None:
    """Tell nobody."""


class Notebook(Protocol):
    """Where a leader leaves notes for the next one, by the name of the component; raises what its keeper raises."""

    async def read(self, name: str) -> bytes | None:
        """Return the last notes."""

    async def write(self, name: str, notes: bytes) -> None:
        """Keep notes in place of those before."""

    async def read_all(self, name: str) -> dict[str, bytes]:
        """Return notes that were amended, by their keys."""

    async def amend(self, name: str, changes: Mapping[str, bytes | None]) -> None:
        """Change some notes, and strike those that are None: all of that, or nothing."""


class Ownership:
    """What this agent may do, as the others let it.

    `configured`: somebody keeps the leases, under the name `agent`; where nobody does, it leads and owns everything.
    `wake` has the keeper look again at once. `hearers` return whose signals they hear. `notebook` is where a leader
    leaves notes; None where nobody follows.
    """

    def __init__(self) -> None:
        self.configured = False
        self.agent = ""
        self.parties: list[Party] = []
        self.lease = Lease()
        self._standing = Counter[str]()
        self._stood: set[str] = set()
        self.wake: Callable[[], None] = _nobody
        self.notebook: Notebook | None = None
        self._listeners: list[Callable[[], None]] = []
        self.hearers: list[Callable[[], set[tuple[str, str]]]] = []
        self._told_until_ns: dict[str, int] = {}

    # --- for components ----------------------------------------------------------------------------------------------

    def stand(self, duty: str) -> None:
        """Stand for leader, for the sake of a duty such as `WORKERS`; who has none never leads. Call it when built."""
        self._standing[duty] += 1
        self._stood.add(duty)

    def withdraw(self, duty: str) -> None:
        """Give a duty up, and the leadership with the last of them. Call it when stopped: the next leads at once.

        Of several components with one duty the last takes it away: they stop one after the other.
        """
        self._standing -= Counter([duty])
        self.wake()

    @property
    def duties(self) -> set[str]:
        """What this agent is to tell if it leads."""
        return set(self._standing)

    def leads(self, now_ns: int) -> bool:
        """Whether this agent is the leader, surely and for a while. Ask before each poll and each telling of it."""
        return bool(self._standing) and (not self.configured or self.lease.holds(now_ns))

    def fleet_is_told(self, duty: str, now_ns: int) -> bool:
        """Whether a leader tells this of the fleet, this agent or another, or is about to be followed by one."""
        if not self.configured:
            return duty in self._stood  # to the end: who stops first must not be spoken for by who stops last
        return now_ns < self._told_until_ns.get(duty, 0)

    def join(self, party: "Party") -> None:
        """Have a receiver's claims kept. Call it when built."""
        self.parties.append(party)

    def heard(self) -> set[tuple[str, str]]:
        """Return whose signals come here: worker namespaces and ids, and each namespace with an empty id."""
        return set[tuple[str, str]]().union(*(hearer() for hearer in self.hearers))

    def on_change(self, listener: Callable[[], None]) -> None:
        """Have `listener` called whenever this agent became leader or ceased to be."""
        self._listeners.append(listener)

    # --- for whoever keeps the leases --------------------------------------------------------------------------------

    def seen(self, duties: set[str], now_ns: int) -> None:
        """Note that there is a leader with these duties."""
        until_ns = now_ns + _TOLD_LEASES * self.lease.length_ns
        self._told_until_ns |= dict.fromkeys(duties, until_ns)

    def changed(self) -> None:
        """Tell the listeners."""
        for listener in self._listeners:
            listener()
