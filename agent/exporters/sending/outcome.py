"""What a delivery attempt came to. Pure; values, not exceptions, because every one of them is expected."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Delivered:
    """Accepted; `rejected` of the items were not (OTLP partial success), and must not be sent again."""

    rejected: int = 0
    message: str = ""


@dataclass(frozen=True, slots=True)
class Retry:
    """Try again, not before `after` seconds if the server said so (0: back-off alone decides)."""

    reason: str
    detail: str
    after: float = 0.0


@dataclass(frozen=True, slots=True)
class Refused:
    """The destination refuses us, not the batch (key, permission, path): held for a while, then never sent again."""

    reason: str
    detail: str


@dataclass(frozen=True, slots=True)
class Drop:
    """Never to be sent again; `reason` labels the ledger, `detail` is for people."""

    reason: str
    detail: str


Outcome = Delivered | Retry | Refused | Drop
