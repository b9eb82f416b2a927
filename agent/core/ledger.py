"""The ledger: every item that was accepted ends as delivered, rejected, dropped with a reason, or is still held."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field


def _nobody() -> None:
    """Tell nobody."""


@dataclass(slots=True)
class Account:
    """The books of one exporter and one kind of telemetry, in items (spans, log records, data points).

    `accepted = delivered + rejected + dropped + held` at every moment: `held` is what the others leave. Of what was
    accepted, `restored` was left on the disk by an earlier process.
    """

    exporter: str
    kind: str
    accepted: int = 0
    restored: int = 0
    delivered: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    ended: Callable[[], None] = _nobody
    """To be called when items found their end."""

    @property
    def held(self) -> int:
        """Items that are queued or under way."""
        return self.accepted - self.delivered - self.rejected.total() - self.dropped.total()

    @property
    def lost(self) -> int:
        """Items that were accepted and will never arrive."""
        return self.rejected.total() + self.dropped.total()


Mark = dict[tuple[str, str], int]
"""Items accepted so far, by exporter and kind."""


class Ledger:
    """All accounts of the agent."""

    def __init__(self) -> None:
        self.accounts: dict[tuple[str, str], Account] = {}
        self._listeners: list[Callable[[], None]] = []

    def account(self, exporter: str, kind: str) -> Account:
        """Return the account of `exporter` (its id in the YAML) and `kind` (`traces`, `metrics`, `logs`)."""
        return self.accounts.setdefault((exporter, kind), Account(exporter, kind, ended=self._ended))

    def on_end(self, listener: Callable[[], None]) -> None:
        """Have `listener` called whenever items found their end."""
        self._listeners.append(listener)

    def _ended(self) -> None:
        for listener in self._listeners:
            listener()

    def mark(self) -> Mark:
        """Return up to where everything was accepted by now, for `passed`."""
        return {key: account.accepted for key, account in self.accounts.items()}

    def passed(self, mark: Mark) -> bool:
        """Whether as many items have found their end as were accepted by then: first in, first out, those very ones."""
        return all(self.accounts[key].accepted - self.accounts[key].held >= count for key, count in mark.items())

    @property
    def lost(self) -> int:
        """Items lost in all accounts together."""
        return sum(account.lost for account in self.accounts.values())
