"""Whom to ask: only workers whose heartbeat has not expired. Pure.

A command to a worker that is gone would wait on its stream, and be obeyed by the next worker of that id.
"""

import difflib
from collections.abc import Sequence

from agent.stem.client.errors import StemError
from agent.stem.questions.workers import Heartbeats

_MOST_NAMED = 10


class NotLiveError(StemError):
    """Somebody was to be asked who cannot be; a line for each in `problems`, saying who could."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(problems))


def addressees(found: Heartbeats, namespace: str, wanted: Sequence[str]) -> list[str]:
    """Return the ids of those of the live workers of the worker namespace that are `wanted`: all, if none is named.

    A worker whose heartbeat cannot be read lives all the same. Raises `NotLiveError`.
    """
    namespaces = {each.heartbeat.worker_id: each.heartbeat.own_namespace or namespace for each in found.alive}
    namespaces |= dict.fromkeys(found.unreadable, namespace)
    live = sorted(worker for worker, own in namespaces.items() if own == namespace)
    if not wanted:
        if not live:
            elsewhere = _listed(sorted(set(namespaces.values())))
            others = f"; there are live workers in namespace {elsewhere}" if elsewhere else ""
            raise NotLiveError([f"no live worker in namespace {namespace}: every heartbeat has expired{others}"])
        return live
    problems = [_problem(worker, found, namespaces, live) for worker in wanted if worker not in live]
    if problems:
        raise NotLiveError(problems)
    return list(dict.fromkeys(wanted))


def _problem(worker: str, found: Heartbeats, namespaces: dict[str, str], live: Sequence[str]) -> str:
    if own := namespaces.get(worker):
        return f"worker {worker} is in namespace {own}: ask it with --namespace {own}"
    if worker in found.gone:
        return f"worker {worker} is dead: its heartbeat has expired; {_alive(live)}"
    near = difflib.get_close_matches(worker, live, n=1, cutoff=0.6)
    hint = f"did you mean {near[0]}? " if near else ""
    return f"worker {worker} is unknown: it has no heartbeat; {hint}{_alive(live)}"


def _alive(live: Sequence[str]) -> str:
    return f"live are {_listed(live)}" if live else "no worker is live"


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _MOST_NAMED
    return ", ".join(names[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else "")
