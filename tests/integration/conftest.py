"""`stem-agent` as a process of its own, TLS in front of a server, and every kind of server that there is here."""

import asyncio
import contextlib
import signal
import ssl
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest
import trustme

from tests.servers import VALKEY, Server, binaries, running
from tests.stores import Stores, empty_stores
from tests.tcp import passing_on, serving


class Child:
    """`stem-agent` in a process of its own."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.lines: list[str] = []

    async def until(self, text: str) -> str:
        """Read lines until one has `text`."""
        assert self.process.stderr
        async with asyncio.timeout(20):
            while line := (await self.process.stderr.readline()).decode():
                self.lines.append(line)
                if text in line:
                    return line
        raise AssertionError(f"{text!r} was never printed: {''.join(self.lines)}")

    async def end(self, *signals: signal.Signals) -> int:
        """Send the signals and return the exit code."""
        assert self.process.stderr
        for number in signals:
            self.process.send_signal(number)
        async with asyncio.timeout(20):
            self.lines += (await self.process.stderr.read()).decode().splitlines(keepends=True)
            return await self.process.wait()

    @property
    def output(self) -> str:
        return "".join(self.lines)


Start = Callable[..., "asyncio.Future[Child]"]


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    children: list[asyncio.subprocess.Process] = []

    async def run(*arguments: str, program: str | None = None, **environ: str) -> Child:
        process = await asyncio.create_subprocess_exec(
            *([program] if program else [sys.executable, "-m", "agent"]),
            *arguments,
            stderr=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            start_new_session=True,
            env={"PATH": "/usr/bin:/bin"} | environ,
        )
        children.append(process)
        return Child(process)

    yield run  # type: ignore[misc]
    for process in children:
        if process.returncode is None:
            process.kill()
        await process.communicate()
        process._transport.close()  # type: ignore[attr-defined]


@pytest.fixture
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
async def tls_server(authority: trustme.CA, tmp_path: Path) -> AsyncIterator[Callable[[int], Awaitable[int]]]:
    """The embedded Valkey is built without TLS, so TLS ends in front of it: bytes pass through unchanged."""
    certificate = authority.issue_cert("localhost", "127.0.0.1")
    certificate.private_key_pem.write_to_path(tmp_path / "key.pem")
    certificate.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    async with contextlib.AsyncExitStack() as stack:
        yield lambda target: stack.enter_async_context(serving(passing_on(target), tls=context))


@pytest.fixture(scope="session", params=[VALKEY, *sorted(binaries())])
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    with running(request.param) as server:
        yield server


@pytest.fixture
async def stores(server: Server) -> AsyncIterator[Stores]:
    async with empty_stores(server) as stores:
        yield stores
