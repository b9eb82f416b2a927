"""The agent as a process that things are done to; what it prints comes through a pipe, which no full disk closes."""

import asyncio
import json
import os
import resource
import signal
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agent.demo.process import bound
from tests.chaos.journal import Moment

STARTUP_SECONDS = 20.0
STOP_SECONDS = 40.0
_UNLIMITED = resource.RLIM_INFINITY


@dataclass(frozen=True, slots=True)
class Told:
    """A line `ledger`: the books of one process, as it closed them."""

    accepted: int
    restored: int
    delivered: int
    rejected: int
    dropped: dict[str, int]
    held: int


@dataclass(slots=True)
class Life:
    """One agent process: `began` and `ended` say what was on the disk, times are the event loop's.

    `exit_code` is None where it was killed, else `told` has its books by kind and `lost` what it says it lost, items
    and what never became any. `disk_failed_at` is when the disk
    refused for the first time while it lived, `failing` whether it did so at the end.
    """

    run: int
    began: Moment
    ended: Moment | None = None
    exit_code: int | None = None
    told: dict[str, Told] = field(default_factory=dict)
    lost: int = 0
    disk_failed_at: float | None = None
    failing: bool = False
    faults: list[str] = field(default_factory=list)


class Agent:
    """An agent process and its life; `running` is set when it says so."""

    def __init__(self, life: Life, process: asyncio.subprocess.Process) -> None:
        self.life = life
        self.lines: list[str] = []
        self.running = asyncio.Event()
        self._process = process
        self._reading = asyncio.create_task(self._read())

    @classmethod
    async def start(cls, config: Path, life: Life, variable: str) -> "Agent":
        own = {name: value for name, value in os.environ.items() if not name.startswith(("STEM_", "OTEL_"))}
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "agent", "run", "--config", str(config)),
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            env={**own, variable: str(life.run)},
            preexec_fn=bound(signal.SIGKILL),
        )
        return cls(life, process)

    async def ready(self) -> None:
        """Wait until it runs. Raises `AssertionError` with what it printed if it does not."""
        waiting = asyncio.create_task(self.running.wait())
        try:
            await asyncio.wait((waiting, self._reading), timeout=STARTUP_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            assert self.running.is_set(), f"agent {self.life.run} does not run:\n{self.output}"
        finally:
            waiting.cancel()

    @property
    def output(self) -> str:
        return "".join(self.lines[-50:])

    def check(self) -> None:
        """Raise `AssertionError` if it ended by itself."""
        code = self._process.returncode
        assert code is None, f"agent {self.life.run} ended by itself with {code}:\n{self.output}"

    def send(self, number: signal.Signals) -> None:
        self.check()
        self._process.send_signal(number)

    def allow_writes(self, *, allowed: bool) -> None:
        """Let every write to a file succeed or fail, as on a disk that is full; this binds the superuser, too."""
        self.check()
        limit = (_UNLIMITED if allowed else 0, _UNLIMITED)
        resource.prlimit(self._process.pid, resource.RLIMIT_FSIZE, limit)

    async def kill(self) -> None:
        self.send(signal.SIGKILL)
        await self._over()

    async def end(self) -> None:
        """Ask it to stop, and wait until it has."""
        self.send(signal.SIGTERM)
        async with asyncio.timeout(STOP_SECONDS):
            await self._over()
        self.life.exit_code = self._process.returncode

    async def discard(self) -> None:
        """End it in any case."""
        if self._process.returncode is None:
            self._process.kill()
        await self._over()

    async def _over(self) -> None:
        await self._reading
        await self._process.wait()

    async def _read(self) -> None:
        assert self._process.stderr
        async for line in self._process.stderr:
            text = line.decode()
            self.lines.append(text)
            fields: dict[str, Any] = json.loads(text) if text.startswith("{") else {}
            match fields.get("message"):
                case "stem-agent running":
                    self.running.set()
                case "ledger":
                    self.life.told[fields["signal"]] = _told(fields)
                case "stem-agent stopped":
                    self.life.lost = int(fields["lost"])
                case None:
                    self.life.faults.append(text)
        self.life.faults += [line for line in self.lines if "internal_error" in line or '"exception"' in line]


def _told(fields: dict[str, Any]) -> Told:
    names = ("accepted", "restored", "delivered", "held")
    rejected, dropped = (_by_reason(fields[name]) for name in ("rejected", "dropped"))
    counts = {name: int(fields[name]) for name in names}
    return Told(rejected=rejected.total(), dropped=dict(dropped), **counts)


def _by_reason(text: str) -> Counter[str]:
    pairs = (pair.rpartition(":") for pair in text.split(",") if ":" in pair)
    return Counter({reason: int(items) for reason, _, items in pairs})
