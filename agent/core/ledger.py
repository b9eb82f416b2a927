"""The ledger: every item that was accepted ends as delivered, rejected, dropped with a reason, or is still held."""

from collections import Counter
from dataclasses import dataclass, field


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

    @property
    def held(self) -> int:
        """Items that are queued or under way."""
        return self.accepted - self.delivered - self.rejected.total() - self.dropped.total()

    @property
    def lost(self) -> int:
        """Items that were accepted and will never arrive."""
        return self.rejected.total() + self.dropped.total()


class Ledger:
    """All accounts of the agent."""

    def __init__(self) -> None:
        self.accounts: dict[tuple[str, str], Account] = {}

    def account(self, exporter: str, kind: str) -> Account:
        """Return the account of `exporter` (its id in the YAML) and `kind` (`traces`, `metrics`, `logs`)."""
        return self.accounts.setdefault((exporter, kind), Account(exporter, kind))

    @property
    def lost(self) -> int:
        """Items lost in all accounts together."""
        return sum(account.lost for account in self.accounts.values())
