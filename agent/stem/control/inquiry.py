"""One command to many workers, from the first key that it makes to the last that it takes away. Pure.

What is written, all of it on the broker: the reply stream, made as a worker would make it (`XGROUP CREATE MKSTREAM`)
but with a time to live, and an entry on the control stream of each worker, if it has one. What is taken back: the
entries, read or not, because one that stays is obeyed by the next worker of that id, however much later; and the reply
stream. If a worker has read its command and not answered, the stream stays until it expires: its late reply would make
the stream anew, and for ever.
"""

from collections.abc import Iterable, Sequence
from datetime import datetime
from enum import StrEnum

from msgspec import Struct

from agent.stem.control.protocol import (
    ControlCommand,
    Reply,
    decode_reply,
    reply_queue,
    request,
    request_fields,
    worker_queue,
)
from agent.stem.keys import Keys
from agent.stem.lenient import DecodeError
from agent.stem.questions.query import Command, Query, QueryRefusedError, ServerError, needed, pairs, text
from agent.stem.questions.query import Reply as Answered
from agent.stem.questions.streams import read_groups

LATE_MS = 600_000
"""How long after the end of the wait a late reply finds a stream that expires: a worker may stand still for minutes."""


class NoReply(StrEnum):
    """Why a worker did not answer, as far as Redis tells."""

    NOT_LISTENING = "it has no control stream"
    UNREAD = "it did not read the command"
    UNANSWERED = "it read the command, and did not answer in time"
    UNKNOWN = "it did not answer in time"


class Answer(Struct, frozen=True):
    """A worker's reply, `after_ms` after its command by Redis' clock."""

    reply: Reply
    after_ms: int


