"""What can happen while a fleet is followed from its streams and records, each as one log line and one counter."""

import logging
from dataclasses import dataclass
from typing import ClassVar

from agent.telemetry.events import Event


@dataclass(frozen=True, slots=True)
class TailFailed(Event):
    """A server could not be read; reading goes on from where it was."""

    receiver: str
    redis: str
    subject: str
    reason: str

    phrase: ClassVar[str] = "failed to follow the fleet; going on from there when redis answers"
    counter: ClassVar[str | None] = "stem_agent.tail.failures"
    labels: ClassVar[tuple[str, ...]] = ("receiver", "subject")


@dataclass(frozen=True, slots=True)
class NotificationsFailed(Event):
    """Keyspace notifications cannot be heard: the server is away, or the user may not; records are polled."""

    receiver: str
    redis: str
    subject: str
    reason: str

    phrase: ClassVar[str] = "failed to listen to keyspace notifications; result records are polled meanwhile"
    counter: ClassVar[str | None] = "stem_agent.tail.failures"
    labels: ClassVar[tuple[str, ...]] = ("receiver", "subject")


@dataclass(frozen=True, slots=True)
class EntryUndecodable(Event):
    """An entry of a stream is no envelope that names a task."""

    receiver: str
    stream: str
    entry: str

    phrase: ClassVar[str] = "stream entry could not be decoded"
    level: ClassVar[int] = logging.ERROR
    counter: ClassVar[str | None] = "stem_agent.signals.lost"
    labels: ClassVar[tuple[str, ...]] = ("receiver",)
    constant: ClassVar[tuple[tuple[str, str], ...]] = (("reason", "decode"),)


@dataclass(frozen=True, slots=True)
class RecordUnreadable(Event):
    """A result record is not what Stem writes, or too large; `reason` never quotes it."""

    receiver: str
    reason: str

    phrase: ClassVar[str] = "result record could not be read"
    level: ClassVar[int] = logging.ERROR
    counter: ClassVar[str | None] = "stem_agent.tail.unreadable"
    labels: ClassVar[tuple[str, ...]] = ("receiver", "reason")


@dataclass(frozen=True, slots=True)
class RecordAmbiguous(Event):
    """A record tells of an end, and not of which of several deliveries: it is told of none."""

    receiver: str
    count: int

    phrase: ClassVar[str] = "result records do not tell which delivery ended; their attempts stay without an end"
    counter: ClassVar[str | None] = "stem_agent.tail.ambiguous"
    labels: ClassVar[tuple[str, ...]] = ("receiver",)
    amount_in: ClassVar[str] = "count"


@dataclass(frozen=True, slots=True)
class TasksDropped(Event):
    """Tasks are followed no longer, before their record told of their end.

    `reason` is `max_tasks`, `task_ttl` or `shutdown`.
    """

    receiver: str
    reason: str
    count: int
    example: str

    phrase: ClassVar[str] = "tasks are followed no longer; their records did not tell of an end"
    level: ClassVar[int] = logging.ERROR
    counter: ClassVar[str | None] = "stem_agent.tail.dropped"
    labels: ClassVar[tuple[str, ...]] = ("receiver", "reason")
    amount_in: ClassVar[str] = "count"


@dataclass(frozen=True, slots=True)
class AttemptsOverlooked(Event):
    """A later attempt of a task was seen, and nothing of one before it: its records were overwritten between reads."""

    receiver: str
    count: int

    phrase: ClassVar[str] = "attempts left no record that was seen; keyspace notifications, or a shorter `young`, help"
    counter: ClassVar[str | None] = "stem_agent.tail.overlooked"
    labels: ClassVar[tuple[str, ...]] = ("receiver",)
    amount_in: ClassVar[str] = "count"


@dataclass(frozen=True, slots=True)
class NotificationsOn(Event):
    """The server tells which records change."""

    receiver: str
    redis: str

    phrase: ClassVar[str] = "hearing keyspace notifications; result records are read when they change"
    level: ClassVar[int] = logging.INFO


@dataclass(frozen=True, slots=True)
class NotificationsOff(Event):
    """The server tells of no changes, so records are polled."""

    receiver: str
    redis: str
    found: str
    command: str

    phrase: ClassVar[str] = "keyspace notifications are off, so result records are polled; `command` switches them on"
    level: ClassVar[int] = logging.INFO


@dataclass(frozen=True, slots=True)
class NotesRefused(Event):
    """What the leader before left cannot be used: `reason` is `foreign`, `version` or `broken`."""

    receiver: str
    reason: str
    detail: str

    phrase: ClassVar[str] = "refused the notes of the leader before; following the fleet from now on"
    level: ClassVar[int] = logging.ERROR
    counter: ClassVar[str | None] = "stem_agent.state.refused"
    labels: ClassVar[tuple[str, ...]] = ("receiver", "reason")


@dataclass(frozen=True, slots=True)
class TailBegins(Event):
    """This agent follows the fleet: `since` now, or from where a leader, or a process, before this one `left` it."""

    receiver: str
    since: str
    tasks: int

    phrase: ClassVar[str] = "following the fleet"
    level: ClassVar[int] = logging.INFO


@dataclass(frozen=True, slots=True)
class RecordsHidden(Event):
    """Tasks were done, and their records say `queued`: a publisher wrote that late, over what the worker wrote."""

    receiver: str
    count: int

    phrase: ClassVar[str] = "records say queued of tasks that were done; how they ended cannot be told"
    counter: ClassVar[str | None] = "stem_agent.tail.hidden"
    labels: ClassVar[tuple[str, ...]] = ("receiver",)
    amount_in: ClassVar[str] = "count"
