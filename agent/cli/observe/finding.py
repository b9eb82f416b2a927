"""Which queues a probe is about, and what to say of those that are not there."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from msgspec import Struct

from agent.cli.verdict import Verdict
from agent.stem.client.values import Queue

if TYPE_CHECKING:
    from agent.stem.client.stem_client import StemClient

_INCOMPLETE = "not every key was looked at; name queues with --queue if one is missing"


class FoundQueues(Struct, frozen=True):
    """The state of each queue that exists, and which of those asked for do not; `gaps` is what nobody looked at."""

    states: list[Queue]
    missing: list[str]
    gaps: list[str]

    def tell(self, verdict: Verdict, *, judged: bool) -> list[str]:
        """Tell what is unknown, and return notes: a gap is no more than that where no threshold was given."""
        for name in self.missing:
            verdict.unknown(f"queue {name}: there is no such queue")
        if not judged:
            return self.gaps
        for gap in self.gaps:
            verdict.unknown(gap)
        return []

    @property
    def names(self) -> list[str]:
        """Names of the queues that exist."""
        return [state.queue for state in self.states]


async def find_queues(client: "StemClient", asked: Sequence[str] | None) -> FoundQueues:
    """Read the queues that were asked for, or all; raises a `StemError`."""
    states = await client.queues(asked or None)
    found = {state.queue for state in states}
    gaps = [] if asked or client.complete else [_INCOMPLETE]
    if not asked and not states:
        gaps.append(f"no queue has a key under {client.keys.namespace}: in redis {client.broker.server}")
    return FoundQueues(states, sorted(set(asked or ()) - found), gaps)
