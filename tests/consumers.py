"""A next step of the signals pipeline that keeps what it is given, for the tests of those that give."""

from collections.abc import Mapping, Sequence
from datetime import tzinfo

from agent.stem.wire import Fact, Tailed


class NextStep:
    """Keeps facts, what was read, and how the telling of the fleet began and ended.

    The totals that it tells are `left`; those that it went on from are in `taken_up`.
    """

    def __init__(self) -> None:
        self.facts: list[Fact] = []
        self.tailed: list[Tailed] = []
        self.taken_up: list[Mapping[str, bytes]] = []
        self.given_up: list[bool] = []
        self.left: dict[str, bytes | None] = {}

    def consume_facts(self, facts: Sequence[Fact], zone: tzinfo) -> None:  # noqa: ARG002 - see SignalConsumer
        """Keep them."""
        self.facts += facts

    def consume_tailed(self, receiver: str, facts: Sequence[Tailed], zone: tzinfo) -> None:  # noqa: ARG002 - likewise
        """Keep them."""
        self.tailed += facts

    def take_up(self, receiver: str, totals: Mapping[str, bytes]) -> None:  # noqa: ARG002 - likewise
        """Note from what."""
        self.taken_up.append(totals)

    def totals(self, receiver: str, *, everything: bool = False) -> dict[str, bytes | None]:  # noqa: ARG002 - likewise
        """Return what the test says."""
        return dict(self.left)

    def give_up(self, receiver: str, *, told: bool) -> None:  # noqa: ARG002 - likewise
        """Note whether it was told."""
        self.given_up.append(told)
