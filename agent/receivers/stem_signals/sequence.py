"""Holes and repeats in the numbering of signals: pure, time is an argument.

Every emitter process (`boot`) numbers its signals 1, 2, 3 ... before anything can drop them. A number that is
skipped is a signal on its way or lost; one seen before is a duplicate.
"""

from collections.abc import Collection, Iterator, Mapping

from msgspec import Struct

from agent.core.clock import NANOSECONDS
from agent.stem.wire import Gap

MAX_JUMP = 10_000_000
"""A larger step is no loss but a broken or hostile emitter: such a number is not remembered."""
MAX_BOOTS = 10_000
"""Emitter processes remembered; beyond that the one heard of first is forgotten, and would be believed anew."""
SWEEP_SECONDS = 60
QUIET_SECONDS = 60
"""An emitter that beats and lives is not silent for longer: Stem lets a worker's heartbeat expire after as long."""
MAX_HEAD = 64
"""Numbers before the first one heard that may be told as lost; more of them hint at a life before we listened."""
MAX_HOLES = 1024
"""Holes remembered per boot; the oldest beyond that are told as lost at once, so a broken emitter costs no memory."""


class Numbering(Struct, array_like=True):
    """What was heard of one boot. `holes` and `before` have the first number: the last, and when that was noticed."""

    namespace: str
    emitter: str
    boot: str
    highest: int
    seen_ns: int
    holes: dict[int, tuple[int, int]] = {}
    before: dict[int, tuple[int, int]] = {}  # the head, while nothing promises it
    began_late: bool = False  # nothing was heard of it in the first QUIET_SECONDS of listening


