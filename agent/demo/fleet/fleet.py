"""The fleet: a producer, a Beat and workers over one Redis, until it is told to stop and every task found its end."""

import asyncio
import random
import time
from collections.abc import Coroutine
from datetime import timedelta
from typing import Any

import redis.asyncio
from msgspec.structs import replace

from agent.core.tasks import cancel
from agent.demo.fleet.beat import Beat
from agent.demo.fleet.client import Client
from agent.demo.fleet.envelopes import Envelope, new_envelope
from agent.demo.fleet.faults import Clock, Faults, FaultyEmitter
from agent.demo.fleet.kinds import CATALOGUE, CHAIN, CHOICES, FORGED, GALLERY, KIND, ORDER, QUEUES, WEIGHTS, Kind
from agent.demo.fleet.worker import Worker
from agent.demo.fleet.workflows import WorkflowRuntime
from agent.demo.truth import FOR_EVER_US, AttemptTruth, Truth
from agent.emit import iso
from agent.stem.keys import Keys

MAX_CONNECTIONS = 4096
"""All workers share one client, and each waits on every one of its queues at once."""
RESTART_SECONDS = 0.5
PAUSE_EVERY_SECONDS, PAUSE_SECONDS = 4.0, 0.4
UNORDERED_US = 5_000
PRODUCER_SKEW = -0.4
TRACED_SHARE = 0.5
"""Half of the applications run OpenTelemetry."""


