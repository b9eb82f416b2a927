"""What `/status` says: pure, from the books that the components keep."""

from collections import Counter
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from agent import __version__
from agent.core.clock import NANOSECONDS
from agent.core.ledger import Ledger
from agent.core.status import ComponentStatus, Part, State, StatusBoard

Healthy = Callable[[ComponentStatus], bool]
LabelSet = tuple[tuple[str, str], ...]
_GAUGES = "stem_agent.exporter.queue."


def status_report(
    board: StatusBoard,
    ledger: Ledger,
    counters: Mapping[tuple[str, LabelSet], int],
    gauges: Mapping[tuple[str, LabelSet], float],
    *,
    healthy: Healthy,
    ready: str,
    now_ns: int,
) -> dict[str, Any]:
    """Return the whole status as plain values; `ready` says why the agent is not ready, and is empty when it is."""
    components: dict[str, dict[str, Any]] = {}
    for component in board:
        told = _component(component, healthy=healthy(component))
        components.setdefault(component.section, {})[component.identity] = told
    return {
        "version": __version__,
        "agent": board.agent,
        "phase": board.phase,
        "ready": not ready,
        "not_ready_because": ready or None,
        "healthy": all(entry["healthy"] for entries in components.values() for entry in entries.values()),
        "at": moment(now_ns),
        "started": moment(board.began_ns),
        "uptime_seconds": round((now_ns - board.began_ns) / NANOSECONDS, 3),
        "components": components,
        "ledger": _ledger(ledger, gauges),
        "counters": _totals(counters),
        "signals_lost": _by_label(counters, "stem_agent.signals.lost", "reason"),
        "gauges": {
            _named(name, labels): value for (name, labels), value in gauges.items() if not name.startswith(_GAUGES)
        },
    }


def moment(time_ns: int) -> str | None:
    """Return a moment as RFC 3339 in UTC with milliseconds; None for never."""
    if not time_ns:
        return None
    text = datetime.fromtimestamp(time_ns / NANOSECONDS, UTC).isoformat(timespec="milliseconds")
    return text.replace("+00:00", "Z")


def _component(component: ComponentStatus, *, healthy: bool) -> dict[str, Any]:
    error, error_ns = component.last_error
    told: dict[str, Any] = {
        "state": component.state,
        "since": moment(component.since_ns),
        "healthy": healthy,
        "reason": component.reason or None,
        "last_error": {"at": moment(error_ns), "text": error} if error_ns else None,
    }
    if component.parts and component.life is State.OK:
        told["parts"] = {name: _part(part) for name, part in list(component.parts.items())}
    return told


def _part(part: Part) -> dict[str, Any]:
    return {
        "state": part.state,
        "since": moment(part.since_ns),
        "reason": part.reason or None,
        "last_ok": moment(part.proven_ns),
        "last_error": {"at": moment(part.last_error_ns), "text": part.last_error} if part.last_error_ns else None,
    }


def _ledger(ledger: Ledger, gauges: Mapping[tuple[str, LabelSet], float]) -> dict[str, dict[str, Any]]:
    told: dict[str, dict[str, Any]] = {}
    for account in list(ledger.accounts.values()):
        labels = (("exporter", account.exporter), ("signal", account.kind))
        queue = {
            name.removeprefix(_GAUGES): value
            for (name, pairs), value in gauges.items()
            if name.startswith(_GAUGES) and pairs == labels
        }
        told.setdefault(account.exporter, {})[account.kind] = {
            "accepted": account.accepted,
            "delivered": account.delivered,
            "rejected": dict(account.rejected),
            "dropped": dict(account.dropped),
            "held": account.held,
            "queue": queue or None,
        }
    return told


def _totals(counters: Mapping[tuple[str, LabelSet], int]) -> dict[str, int]:
    totals: Counter[str] = Counter()
    for (name, _), value in counters.items():
        totals[name] += value
    return dict(sorted(totals.items()))


def _by_label(counters: Mapping[tuple[str, LabelSet], int], wanted: str, label: str) -> dict[str, int]:
    totals: Counter[str] = Counter()
    for (name, labels), value in counters.items():
        if name == wanted:
            totals[dict(labels).get(label, "")] += value
    return dict(sorted(totals.items()))


def _named(name: str, labels: LabelSet) -> str:
    told = ",".join(f"{key}={value}" for key, value in labels)
    return f"{name}{{{told}}}" if told else name
