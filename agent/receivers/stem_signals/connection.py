"""One subscribed connection: a socket, and the session that interprets it."""

import asyncio
import os
import ssl
from collections.abc import Callable, Sequence
from typing import cast

import hiredis

from agent.receivers.stem_signals.session import PING, Login, OnMessage, Refusal, Session, SessionEnd, Subscription
from agent.settings.types import RedisUrl


class Refused(Exception):  # noqa: N818 - a server's answer, not a fault of ours
    """The connection cannot be had; `heals` says whether waiting may help."""

    def __init__(self, reason: str, *, heals: bool) -> None:
        super().__init__(reason)
        self.heals = heals


class Connection(asyncio.Protocol):
    """Feeds what the socket brings to the session at once: nothing here ever waits.

    `ended` resolves with the reason when the connection is gone, whoever ended it; `heard_until` is then the last
    moment (the loop's seconds) of which it is sure that nothing said before it was missed. `server_clock` is the
    server's time (Unix microseconds) and the moment at which it came.
    """

    def __init__(self, session: Session) -> None:
        loop = asyncio.get_running_loop()
        self._session = session
        self._transport: asyncio.Transport | None = None
        self._loop = loop
        self._last_heard = self.heard_until = loop.time()
        self._pinger: asyncio.TimerHandle | None = None
        self.server_clock: tuple[int, float] | None = None
        self.subscribed: asyncio.Future[None] = loop.create_future()
        self.ended: asyncio.Future[SessionEnd] = loop.create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the whole handshake at once: its answers come back in order."""
        self._transport = cast("asyncio.Transport", transport)
        self._transport.write(self._session.opening)

    def data_received(self, data: bytes) -> None:
        """Hand the bytes to the session."""
        self._last_heard = self._loop.time()
        try:
            self._session.feed(data)
        except (
            hiredis.ProtocolError,
            TypeError,
            ValueError,
            IndexError,
            AttributeError,
        ):  # no, or no sound, redis protocol
            self.end(SessionEnd.GARBAGE)
            return
        if self.server_clock is None and self._session.server_time_us is not None:
            self.server_clock = (self._session.server_time_us, self._last_heard)
        if not self.subscribed.done() and (self._session.ready or self._session.refusal):
            if self._session.refusal:
                self.end(SessionEnd.REFUSED)
            else:
                self.subscribed.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        """Note that the other side closed: in order, so that all it had said was heard; or not (a reset, a timeout)."""
        self.end(SessionEnd.CLOSED, heard_until=None if exc else self._loop.time())

    def end(self, reason: SessionEnd, *, heard_until: float | None = None) -> None:
        """Close the socket; the first reason given is the one that counts.

        `heard_until` is when the last byte came, unless it is given.
        """
        if self._pinger:
            self._pinger.cancel()
        if not self.ended.done():
            self.heard_until = self._last_heard if heard_until is None else heard_until
            self.ended.set_result(reason)
        if not self.subscribed.done():
            self.subscribed.cancel()
        if self._transport:
            self._transport.abort()

    def ping(self, answered: Callable[[], None] | None) -> None:
        """Ask for a sign of life; `answered` is called when it has come, after everything said before it."""
        if self._transport:
            self._session.pings.append(answered)
            self._transport.write(PING)

    def keep_alive(self, interval: float) -> None:
        """Ping every `interval` seconds of silence; end the session after two without a word."""
        silence = self._loop.time() - self._last_heard
        if silence >= 2 * interval:
            self.end(SessionEnd.SILENT)
            return
        if silence >= interval / 2:
            self.ping(None)
        self._pinger = self._loop.call_later(interval, self.keep_alive, interval)


async def subscribe(
    url: RedisUrl,
    tls: ssl.SSLContext | None,
    subscriptions: Sequence[Subscription],
    on_message: OnMessage,
    *,
    timeout: float,  # noqa: ASYNC109 - covers connecting and subscribing together
) -> tuple[Connection, list[Refusal]]:
    """Connect and subscribe; return the connection and the optional steps that were declined.

    Raises `Refused`.
    """
    session = Session(Login(url.username, url.password, url.database), subscriptions, on_message)
    loop = asyncio.get_running_loop()
    connection: Connection | None = None
    try:
        async with asyncio.timeout(timeout):
            _, connection = await loop.create_connection(
                lambda: Connection(session), url.host, url.port, ssl=tls, server_hostname=url.host if tls else None
            )
            await asyncio.wait((connection.subscribed, connection.ended), return_when=asyncio.FIRST_COMPLETED)
    except (OSError, UnicodeError) as error:
        raise _refused(error, url, timeout) from error
    except asyncio.CancelledError:
        if connection is not None:
            connection.end(SessionEnd.STOPPED)
        raise
    finally:
        if connection is not None and not session.ready:
            connection.end(SessionEnd.UNREACHABLE)
    if refusal := session.refusal:
        raise Refused(f"{refusal.answer} (on {refusal.step})", heals=refusal.heals)
    if not session.ready:
        raise Refused(connection.ended.result().value, heals=True)
    return connection, session.declined


def _refused(error: Exception, url: RedisUrl, timeout: float) -> Refused:
    """Say in plain words why there is no connection, and whether waiting may help."""
    if isinstance(error, UnicodeError):
        return Refused(f"{url.host!r} is no host name", heals=False)
    if isinstance(error, TimeoutError) and error.errno is None:
        return Refused(f"no answer within {timeout:g} s{' (is it a tls port?)' if url.tls else ''}", heals=True)
    if isinstance(error, ssl.SSLCertVerificationError):
        return Refused(f"certificate not trusted: {error.verify_message}", heals=False)
    if isinstance(error, ssl.SSLError):
        passing = isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError)
        return Refused(f"tls failed: {error.reason or error}", heals=passing)
    number = error.errno if isinstance(error, OSError) else None
    # Without asyncio's decoration: `[Errno 111] Connect call failed ('127.0.0.1', 1)`.
    return Refused(os.strerror(number).lower() if number and number > 0 else str(error).lower(), heals=True)
