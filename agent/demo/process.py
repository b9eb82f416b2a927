"""Child processes of the demo and of the benchmarks: started, waited for, measured, stopped."""

import asyncio
import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path

import redis.asyncio

STARTUP_SECONDS = 15.0
STOP_SECONDS = 30.0
_PR_SET_PDEATHSIG = 1


class DemoError(Exception):
    """A part of the demo did not start or end as it should."""


class Process:
    """A child process whose output goes to a file."""

    def __init__(self, name: str, process: asyncio.subprocess.Process, log: Path) -> None:
        self._name = name
        self._process = process
        self._log = log

    def output(self) -> str:
        """Return what the process printed."""
        return self._log.read_text(encoding="utf-8", errors="replace")

    def check(self) -> None:
        """Raise `DemoError` if the process has ended by itself."""
        if self._process.returncode is not None:
            raise DemoError(f"the {self._name} ended with exit code {self._process.returncode}:\n{self.output()}")

    async def announced(self, path: Path) -> str:
        """Wait for the file by which the process says that it is ready; return what is in it."""
        try:
            async with asyncio.timeout(STARTUP_SECONDS):
                while not path.exists():
                    self.check()
                    await asyncio.sleep(0.02)
        except TimeoutError:
            raise DemoError(f"the {self._name} was not ready in {STARTUP_SECONDS:g} s:\n{self.output()}") from None
        return path.read_text(encoding="utf-8")

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def usage(self) -> tuple[float, float]:
        """Return CPU seconds and resident MiB so far; zeros where the platform does not tell."""
        try:
            stat = Path(f"/proc/{self._process.pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
            statm = Path(f"/proc/{self._process.pid}/statm").read_text(encoding="ascii").split()
        except OSError:
            return 0.0, 0.0
        ticks = int(stat[11]) + int(stat[12])
        return ticks / os.sysconf("SC_CLK_TCK"), int(statm[1]) * os.sysconf("SC_PAGE_SIZE") / (1 << 20)

    async def stop(self) -> int:
        """Ask the process to end, and return its exit code."""
        if self._process.returncode is None:
            self._process.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(STOP_SECONDS):
                return await self._process.wait()
        except TimeoutError:
            raise DemoError(f"the {self._name} did not end within {STOP_SECONDS:g} s:\n{self.output()}") from None


@contextlib.asynccontextmanager
async def spawn(
    name: str,
    module: Sequence[str],
    directory: Path,
    *,
    environ: Mapping[str, str] | None = None,
    keep: bool = False,
    dying: signal.Signals = signal.SIGKILL,
) -> AsyncIterator[Process]:
    """Run a Python module as long as the context lasts; what it prints goes to `<name>.log` in the directory.

    None of the user's own variables reach it, but for those in `environ`: the demo must neither obey them nor send
    anything to their backend. With `keep` it is left running when the context ends without an error, or when this
    process is killed; any other child ends with this process, where the platform can do that, by the signal `dying`.
    """
    log = directory / f"{name}.log"
    with log.open("wb") as stream:
        # A session of its own: Ctrl-C reaches the demo alone, which then stops everything in order.
        own = {name: value for name, value in os.environ.items() if not name.startswith(("STEM_", "OTEL_"))}
        child = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", *module),
            stdout=stream,
            stderr=stream,
            start_new_session=True,
            env={**own, **(environ or {})},
            preexec_fn=None if keep else bound(dying),
        )
        try:
            yield Process(name, child, log)
        except BaseException:
            keep = False
            raise
        finally:
            if child.returncode is None and not keep:
                child.terminate()
                try:
                    await asyncio.wait_for(child.wait(), timeout=5)
                except TimeoutError:
                    child.kill()
                    await child.wait()


def bound(dying: signal.Signals) -> Callable[[], None] | None:
    """Return what a child calls before it begins, so that Linux sends it `dying` when this process is no more.

    Nobody else would end it: it has a session of its own, and who was killed stops nothing in order.
    """
    if sys.platform != "linux":
        return None
    prctl, parent = ctypes.CDLL(None).prctl, os.getpid()  # here: after a fork nothing should be imported or loaded

    def bind() -> None:
        prctl(_PR_SET_PDEATHSIG, int(dying))
        if os.getppid() != parent:  # it died before the kernel was told
            os._exit(1)

    return bind


async def printed(agent: Process, phrase: str) -> None:
    """Wait until the agent has printed a phrase."""
    try:
        async with asyncio.timeout(STARTUP_SECONDS):
            while phrase not in agent.output():
                agent.check()
                await asyncio.sleep(0.05)
    except TimeoutError:
        raise DemoError(f"the agent did not begin within {STARTUP_SECONDS:g} s:\n{agent.output()}") from None


async def switch_notifications_on(url: str) -> None:
    """Have Redis tell which strings are written, as an operator does whom the agent told how."""
    client = redis.asyncio.Redis.from_url(url)
    try:
        await client.config_set("notify-keyspace-events", "K$")
    finally:
        await client.aclose()


async def subscribed(url: str, agent: Process) -> None:
    """Wait until the agent listens: what is published before that is lost by design of pub/sub."""
    client = redis.asyncio.Redis.from_url(url)
    try:
        async with asyncio.timeout(STARTUP_SECONDS):
            while not await client.pubsub_numpat():
                agent.check()
                await asyncio.sleep(0.05)
    except TimeoutError:
        raise DemoError(f"the agent did not subscribe within {STARTUP_SECONDS:g} s:\n{agent.output()}") from None
    finally:
        await client.aclose()
