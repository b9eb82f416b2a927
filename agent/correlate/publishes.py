"""Publishes of tasks: told once each, and remembered until somebody begins to work on the task. Pure.

What is published and overdue may have been worked on while signals were lost: its record is worth a question.
"""

from collections.abc import Collection
from datetime import tzinfo
from typing import NamedTuple

from agent.core.clock import NANOSECONDS
from agent.correlate.attempt import PUBLISHED, Attempt, Before
from agent.correlate.attempts import AttemptTable
from agent.correlate.family import Family
from agent.correlate.origin import Origin, read_origin
from agent.correlate.recorder import Publish, Recorder
from agent.correlate.shift import Shift
from agent.stem.catalogue import SignalName
from agent.stem.envelope import Envelope, decode_envelope
from agent.stem.timestamps import MAX_NS
from agent.stem.wire import Enqueued, Signal

MAX_KNOWN = 10_000
"""Publishes remembered, at most 1 KiB each; beyond that the one heard of first is forgotten."""
TTL_NS = 600 * NANOSECONDS
OVERDUE_NS = NANOSECONDS
"""A task that nobody began so long after it was due is worth asking for."""
MAX_ASKED = 200
"""Asked for at once: a long queue is mostly what it seems to be."""


class Waiting(NamedTuple):
    """A publish whose task nobody has begun, as far as was heard; `due_ns` is by our clock. `told`: it was counted."""

    publish: Publish
    heard_ns: int
    due_ns: int
    emitter: str
    told: bool


class Publishes:
    """Takes the publish signals."""

    def __init__(self, recorder: Recorder, attempts: AttemptTable, family: Family) -> None:
        self._recorder = recorder
        self._attempts = attempts
        self._family = family
        self._waiting: dict[str, Waiting] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def heard(self, signal: Signal, time_ns: int, zone: tzinfo, now_ns: int) -> bool | None:
        """Take `before-task-publish` or `after-task-publish`.

        Returns whether it was new; None if it names no task.
        """
        envelope = decode_envelope(signal.envelope) or Envelope()
        attributes = signal.attributes
        task_id = attributes.task_id or envelope.id
        if not task_id:
            return None
        task, queue = attributes.task_name or envelope.name, attributes.queue or envelope.queue
        publish = self.of(envelope, task_id, task, queue, signal.namespace, time_ns=time_ns, zone=zone)
        begun = self._begun(publish)
        if signal.event_name == SignalName.AFTER_TASK_PUBLISH:
            new = self._tell(publish, now_ns)
        elif new := self._attempts.once((signal.event_name, task_id), now_ns):
            self._recorder.publishing(publish, now_ns)
            if begun:
                self._tell(publish, now_ns)
        if new and not begun:
            told = signal.event_name == SignalName.AFTER_TASK_PUBLISH
            self._remember(publish, signal.emitter or "", now_ns, told=told)
        return new

    def read(self, fact: Enqueued, time_ns: int, zone: tzinfo, now_ns: int) -> None:
        """Take a publish that was read; where one is `claimed`, its signals tell of it."""
        envelope = fact.envelope
        publish = self.of(
            *(envelope, envelope.id or "", envelope.name, fact.queue, fact.namespace), time_ns=time_ns, zone=zone
        )
        begun, told = self._begun(publish), not fact.claimed
        if (not told or self._tell(publish, now_ns)) and not begun:
            self._remember(publish, "", now_ns, told=told)

    def of(
        self,
        envelope: Envelope,
        task_id: str,
        task: str | None,
        queue: str | None,
        namespace: str,
        *,
        time_ns: int,
        zone: tzinfo,
    ) -> Publish:
        """Return the publish that made an envelope, whose family is remembered."""
        origin = read_origin(envelope, zone)
        self._family.remember(task_id, origin)
        return Publish(
            task_id=task_id,
            task=task or "",
            queue=queue or "",
            namespace=namespace,
            origin=origin,
            span_id=origin.context or self._family.ancestry(task_id, origin).parent_id,
            time_ns=time_ns,
        )

    def _begun(self, publish: Publish) -> list[Attempt]:
        """Return what was begun already of a task, told of its publish."""
        begun = [attempt for attempt in self._attempts.of(publish.task_id) if not attempt.number]
        for attempt in begun:
            attempt.before = _before(publish.origin)
        return begun

    def _remember(self, publish: Publish, emitter: str, now_ns: int, *, told: bool) -> None:
        known = self._waiting.get(publish.task_id)
        if known is None and len(self._waiting) >= MAX_KNOWN:
            del self._waiting[next(iter(self._waiting))]
        origin = publish.origin
        delay_ns = origin.not_before_ns - origin.enqueued_ns if origin.not_before_ns else 0
        due_ns, told = min(MAX_NS, now_ns + max(0, delay_ns)), told or (known is not None and known.told)
        self._waiting[publish.task_id] = Waiting(publish, now_ns, due_ns, emitter, told)

    def _tell(self, publish: Publish, now_ns: int) -> bool:
        """Tell of a publish, if nobody did yet."""
        if not self._attempts.once((SignalName.AFTER_TASK_PUBLISH, publish.task_id), now_ns):
            return False
        self._recorder.published(publish, now_ns)
        return True

    def begun(self, attempt: Attempt, now_ns: int) -> None:
        """Note that a task is worked on: so it was published, though the signal that says so may be lost."""
        if waiting := self._waiting.pop(attempt.task_id, None):
            if not waiting.told:
                self._tell(waiting.publish, now_ns)
            if not attempt.number:
                attempt.before = _before(waiting.publish.origin)

    # --- what nobody began -------------------------------------------------------------------------------------------

    def get(self, task_id: str) -> Publish | None:
        """Return the publish of a task that nobody has begun, as far as was heard."""
        waiting = self._waiting.get(task_id)
        return waiting.publish if waiting else None

    def overdue(self, now_ns: int) -> list[str]:
        """Return tasks that somebody should have begun; each call those that were not returned for longest."""
        found = [key for key, waiting in self._waiting.items() if now_ns - waiting.due_ns >= OVERDUE_NS][:MAX_ASKED]
        for task_id in found:
            self._waiting[task_id] = self._waiting.pop(task_id)
        return found

    def state(self) -> list[Waiting]:
        """Return what is remembered."""
        return list(self._waiting.values())

    def restore(self, state: list[Waiting], shift: Shift) -> None:
        """Go on from a state; nothing is forgotten for our absence before its record can be asked for."""
        self._waiting = {
            publish.task_id: Waiting(publish, shift(heard_ns) + shift.away_ns, shift(due_ns), emitter, told)
            for publish, heard_ns, due_ns, emitter, told in state
        }

    def part(self, namespace: str, emitters: Collection[str]) -> None:
        """Forget what these told: another agent hears the rest, and tells it."""
        self._waiting = {
            task_id: waiting
            for task_id, waiting in self._waiting.items()
            if waiting.publish.namespace != namespace or waiting.emitter not in emitters
        }

    def forget(self, now_ns: int) -> None:
        """Drop what is old: whoever works on it is not heard here."""
        while self._waiting and now_ns - next(iter(self._waiting.values())).heard_ns > TTL_NS:
            del self._waiting[next(iter(self._waiting))]


def _before(origin: Origin) -> Before:
    return Before(b"", origin.not_before_ns) if origin.not_before_ns else PUBLISHED