class Inquiry:
    """Asks `workers` of the worker namespace `namespace`; `keys` are the broker's.

    The questions are to be asked in the order `prepare`, `send`, `listen` while `waiting`; and `withdraw` in any case.
    `odd` are reasons of entries on the reply stream that are no replies of those workers.
    """

    def __init__(
        self,
        command: ControlCommand,
        workers: Sequence[str],
        *,
        keys: Keys,
        namespace: str,
        request_id: str,
        timeout_ms: int,
        include_revoked: bool = True,
    ) -> None:
        self.command = command
        self.workers = tuple(workers)
        self.answers: dict[str, Answer] = {}
        self.silent: dict[str, NoReply] = {}
        self.odd: list[str] = []
        self._keys, self._namespace = keys, namespace
        self._request_id, self._timeout_ms = request_id, timeout_ms
        self._include_revoked = include_revoked
        self._reply_queue = reply_queue(namespace, request_id)
        self._replies = keys.stream(self._reply_queue)
        self._sent: dict[str, str] = {}
        self._after = "0-0"

    @property
    def waiting(self) -> bool:
        """Whether a worker that has been sent its command may still answer."""
        return len(self._sent) > len(self.answers)

    @property
    def all_well(self) -> bool:
        """Whether every worker answered, and did what it was asked."""
        return len(self.answers) == len(self.workers) and all(answer.reply.ok for answer in self.answers.values())

    @property
    def left_behind(self) -> list[tuple[str, str]]:
        """Return stream and id of the commands that were not taken back."""
        return [(self._stream(worker), entry) for worker, entry in self._sent.items()]

    @property
    def replies(self) -> str:
        """The stream of the replies."""
        return self._replies

    @property
    def pattern(self) -> str:
        """The keys that are written to, as `ACL SETUSER` takes them."""
        return f"{self._keys.stream(self._namespace)}.control.*"

    def prepare(self) -> Query[None]:
        """Make the reply stream; it goes by itself, whatever becomes of the asker.

        Raises `QueryRefusedError` if the server refuses: then there is nothing to take back.
        """
        replies = yield [
            ("MULTI",),
            ("XGROUP", "CREATE", self._replies, self._keys.group(self._reply_queue), "0", "MKSTREAM"),
            ("PEXPIRE", self._replies, self._timeout_ms + LATE_MS),
            ("EXEC",),
        ]
        needed(_first_error(replies))

    def send(self, now: datetime) -> Query[None]:
        """Send every worker its command; `now` is in UTC. Raises `QueryRefusedError` if the server refuses one."""
        replies = yield [self._request(worker, now) for worker in self.workers]
        for worker, reply in zip(self.workers, replies, strict=True):
            if reply is None:
                self.silent[worker] = NoReply.NOT_LISTENING
            elif not isinstance(reply, ServerError):
                self._sent[worker] = text(reply)
        needed(_first_error(replies))

    def listen(self, block_ms: int) -> Query[None]:
        """Wait for so long (at least 1 ms) for a reply. Raises `QueryRefusedError` if the server refuses."""
        (reply,) = yield [("XREAD", "BLOCK", max(1, block_ms), "STREAMS", self._replies, self._after)]
        self._take(needed(reply))

    def withdraw(self) -> Query[None]:
        """Take back what was written, in two round trips, and find out why who is silent did not answer.

        The lag of a control stream's group is unknown to Redis after that; nobody counts on it. Raises
        `QueryRefusedError` if the server refuses; `left_behind` says what then is left.
        """
        sent, silent = dict(self._sent), [worker for worker in self._sent if worker not in self.answers]
        replies = yield [
            *self._take_back(sent),
            *(("XINFO", "GROUPS", self._stream(worker)) for worker in silent),
            ("XREAD", "STREAMS", self._replies, self._after),
        ]
        if not isinstance(replies[-1], ServerError):
            self._take(replies[-1])
        for worker, reply in zip(silent, replies[2 * len(sent) : -1], strict=True):
            if worker not in self.answers:
                self.silent[worker] = self._why(worker, sent[worker], reply)
        deleted = yield [("DEL", self._replies)] if self._nobody_will_answer() else []
        for worker, reply in zip(sent, replies, strict=False):
            if not isinstance(reply, ServerError):
                del self._sent[worker]
        needed(_first_error((*replies[: 2 * len(sent)], *deleted)))

    # --- commands --------------------------------------------------------------------------------------------------

    def _stream(self, worker: str) -> str:
        return self._keys.stream(worker_queue(self._namespace, worker))

    def _request(self, worker: str, now: datetime) -> Command:
        asked = request(
            *(self.command, self._request_id),
            namespace=self._namespace,
            worker_id=worker,
            timeout_ms=self._timeout_ms,
            include_revoked=self._include_revoked,
        )
        fields = request_fields(asked, queue=worker_queue(self._namespace, worker), now=now)
        # Without a stream nobody listens, and there is none to be made by us.
        return ("XADD", self._stream(worker), "NOMKSTREAM", "*", *(part for item in fields.items() for part in item))

    def _take_back(self, sent: dict[str, str]) -> Iterable[Command]:
        """Yield what deletes the commands, and takes them off the pending lists: nobody claims what is on none."""
        for worker, entry in sent.items():
            yield "XDEL", self._stream(worker), entry
        for worker, entry in sent.items():
            yield "XACK", self._stream(worker), self._keys.group(worker_queue(self._namespace, worker)), entry

    # --- replies ---------------------------------------------------------------------------------------------------

    def _take(self, reply: Answered) -> None:
        """Read what `XREAD` found: nothing, or the entries of the one stream."""
        for _, entries in reply or ():
            for entry, fields in entries:
                self._after = text(entry)
                self._take_one(self._after, dict(pairs(fields)))

    def _take_one(self, entry: str, fields: dict[str, bytes]) -> None:
        try:
            reply = decode_reply(fields, self.command)
        except DecodeError as error:
            self.odd.append(error.reason)
            return
        if asked := self._sent.get(reply.worker_id):
            self.answers[reply.worker_id] = Answer(reply, max(0, _ms(entry) - _ms(asked)))
        else:
            self.odd.append("not_asked")

    def _why(self, worker: str, entry: str, reply: Answered) -> NoReply:
        """Say why a worker did not answer, from the groups on its stream."""
        try:
            groups = read_groups(reply) or []
        except QueryRefusedError:
            return NoReply.UNKNOWN
        name = self._keys.group(worker_queue(self._namespace, worker))
        read = any(group.name == name and _id(group.last_delivered) >= _id(entry) for group in groups)
        return NoReply.UNANSWERED if read else NoReply.UNREAD

    def _nobody_will_answer(self) -> bool:
        return not {NoReply.UNANSWERED, NoReply.UNKNOWN} & set(self.silent.values())


def _first_error(replies: Iterable[Answered]) -> Answered:
    return next((reply for reply in replies if isinstance(reply, ServerError)), None)


def _ms(entry: str) -> int:
    return int(entry.partition("-")[0])


def _id(entry: str) -> tuple[int, int]:
    milliseconds, _, sequence = entry.partition("-")
    return int(milliseconds), int(sequence)