class Fleet:
    """Producers, queues and workers; `run` ends when `stop` was set and every task found its end.

    What workers know of one another's work: `paused` queues, and by task id and attempt when each was first due
    (Unix microseconds), and whose lease was `extended`, so that a copy of the envelope will be delivered.
    """

    def __init__(
        self,
        url: str,
        *,
        namespace: str,
        rate: float,
        workers: int,
        seed: int,
        faults: Faults | None = None,
        silent: bool = False,
    ) -> None:
        self.url = url
        self.namespace = namespace
        self.rate = rate
        self.faults = faults or Faults()
        self.stop = asyncio.Event()
        self.truth = Truth(silent=silent)
        self.chance = random.Random(seed)
        self.keys = Keys()
        self.redis: Any = redis.asyncio.Redis.from_url(
            url,
            decode_responses=True,
            max_connections=MAX_CONNECTIONS,
        )
        self.paused: set[str] = set()
        self.first_due: dict[tuple[str, int], int] = {}
        self.extended: set[tuple[str, int]] = set()
        self._emitters: list[FaultyEmitter] = []
        self._unfinished: set[str] = set()
        self._writes: dict[str, list[int]] = {}
        self._awaited: dict[str, asyncio.Future[bool]] = {}
        self._idle = asyncio.Event()
        self._broken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._workers = [Worker(self, index + 1) for index in range(workers)]
        self.truth.skews = {worker.worker_id: worker.client.skew_s for worker in self._workers}

    # --- what the parts tell ---------------------------------------------------------------------------------------

    def emitter(self, name: str, worker_id: str, clock: Clock) -> FaultyEmitter:
        """Return the emitter of a new process."""
        emitter = FaultyEmitter.connect(
            self.url, namespace=self.namespace, emitter=name, worker_id=worker_id, clock=clock
        )
        emitter.faults, emitter.chance, emitter.silent = self.faults, self.chance, self.truth.silent
        self._emitters.append(emitter)
        return emitter

    def wrote(self, task_id: str) -> None:
        """Note that a task's record was written."""
        self._writes.setdefault(task_id, []).append(time.monotonic_ns() // 1000)

    def _stood_us(self, attempt: AttemptTruth) -> int:
        """Return how long the record of an attempt's end stood; `stood_us` has when it was written."""
        writes = self._writes.get(attempt.task_id, [])
        own = max((written for written in writes if written <= attempt.stood_us), default=0)
        if not attempt.stood_us or sum(abs(written - own) < UNORDERED_US for written in writes) > 1:
            return 0  # of two at once nobody knows which the server took last
        return next((written - own for written in writes if written > own), FOR_EVER_US)

    def expect(self, subject: str) -> None:
        """Note that a task is about to be published, or a workflow run about to begin."""
        self._unfinished.add(subject)
        self._idle.clear()

    def abandoned(self, envelope: Envelope) -> None:
        """Note that a task will never succeed: the workflow run that it was to advance stands still, as in Stem."""
        self.finished(envelope["id"], succeeded=False)
        self.finished(envelope["meta"].get("stem.workflow.runId", ""))

    def finished(self, subject: str, *, succeeded: bool = True) -> None:
        """Note that a task, a run or a chain found its final end; more than once is no harm."""
        self._unfinished.discard(subject)
        if (awaited := self._awaited.pop(subject, None)) and not awaited.done():
            awaited.set_result(succeeded)
        if not self._unfinished:
            self._idle.set()

    def end_of(self, task_id: str) -> "asyncio.Future[bool]":
        """Return what becomes, at the final end of a task about to be published, whether it succeeded."""
        self._awaited[task_id] = future = asyncio.get_running_loop().create_future()
        return future

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
        troubles = (self._kill_now_and_then(), self._cut_now_and_then(), self._pause_now_and_then(producer.client))
        troubling = [self.spawn(trouble) for trouble in troubles]
        await producer.run()
        await asyncio.gather(beating, *troubling)
        if self._unfinished:
            await self._idle.wait()
        for worker in self._workers:
            await worker.close()
        await producer.client.emitter.close()
        await beat.emitter.close()
        for emitter in self._emitters:
            self.truth.signals.add(emitter.did())
        attempts = self.truth.attempts
        self.truth.attempts = [replace(attempt, stood_us=self._stood_us(attempt)) for attempt in attempts]
        await self.redis.aclose()

    async def _kill_now_and_then(self) -> None:
        """Kill a worker every so often; another takes its name half a second later, as a restarted container does."""
        while self.faults.kill_every_s and not await self.stopped_within(self.faults.kill_every_s):
            index = self.chance.randrange(len(self._workers))
            await self._workers[index].kill()
            await asyncio.sleep(RESTART_SECONDS)
            self._workers[index] = Worker(self, index + 1)
            await self._workers[index].start()

    async def _cut_now_and_then(self) -> None:
        """Close the connections of all subscribers every so often, as Redis does with those that fall behind."""
        while self.faults.cut_every_s and not await self.stopped_within(self.faults.cut_every_s):
            self.truth.cuts += 1
            await self.redis.client_kill_filter(_type="pubsub")

    async def _pause_now_and_then(self, operator: Client) -> None:
        """Pause a queue for a moment every so often, as an operator does with Stem's command line."""
        while not await self.stopped_within(PAUSE_EVERY_SECONDS):
            queue = self.chance.choice(QUEUES)
            self.paused.add(queue)
            await operator.backend.pause(self.namespace, queue)
            await self.stopped_within(PAUSE_SECONDS)
            self.paused.discard(queue)
            await operator.backend.resume(self.namespace, queue)


class Producer:
    """The application: it publishes tasks, chords and workflow runs at random, `rate` a second."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self.client = Client(fleet, "producer-1", skew=PRODUCER_SKEW)
        self._workflows = WorkflowRuntime(fleet, self.client, "producer-1")
        self._chains: set[asyncio.Task[None]] = set()

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
            await self.client.chord(KIND["gallery.thumbnail"], KIND["gallery.publish"])
        elif kind is ORDER:
            await self._workflows.start(traced=traced)
        elif kind is CATALOGUE:
            chain = self._fleet.spawn(self.client.chain([KIND[name] for name in CHAIN]))
            self._chains.add(chain)
            chain.add_done_callback(self._chains.discard)
        else:
            delay = chance.uniform(0.5, 1.5) * kind.delay_s
            now = self.client.clock()
            meta = {"stem.expiresAt": iso(now + timedelta(seconds=delay / 2))}
            envelope = new_envelope(
                kind.name,
                kind.queue,
                args={"secret": "never leaves the worker"},
                headers={"tenant": "demo", **self._signature(kind)},
                meta=meta if chance.random() < kind.expire else {},
                priority=kind.priority,
                delay_s=delay,
                max_retries=kind.max_retries,
                now=now,
            )
            await self.client.enqueue(envelope, traced=traced)

    def _signature(self, kind: Kind) -> dict[str, str]:
        if not kind.forged:
            return {}
        signature = FORGED if self._fleet.chance.random() < kind.forged else "genuine"
        return {"stem-signature": signature, "stem-signature-key": "demo"}
