"""The RESP conversation of one subscribed connection, without I/O (the RESP2 push mode of the Redis protocol).

    connect --> AUTH --> CLIENT SETNAME --> SELECT --> TIME --> SUBSCRIBE / PSUBSCRIBE --> messages and pings
                  |      (optional)           |      (optional)     |
                  +---------------------------+---------------------+--> Refusal: will it heal by waiting?

Bytes go in through `feed`, messages come out of it, and what is to be sent are `opening` and `PING`.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum

import hiredis


class SessionEnd(Enum):
    """Every way in which a session can end."""

    REFUSED = "refused by the server"
    UNREACHABLE = "server unreachable"
    CLOSED = "connection closed by the server"
    SILENT = "no answer to ping"
    UNHEARD = "canary not heard"
    GARBAGE = "not the redis protocol"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class Refusal:
    """The server's answer to a step of the handshake; `heals` says whether it may go away by itself."""

    step: str
    answer: str
    heals: bool


@dataclass(frozen=True, slots=True)
class Subscription:
    """What to listen to: exact channels or glob patterns. An optional one may be refused without harm."""

    names: tuple[str, ...]
    pattern: bool = False
    optional: bool = False


@dataclass(frozen=True, slots=True)
class Login:
    """Credentials, database and client name; the password is not shown."""

    username: str | None
    password: str | None
    database: int
    client_name: str = "stem-agent"

    def __repr__(self) -> str:
        return f"Login(username={self.username!r}, database={self.database})"


# Server states that pass (Redis and Valkey `src/server.c`, `src/networking.c`); every other refusal stays.
_PASSING = ("LOADING", "MASTERDOWN", "BUSY", "TRYAGAIN", "CLUSTERDOWN", "ERR max number of clients")

OnMessage = Callable[[bytes, bytes], None]


def command(*words: str) -> bytes:
    """Encode a command as an array of bulk strings."""
    encoded = [word.encode() for word in words]
    body = b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in encoded)
    return b"*%d\r\n%b" % (len(encoded), body)


PING = command("PING")
_TIME = "TIME"


@dataclass(frozen=True, slots=True)
class _Step:
    name: str
    request: bytes
    optional: bool = False


class Session:
    """One connection's conversation.

    `on_message(channel, payload)` is called for every message. After `feed`, `ready` says whether every
    subscription stands, `refusal` why it never will, `declined` which optional steps were refused, `server_time_us`
    what time it was at the server (Unix microseconds) when it answered, None where it does not tell. `pings` are under
    way, each with what to call when its answer has come, and everything that was said before it.
    """

    def __init__(self, login: Login, subscriptions: Sequence[Subscription], on_message: OnMessage) -> None:
        self._reader = hiredis.Reader(notEnoughData=False)
        self._steps = list(self._handshake(login, subscriptions))
        self._on_message = on_message
        self.refusal: Refusal | None = None
        self.declined: list[Refusal] = []
        self.pings: deque[Callable[[], None] | None] = deque()
        self.server_time_us: int | None = None
        self.opening = b"".join(step.request for step in self._steps)

    @property
    def ready(self) -> bool:
        """Whether every step of the handshake was answered."""
        return not self._steps and self.refusal is None

    @staticmethod
    def _handshake(login: Login, subscriptions: Sequence[Subscription]) -> Iterator[_Step]:
        if login.password is not None:
            words = (login.username, login.password) if login.username else (login.password,)
            yield _Step("AUTH", command("AUTH", *words))
        # For the operator who reads CLIENT LIST; an ACL may forbid it.
        yield _Step("CLIENT SETNAME", command("CLIENT", "SETNAME", login.client_name), optional=True)
        if login.database:
            # Pub/sub ignores the database, but a wrong one is a mistake that the operator wants to hear about.
            yield _Step("SELECT", command("SELECT", str(login.database)))
        # The clock against which those of the workers are told; a subscribed connection may ask no more.
        yield _Step(_TIME, command(_TIME), optional=True)
        for subscription in subscriptions:
            verb = "PSUBSCRIBE" if subscription.pattern else "SUBSCRIBE"
            # One command a name: a refused command is then answered once, whatever it listed.
            for name in subscription.names:
                yield _Step(f"{verb} {name}", command(verb, name), optional=subscription.optional)

    def feed(self, data: bytes) -> None:
        """Take bytes from the server. Raises `hiredis.ProtocolError` if they are not the Redis protocol."""
        reader = self._reader
        reader.feed(data)
        on_message = self._on_message
        while (reply := reader.gets()) is not False:
            if type(reply) is list and reply:
                kind = reply[0]
                if kind == b"message":
                    on_message(reply[1], reply[2])
                    continue
                if kind == b"pmessage":
                    on_message(reply[2], reply[3])
                    continue
                if kind == b"pong":
                    if self.pings and (answered := self.pings.popleft()):
                        answered()
                    continue
            if self._steps and self.refusal is None:
                self._answer(reply)

    def _answer(self, reply: object) -> None:
        step = self._steps.pop(0)
        if step.name == _TIME and isinstance(reply, list):
            self.server_time_us = int(reply[0]) * 1_000_000 + int(reply[1])
        if not isinstance(reply, hiredis.ReplyError):
            return
        answer = str(reply)
        refusal = Refusal(step.name, answer, heals=answer.startswith(_PASSING))
        if step.optional and not refusal.heals and not answer.startswith("NOAUTH"):
            self.declined.append(refusal)
        else:
            self.refusal = refusal