class SequenceTracker:
    """Follows the numbering of every boot it hears.

    A hole is given `grace` seconds to be filled by a signal that was overtaken, then it is a `Gap`. A boot silent for
    `ttl` seconds is forgotten.

    What lies before the first number heard of a boot (its head) is a gap only if the boot surely began while we
    listened, for whoever subscribes late was promised nothing. No number tells that, but silence does: a boot that
    was there when we began would have been heard within `QUIET_SECONDS`, if it is one that beats. So its head is a
    gap when it was first heard later than that, all the while without an outage, and a heartbeat of its own shows
    that it beats; until then, and in all other cases, it is none. Neither an idle worker that never beats nor a
    second process of the same emitter can be mistaken for a loss.
    """

    def __init__(self, *, grace: float = 1.0, ttl: float = 3600.0) -> None:
        self._grace_ns = int(grace * NANOSECONDS)
        self._ttl_ns = int(ttl * NANOSECONDS)
        self._boots: dict[tuple[str, str, str], Numbering] = {}
        self._with_holes: set[tuple[str, str, str]] = set()
        self._next_sweep_ns = 0
        self._listening_ns: int | None = None
        self._followed: dict[tuple[str, str], int] = {}

    def listen(self, since_ns: int | None) -> None:
        """Note since when everything that is published is heard; None: it is not."""
        self._listening_ns = since_ns

    def observe(self, namespace: str, emitter: str, boot: str, seq: int, now_ns: int, *, beat: bool = False) -> bool:
        """Note that a number was heard, and whether by a heartbeat; return False if it was heard before."""
        key = (namespace, emitter, boot)
        numbering = self._boots.get(key)
        if numbering is None:
            numbering = self._begin(key, seq, now_ns)
            if beat and numbering.began_late:
                self._promise(key, numbering)
            return True
        numbering.seen_ns = now_ns
        if beat and numbering.began_late:
            self._promise(key, numbering)
        expected = numbering.highest + 1
        if seq >= expected:
            if seq > expected + MAX_JUMP:
                return True
            if expected < seq:
                numbering.holes[expected] = (seq - 1, now_ns)
                self._with_holes.add(key)
            numbering.highest = seq
            return True
        return _fill(numbering.holes, seq) or _fill(numbering.before, seq)

    def _begin(self, key: tuple[str, str, str], seq: int, now_ns: int) -> Numbering:
        if len(self._boots) >= MAX_BOOTS:
            self._forget(next(iter(self._boots)))
            if self._listening_ns is not None:
                self._listening_ns = now_ns  # the one forgotten may yet speak, and is then as good as never heard
        numbering = self._boots[key] = Numbering(*key, seq, now_ns)
        if seq > 1:
            numbering.before[1] = (seq - 1, now_ns)
            since_ns = self._listening_ns
            waited = since_ns is not None and now_ns - since_ns > QUIET_SECONDS * NANOSECONDS
            numbering.began_late = waited and seq <= MAX_HEAD
            if now_ns < self._followed.get(key[:2], 0):
                self._promise(key, numbering)
        return numbering

    def _promise(self, key: tuple[str, str, str], numbering: Numbering) -> None:
        """Make holes like any other of what is left of the head: it was published while we listened."""
        numbering.began_late = False
        if numbering.before:
            numbering.holes |= numbering.before
            numbering.before = {}
            self._with_holes.add(key)

    # --- from one agent to another -----------------------------------------------------------------------------------

    def follow(self, namespace: str, emitter: str, seen: Mapping[str, int], now_ns: int) -> None:
        """Go on where another agent stopped: `seen` are the last numbers that it processed, by boot.

        Whatever lies between them and the next ones is a gap, and so is the head of a boot that it did not know.
        """
        self._followed[namespace, emitter] = now_ns + QUIET_SECONDS * NANOSECONDS
        for boot, highest in seen.items():
            known = self._boots.setdefault((namespace, emitter, boot), Numbering(namespace, emitter, boot, 0, now_ns))
            known.highest = max(known.highest, highest)

    def part(self, namespace: str, emitters: Collection[str]) -> list[Gap]:
        """Forget emitters that another agent goes on with; return the holes that are left of them."""
        gaps = []
        for key in [key for key in self._boots if key[0] == namespace and key[1] in emitters]:
            holes = self._boots[key].holes
            gaps += [Gap(*key, first, last, noticed_ns) for first, (last, noticed_ns) in sorted(holes.items())]
            self._forget(key)
        for emitter in emitters:
            self._followed.pop((namespace, emitter), None)
        return gaps

    def processed(self, namespace: str) -> dict[str, dict[str, int]]:
        """Return the highest number heard of each boot, by emitter."""
        found: dict[str, dict[str, int]] = {}
        for (its, emitter, boot), numbering in self._boots.items():
            if its == namespace:
                found.setdefault(emitter, {})[boot] = numbering.highest
        return found

    def tick(self, now_ns: int) -> Iterator[Gap]:
        """Yield the holes whose grace is over; forget boots that fell silent long ago."""
        for key in list(self._with_holes):
            numbering = self._boots[key]
            excess = len(numbering.holes) - MAX_HOLES
            for index, (first, (last, noticed_ns)) in enumerate(sorted(numbering.holes.items())):
                if index < excess or now_ns - noticed_ns >= self._grace_ns:
                    del numbering.holes[first]
                    yield Gap(numbering.namespace, numbering.emitter, numbering.boot, first, last, noticed_ns)
            if not numbering.holes:
                self._with_holes.discard(key)
        if now_ns >= self._next_sweep_ns:
            self._next_sweep_ns = now_ns + SWEEP_SECONDS * NANOSECONDS
            for key in [key for key, known in self._boots.items() if now_ns - known.seen_ns > self._ttl_ns]:
                self._forget(key)

    def _forget(self, key: tuple[str, str, str]) -> None:
        del self._boots[key]
        self._with_holes.discard(key)

    def state(self) -> list[Numbering]:
        """Return what was heard of every boot, holes that are waited for included."""
        return list(self._boots.values())

    def restore(self, state: list[Numbering], back_ns: int) -> None:
        """Go on from a state; `back_ns` is by how much the clock was set back since."""
        for numbering in state:
            key = (numbering.namespace, numbering.emitter, numbering.boot)
            numbering.seen_ns -= back_ns
            for holes in (numbering.holes, numbering.before):
                for first, (last, noticed_ns) in holes.items():
                    holes[first] = (last, noticed_ns - back_ns)
            self._boots[key] = numbering
            if numbering.holes:
                self._with_holes.add(key)

    def close(self) -> Iterator[Gap]:
        """Yield every hole that is left: nobody will listen for what might fill it."""
        for key in self._with_holes:
            numbering = self._boots[key]
            for first, (last, noticed_ns) in sorted(numbering.holes.items()):
                yield Gap(numbering.namespace, numbering.emitter, numbering.boot, first, last, noticed_ns)
            numbering.holes.clear()
        self._with_holes.clear()


def _fill(holes: dict[int, tuple[int, int]], seq: int) -> bool:
    """Take a number out of the hole it is in; return whether there was one."""
    for first, (last, noticed_ns) in holes.items():
        if first <= seq <= last:
            del holes[first]
            if first < seq:
                holes[first] = (seq - 1, noticed_ns)
            if seq < last and len(holes) < MAX_HOLES:
                holes[seq + 1] = (last, noticed_ns)
            return True
    return False
