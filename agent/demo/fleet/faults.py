"""What goes wrong on purpose: signals lost, doubled and delayed on their way to Redis, workers killed."""

import asyncio
import random
from typing import TYPE_CHECKING

import msgspec

from agent.demo.truth import SignalsTruth
from agent.emit import AsyncSignalEmitter, Composer

if TYPE_CHECKING:
    import redis.asyncio

KILL_EVERY_SECONDS = 5.0
_PERCENT = "%"
_EXPECTED = "expected a list such as loss=1%,dup=1%,shuffle=80ms,kill-worker or kill-worker=5s"


class Faults(msgspec.Struct, frozen=True):
    """Shares are 0 to 1; `shuffle_s` delays a signal by up to so many seconds; `kill_every_s` is 0 for never."""

    loss: float = 0.0
    dup: float = 0.0
    shuffle_s: float = 0.0
    kill_every_s: float = 0.0

    @property
    def any(self) -> bool:
        """Whether anything goes wrong at all."""
        return self != Faults()


def parse_faults(text: str) -> Faults:
    """Read `loss=1%,dup=1%,shuffle=80ms,kill-worker`; raises `ValueError` that says what was expected."""
    found: dict[str, float] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, _, value = part.partition("=")
        try:
            match name:
                case "loss" | "dup":
                    found[name] = _share(value)
                case "shuffle":
                    found["shuffle_s"] = _seconds(value)
                case "kill-worker":
                    found["kill_every_s"] = _seconds(value) if value else KILL_EVERY_SECONDS
                case _:
                    raise ValueError(name)  # noqa: TRY301 - told once, below
        except ValueError:
            raise ValueError(f"found {part!r}; {_EXPECTED}") from None
    return Faults(**found)


def _share(text: str) -> float:
    share = float(text.removesuffix(_PERCENT)) / (100 if text.endswith(_PERCENT) else 1)
    if not 0 <= share <= 1:
        raise ValueError(text)
    return share


def _seconds(text: str) -> float:
    number, factor = (text.removesuffix("ms"), 1e-3) if text.endswith("ms") else (text.removesuffix("s"), 1.0)
    if (seconds := float(number) * factor) < 0:
        raise ValueError(text)
    return seconds


class FaultyEmitter(AsyncSignalEmitter):
    """An emitter whose signals meet `faults` after they were numbered, as on a real network; `did` says what became."""

    def __init__(self, client: "redis.asyncio.Redis", composer: Composer) -> None:
        super().__init__(client, composer)
        self.faults = Faults()
        self.chance = random.Random()
        self.did = SignalsTruth()
        self._heard = False
        self._unheard = 0
        self._late: set[asyncio.Task[None]] = set()

    async def send(self, payload: bytes | None) -> None:
        """Publish, or not, or twice, or later."""
        self.did.sent += 1
        if self.chance.random() < self.faults.loss:
            self.did.lost += 1
            self._unheard += self._heard
            return
        copies = 1
        if self.chance.random() < self.faults.dup:
            self.did.doubled += 1
            copies = 2
        for _ in range(copies):
            if self.faults.shuffle_s:
                task = asyncio.create_task(self._send_late(payload, self.chance.uniform(0, self.faults.shuffle_s)))
                self._late.add(task)
                task.add_done_callback(self._late.discard)
            else:
                await super().send(payload)
        self._heard = True
        self.did.noticeable += self._unheard
        self._unheard = 0

    async def _send_late(self, payload: bytes | None, delay: float) -> None:
        await asyncio.sleep(delay)
        await super().send(payload)

    async def close(self) -> None:
        """Send what is on its way, then close."""
        await asyncio.gather(*self._late)
        self.did.dropped = self.dropped
        await super().close()

    async def kill(self) -> None:
        """Close at once, as a killed process does."""
        for task in self._late:
            task.cancel()
        await asyncio.gather(*self._late, return_exceptions=True)
        await self.close()
