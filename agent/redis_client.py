"""redis-py clients for commands, made from what an operator wrote: the same credentials and TLS as everywhere else.

A user that may do little must do: RESP2, so no `HELLO`; no client name, whose refusal redis-py would take for a failed
connection. Its own `CLIENT SETINFO` may be refused.
"""

import asyncio
import os
import ssl
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from agent.settings.redis_tls import RedisTls
from agent.settings.reloading import Reloading
from agent.settings.types import RedisUrl

if TYPE_CHECKING:
    from redis.asyncio import Redis

# redis-py is imported where it is first needed: it costs 11 MiB and 0.2 s.


def redis_client(
    url: RedisUrl, tls: RedisTls, *, timeout: float, on_failure: Callable[[str], None], timed: bool = True
) -> "Redis":
    """Return a client that has yet to connect, and does so anew with the next command after each failure.

    A command is tried once and given `timeout` seconds; connecting too. Answers are not `timed` where the caller does
    that for thousands at once: redis-py starts a timer for each, which costs as much as reading it.

    Raises `StartupError` if a TLS file cannot be used; every new connection uses the files as they are then, and
    `on_failure` is told of those that cannot be.
    """
    from redis.asyncio import Connection, ConnectionPool, Redis, SSLConnection  # noqa: PLC0415 - see above
    from redis.asyncio.retry import Retry  # noqa: PLC0415
    from redis.backoff import NoBackoff  # noqa: PLC0415

    class TlsConnection(SSLConnection):
        """Uses our TLS context: redis-py's own would trust the system's authorities beside `ca_file`."""

        def __init__(self, *, tls: Reloading[ssl.SSLContext], **options: Any) -> None:
            super().__init__(**options)
            self._tls = tls

        def _connection_arguments(self) -> Mapping[str, Any]:
            self.ssl_context.context = self._tls.get(asyncio.get_running_loop().time())
            return super()._connection_arguments()

    options: dict[str, Any] = {
        "host": url.host,
        "port": url.port,
        "db": url.database,
        "password": url.password,
        # A user without a password logs in nowhere: the subscribed connection sends no AUTH either.
        "username": url.username if url.password is not None else None,
        "socket_timeout": timeout if timed else None,
        "socket_connect_timeout": timeout,
        "retry": Retry(NoBackoff(), 0),
        "protocol": 2,
    }
    if url.tls:
        context = tls.reloading(0.0, on_failure)
        pool = ConnectionPool(connection_class=TlsConnection, tls=context, **options)
    else:
        pool = ConnectionPool(connection_class=Connection, **options)
    return Redis.from_pool(pool)


def failure(error: Exception) -> str:
    """Say in plain words why a command failed: the server's answer, or what the system says. It names no address."""
    from redis.exceptions import ConnectionError, TimeoutError  # noqa: A004, PLC0415 - redis-py names them so

    cause = error.__context__
    if isinstance(cause, OSError) and cause.errno and cause.errno > 0:
        return os.strerror(cause.errno).lower()
    text = (str(error) or type(error).__name__).rstrip(".")
    return text.lower() if isinstance(error, ConnectionError | TimeoutError) else text


def is_unavailable(error: Exception) -> bool:
    """Whether it is the server, or the way to it, that failed, and no fault of ours."""
    from redis.exceptions import RedisError  # noqa: PLC0415

    return isinstance(error, RedisError | OSError)


def refused_for_good(error: Exception) -> bool:
    """Whether a server answered the greeting with something that waiting will not mend: password, user, database."""
    from redis.exceptions import (  # noqa: PLC0415
        AuthenticationError,
        ClusterDownError,
        ReadOnlyError,
        ResponseError,
    )

    heals = isinstance(error, ClusterDownError | ReadOnlyError)
    return isinstance(error, AuthenticationError | ResponseError) and not heals
