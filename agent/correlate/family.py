"""Which tasks were traced by their creator, and which only inherited a header. Pure.

Stem's `TaskContext.enqueue` hands all headers of the parent on to the child. Where the worker has no OpenTelemetry,
nobody replaces `traceparent`, so the child carries its parent's: no span of the child's creation exists under that
name. Whoever saw the parent can tell; otherwise the header is believed (telemetry contract, section 2).
"""

from typing import NamedTuple

from agent.correlate import ids
from agent.correlate.origin import Origin

MAX_KNOWN = 5_000
"""Traced tasks remembered, about 200 bytes each; beyond that the one heard of first is forgotten."""


class Ancestry(NamedTuple):
    """Where the spans of a task hang.

    `parent_id` is that of `wait` and `process`. `traced`: the creator made that span; otherwise it is our `send`,
    which itself hangs from `send_parent_id` (empty: it is the root).
    """

    parent_id: bytes
    traced: bool
    send_parent_id: bytes


FamilyState = dict[bytes, tuple[bytes, bytes]]
"""Digest of a task: its context, and the digest of its parent, empty if it has none."""


class Family:
    """Remembers the trace context that each traced task was created with, and by whom."""

    def __init__(self) -> None:
        self._known: FamilyState = {}

    def state(self) -> FamilyState:
        """Return what is known."""
        return self._known

    def restore(self, state: FamilyState) -> None:
        """Go on from a state."""
        self._known = state

    def remember(self, task_id: str, origin: Origin) -> None:
        """Note a task's context; those without one have nothing that a child could inherit."""
        if not origin.context or (digest := _digest(task_id)) in self._known:
            return
        if len(self._known) >= MAX_KNOWN:
            del self._known[next(iter(self._known))]
        parent = origin.lineage.parent_task_id
        self._known[digest] = (origin.context, _digest(parent) if parent else b"")

    def awaits_parents(self, origin: Origin) -> bool:
        """Whether a parent or grandparent, unknown as yet, could change a task's ancestry."""
        parent, context = origin.lineage.parent_task_id, origin.context
        if parent is None or not context:
            return False
        known = self._known.get(_digest(parent))
        if known is None:
            return True
        inherited, grandparent = known[0] == context, known[1]
        return inherited and bool(grandparent) and grandparent not in self._known

    def ancestry(self, task_id: str, origin: Origin) -> Ancestry:
        """Return where a task's spans hang, by what is known now."""
        parent = origin.lineage.parent_task_id
        context = origin.context
        if not context:  # its parent had none either, or it would have been handed on
            return Ancestry(_send(task_id), traced=False, send_parent_id=_send(parent) if parent else b"")
        known = self._known.get(_digest(parent)) if parent else None
        if parent is None or known is None or known[0] != context:
            return Ancestry(context, traced=True, send_parent_id=b"")
        send_parent_id = context if self._traced(_digest(parent)) else _send(parent)
        return Ancestry(_send(task_id), traced=False, send_parent_id=send_parent_id)

    def _traced(self, digest: bytes) -> bool:
        """Whether a known task was traced by its creator: it did not inherit its context from its own parent."""
        context, parent = self._known[digest]
        return parent not in self._known or self._known[parent][0] != context


def _digest(task_id: str) -> bytes:
    return ids.span_id("task", task_id)


def _send(task_id: str) -> bytes:
    return ids.span_id("send", task_id)
