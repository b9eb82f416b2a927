"""The fleet: a producer, a Beat and workers over one Redis, until it is told to stop and every task found its end."""

import asyncio
import random
from collections.abc import Coroutine
from datetime import timedelta
from typing import Any

import redis.asyncio

from agent.core.tasks import cancel
from agent.demo.fleet.backend import Backend
from agent.demo.fleet.beat import Beat
from agent.demo.fleet.broker import Broker
from agent.demo.fleet.client import Client
from agent.demo.fleet.envelopes import Envelope, new_envelope
from agent.demo.fleet.faults import Faults, FaultyEmitter
from agent.demo.fleet.kinds import CHOICES, GALLERY, KIND, ORDER, WEIGHTS, Kind
from agent.demo.fleet.worker import Worker
from agent.demo.fleet.workflows import WorkflowRuntime, first_runner
from agent.demo.truth import Truth
from agent.emit import iso, utc_now
from agent.stem.keys import Keys

RESTART_SECONDS = 0.5
TRACED_SHARE = 0.5
"""Half of the applications run OpenTelemetry."""


class Fleet:
    """Producers, queues and workers; `run` ends when `stop` was set and every task found its end."""

    def __init__(
        self, url: str, *, namespace: str, rate: float, workers: int, seed: int, faults: Faults | None = None
    ) -> None:
        self.url = url
        self.namespace = namespace
        self.rate = rate
        self.faults = faults or Faults()
        self.stop = asyncio.Event()
        self.truth = Truth()
        self.chance = random.Random(seed)
        self.keys = Keys()
        self.redis: Any = redis.asyncio.Redis.from_url(url, decode_responses=True)
        self.broker = Broker(self.redis, self.keys)
        self.backend = Backend(self.redis, self.keys)
        self._emitters: list[FaultyEmitter] = []
        self._unfinished: set[str] = set()
        self._idle = asyncio.Event()
        self._broken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._workers = [Worker(self, index + 1) for index in range(workers)]

    # --- what the parts tell ---------------------------------------------------------------------------------------

    def emitter(self, name: str, worker_id: str = "") -> FaultyEmitter:
        """Return the emitter of a new process."""
        emitter = FaultyEmitter.connect(self.url, namespace=self.namespace, emitter=name, worker_id=worker_id)
        emitter.faults, emitter.chance = self.faults, self.chance
        self._emitters.append(emitter)
        return emitter

    def expect(self, subject: str) -> None:
        """Note that a task is about to be published, or a workflow run about to begin."""
        self._unfinished.add(subject)
        self._idle.clear()

    def abandoned(self, envelope: Envelope) -> None:
        """Note that a task will never succeed: the workflow run that it was to advance stands still, as in Stem."""
        self.finished(envelope["id"])
        self.finished(envelope["meta"].get("stem.workflow.runId", ""))

    def finished(self, subject: str) -> None:
        """Note that a task or a run found its final end; more than once is no harm."""
        self._unfinished.discard(subject)
        if not self._unfinished:
            self._idle.set()

    async def stopped_within(self, seconds: float) -> bool:
        """Wait for so long, or until the fleet is told to stop; return whether it was."""
        try:
            async with asyncio.timeout(seconds):
                await self.stop.wait()
        except TimeoutError:
            return False
        return True

    def spawn(self, work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        """Run a part of the fleet as a task; what it dies of ends the fleet."""
        return asyncio.create_task(self._guard(work))

    async def _guard(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except Exception as error:  # noqa: BLE001 - it is raised by `run`
            if not self._broken.done():
                self._broken.set_exception(error)

    # --- life ------------------------------------------------------------------------------------------------------

    async def run(self) -> Truth:
        """Live; return what was done. Raises what a part of the fleet died of."""
        living = asyncio.create_task(self._live())
        await asyncio.wait([living, self._broken], return_when=asyncio.FIRST_COMPLETED)
        if self._broken.done():
            await cancel([living])
            self._broken.result()
        await living
        return self.truth

    async def _live(self) -> None:
        producer = Producer(self)
        beat = Beat(self)
        for worker in self._workers:
            await worker.start()
        beating = self.spawn(beat.run())
        killing = self.spawn(self._kill_now_and_then())
        await producer.run()
        await asyncio.gather(beating, killing)
        if self._unfinished:
            await self._idle.wait()
        for worker in self._workers:
            await worker.close()
        await producer.emitter.close()
        await beat.emitter.close()
        for emitter in self._emitters:
            self.truth.signals.add(emitter.did())
        await self.redis.aclose()

    async def _kill_now_and_then(self) -> None:
        """Kill a worker every so often; another takes its name half a second later, as a restarted container does."""
        while self.faults.kill_every_s and not await self.stopped_within(self.faults.kill_every_s):
            index = self.chance.randrange(len(self._workers))
            await self._workers[index].kill()
            await asyncio.sleep(RESTART_SECONDS)
            self._workers[index] = Worker(self, index + 1)
            await self._workers[index].start()


class Producer:
    """The application: it publishes tasks, chords and workflow runs at random, `rate` a second."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self.emitter = fleet.emitter("producer-1")
        self._client = Client(fleet, self.emitter)
        self._workflows = WorkflowRuntime(fleet, self._client, "producer-1")

    async def run(self) -> None:
        """Publish until the fleet is told to stop."""
        fleet, loop = self._fleet, asyncio.get_running_loop()
        due = loop.time()
        while True:
            due += fleet.chance.expovariate(fleet.rate)
            delay = due - loop.time()
            if fleet.stop.is_set() or (delay > 0 and await fleet.stopped_within(delay)):
                return
            await self._publish(fleet.chance.choices(CHOICES, WEIGHTS)[0])

    async def _publish(self, kind: Kind) -> None:
        chance = self._fleet.chance
        traced = chance.random() < TRACED_SHARE
        if kind is GALLERY:
            await self._client.chord(KIND["gallery.thumbnail"], KIND["gallery.publish"])
        elif kind is ORDER:
            await self._workflows.start(first_runner(), traced=traced)
        else:
            delay = chance.uniform(0.5, 1.5) * kind.delay_s
            meta = {"stem.expiresAt": iso(utc_now() + timedelta(seconds=delay / 2))}
            envelope = new_envelope(
                kind.name,
                kind.queue,
                args={"secret": "never leaves the worker"},
                headers={"tenant": "demo"},
                meta=meta if chance.random() < kind.expire else {},
                priority=kind.priority,
                delay_s=delay,
            )
            await self._client.enqueue(envelope, traced=traced)
