"""`StemClient`: the state of a Stem fleet, asked of its Redis and of nothing else. It never writes.

    async with StemClient.connect("redis://localhost:6379/0") as stem:
        for queue in await stem.queues():
            print(queue.queue, queue.depth)

Stem's own calls of these names make consumer groups (`pendingCount`) and forget workers (`listWorkerHeartbeats`).
"""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, tzinfo
from types import TracebackType
from typing import Self

from agent.settings.redis_tls import RedisTls
from agent.stem.client import reports
from agent.stem.client.errors import AddressError, RefusedError
from agent.stem.client.store import Store
from agent.stem.client.task_reports import Records, in_flight, task_report
from agent.stem.client.values import DeadLetter, Queue, QueueNames, Schedule, TaskInFlight, TaskReport, Worker
from agent.stem.keys import Keys
from agent.stem.questions.backlog import explain_depth, read_next_due
from agent.stem.questions.dead_letters import read_dead_letters
from agent.stem.questions.deliveries import Delayed, Pending, read_delayed, read_pending
from agent.stem.questions.discovery import QueueWalk
from agent.stem.questions.pauses import read_pauses
from agent.stem.questions.query import read_clock
from agent.stem.questions.queues import QueueState, QueueWatch
from agent.stem.questions.records import read_records
from agent.stem.questions.schedules import read_schedules
from agent.stem.questions.trail import Found, find_task
from agent.stem.questions.workers import read_heartbeats
from agent.stem.status import TaskStatus

DEFAULT_URL = "redis://localhost:6379/0"
MAX_WORKERS = 10_000
_SCAN_STEP = 2000
"""Keys looked at in one question: about a millisecond of Redis' time."""
_RECORDS_AT_ONCE = 50
_QUEUES_AT_ONCE = 20
"""Looked through side by side for one task: each has a page of entries in memory."""


class StemClient:
    """Asks a broker, a result backend and a schedule store. Make it with `connect`.

    Every question raises `UnreachableError` or `RefusedError` (`agent.stem.client.errors`). An object serves one event
    loop, and one question at a time.
    """

    def __init__(
        self,
        broker: Store,
        results: Store,
        schedules: Store | None,
        *,
        namespace: str,
        worker_namespace: str,
        zone: tzinfo,
        scan_budget: int,
    ) -> None:
        self.broker, self.results, self._schedules = broker, results, schedules
        self.keys, self._worker_keys = Keys(namespace), Keys(worker_namespace)
        self.zone = zone
        self._budget = scan_budget
        self._walk = QueueWalk(self.keys)
        self._walked: set[str] = set()
        self._watches: dict[str, QueueWatch] = {}

    @classmethod
    def connect(  # noqa: PLR0913 - three servers, two namespaces, and how to reach them
        cls,
        url: str = DEFAULT_URL,
        *,
        results_url: str | None = None,
        schedules_url: str | None = None,
        namespace: str = "stem",
        worker_namespace: str = "stem",
        ca_file: str | None = None,
        cert_file: str | None = None,
        key_file: str | None = None,
        insecure_skip_verify: bool = False,
        timeout: float = 5.0,
        assume_timezone: tzinfo = UTC,
        scan_budget: int = 1_000_000,
    ) -> Self:
        """Return a client to enter with `async with`, which is when it connects.

        `url` is the broker's, `redis://[user:password@]host:port/database` or `rediss://` for TLS; `results_url` the
        result backend's, where it is another; without `schedules_url` nobody can be asked about schedules. `namespace`
        is the prefix of the stores' keys, `worker_namespace` that of pauses. The files are PEM, for `rediss://`.
        `timeout` is what each round trip may take, in seconds; `assume_timezone` that of times without an offset (Stem
        before 0.2.0); `scan_budget` how many keys are looked at to find the queues.

        Raises `AddressError` for a URL that is none, `StartupError` for a file that cannot be used.
        """
        tls = RedisTls(
            ca_file=ca_file, cert_file=cert_file, key_file=key_file, insecure_skip_verify=insecure_skip_verify
        )

        def store(name: str, at: str) -> Store:
            return Store(name, at, namespace=namespace, tls=tls, timeout=timeout)

        broker = store("broker", url)
        return cls(
            broker,
            store("result backend", results_url) if results_url and results_url != url else broker,
            store("schedule store", schedules_url) if schedules_url else None,
            namespace=namespace,
            worker_namespace=worker_namespace,
            zone=assume_timezone,
            scan_budget=scan_budget,
        )

    async def __aenter__(self) -> Self:
        try:
            await self.broker.now_ms()
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections; a later question would make new ones."""
        for store in filter(None, (self.broker, self.results, self._schedules)):
            await store.close()

    # --- workers -----------------------------------------------------------------------------------------------------

    async def list_worker_heartbeats(self) -> list[Worker]:
        """Return the workers whose heartbeats are there, of every worker namespace, by id."""
        return [worker for worker in await self.workers() if worker.up]

    async def workers(self) -> list[Worker]:
        """Return all workers that the result backend's index names: those whose heartbeat has expired, too."""
        found, now_ms = await self.results.ask(read_heartbeats(self.keys, MAX_WORKERS), read_clock(after=1))
        return reports.workers_of(found, now_ms, self.zone)

    # --- queues ------------------------------------------------------------------------------------------------------

    @property
    def complete(self) -> bool:
        """Whether all keys were looked at, so that every queue is known that had one."""
        return self._walk.rounds > 0

    async def queue_names(self) -> QueueNames:
        """Return the queues that have keys, and those that workers read or hold tasks of; by name.

        Looks at `scan_budget` keys, and goes on from there with the next call, until all were looked at once; then at
        few with each call.
        """
        rounds, looked_at = self._walk.rounds, 0
        budget = _SCAN_STEP if self.complete else self._budget
        while self._walk.rounds == rounds and looked_at < budget:
            self._walked |= await self.broker.answer(self._walk.read(_SCAN_STEP))
            looked_at += _SCAN_STEP
        names = self._walked | reports.queues_of(await self.workers())
        return QueueNames(tuple(sorted(names)), complete=self.complete)

    async def queues(self, names: Iterable[str] | None = None) -> list[Queue]:
        """Return what each of the queues holds, by name; without `names`, all that `queue_names` finds.

        A queue of which nothing exists is left out.
        """
        wanted = set((await self.queue_names()).names if names is None else names)
        now_ms = await self.broker.now_ms()
        states, due = await self._states(wanted, now_ms)
        if names is None and (met := self._met() - wanted):
            more, more_due = await self._states(met, now_ms)
            states, due = states | more, due | more_due
        unknown = [queue for queue, state in states.items() if state.depth is None]
        reasons = await self.broker.ask(*(explain_depth(self.keys, queue) for queue in unknown))
        paused = await self._pauses(sorted(states), now_ms)
        why = dict(zip(unknown, reasons, strict=True))
        return [
            reports.queue_of(state, now_ms, next_due_ms=due[queue], paused=paused.get(queue), why=why.get(queue))
            for queue, state in sorted(states.items())
        ]

    async def _states(self, queues: Iterable[str], now_ms: int) -> tuple[dict[str, QueueState], dict[str, int | None]]:
        """Return the states of those queues that exist, and when their delayed tasks are due."""
        names = sorted(queues)
        watches = [self._watches.setdefault(queue, QueueWatch(self.keys, queue)) for queue in names]
        answers = await self.broker.attempt(
            *(watch.read(now_ms, self.zone) for watch in watches),
            *(read_next_due(self.keys, queue) for queue in names),
        )
        for queue, answer in zip(names * 2, answers, strict=True):
            if isinstance(answer, RefusedError):
                raise RefusedError(answer.store, answer.server, f"queue {queue}: {answer.reason}", answer.missing)
        states = {w.queue: state for w, state in zip(watches, answers[: len(names)], strict=True) if w.exists}
        return states, dict(zip(names, answers[len(names) :], strict=True))

    def _met(self) -> set[str]:
        """Return the queues whose groups were met on the streams of others."""
        return {queue for watch in self._watches.values() for queue in watch.neighbours}

    async def _pauses(self, queues: Sequence[str], now_ms: int) -> dict[str, bool]:
        """Return which queues are paused: the revoke store is where the result backend is, unless Stem is told else."""
        now = datetime.fromtimestamp(now_ms / 1000, self.zone)
        (paused,) = await self.results.attempt(read_pauses(self._worker_keys, queues, now))
        return {} if isinstance(paused, RefusedError) else paused

    # --- dead letters and schedules ----------------------------------------------------------------------------------

    async def dead_letters(self, queue: str | None = None, limit: int = 100) -> list[DeadLetter]:
        """Return dead letters, newest first, at most `limit` of each queue; of all queues by name, or of one."""
        queues = (await self.queue_names()).names if queue is None else (queue,)
        if limit <= 0:
            return []
        questions = [read_dead_letters(self.keys, name, limit) for name in queues]
        now_ms, *answers = await self.broker.ask(read_clock(), *questions)
        return [
            reports.dead_letter_of(name, letter, now_ms, self.zone)
            for name, letters in zip(queues, answers, strict=True)
            for letter in letters
        ]

    async def schedules(self, limit: int = 1000) -> list[Schedule]:
        """Return the entries of the schedule store, next first; raises `AddressError` without a `schedules_url`."""
        if self._schedules is None:
            raise AddressError("no schedule store is named: give `schedules_url`")
        entries, now_ms = await self._schedules.ask(read_schedules(self.keys, max(1, limit)), read_clock(after=1))
        return [reports.schedule_of(entry, now_ms, self.zone) for entry in entries]

    # --- tasks -------------------------------------------------------------------------------------------------------

    async def tasks_in_flight(self, queues: Iterable[str] | None = None, limit: int = 100) -> list[TaskInFlight]:
        """Return the tasks in workers' hands, longest first, at most `limit`; of all queues, or of those given.

        Looks at `limit` pending entries of each stream and as many delayed tasks of each queue: one whose lease was
        extended, because it runs for long, is found among those.
        """
        names = sorted((await self.queue_names()).names if queues is None else set(queues))
        most = max(1, limit)
        answers = await self.broker.ask(
            *(read_pending(self.keys, queue, most) for queue in names),
            *(read_delayed(self.keys, queue, most) for queue in names),
        )
        pending: list[list[Pending]] = answers[: len(names)]
        delayed: list[list[Delayed]] = answers[len(names) :]
        held = [each.envelope for told in pending for each in told]
        copies = [each.envelope for told in delayed for each in told]
        records = await self._records([envelope.id for envelope in (*held, *copies) if envelope and envelope.id])
        now_ms = await self.broker.now_ms()
        tasks = [
            task
            for queue, given, extended in zip(names, pending, delayed, strict=True)
            for task in in_flight(queue, given, extended, records, now_ms, self.zone)
        ]
        return sorted(tasks, key=lambda task: -max(task.running_ms or 0, task.held_ms or 0))[:most]

    async def task(self, task_id: str, budget: int = 10_000) -> TaskReport:
        """Return what is known of one task: its record, and what the queues have of it.

        Without a record that names its queue, all queues are looked through: at most `budget` entries of each stream
        and list, newest first; of an id that is a UUID of version 7 half of them those that followed its time.
        """
        record = (await self._records([task_id])).get(task_id)
        queue = record.queue if isinstance(record, TaskStatus) else None
        found, whole = (await self._trail([queue], task_id, budget), True) if queue else ([], False)
        if not any(each.deliveries or each.delayed or each.dead for each in found):
            names = await self.queue_names()
            found = await self._trail(sorted({*names.names, *([queue] if queue else [])}), task_id, budget)
            whole = names.complete
        return task_report(task_id, record, found, await self.broker.now_ms(), self.zone, whole=whole)

    async def _records(self, task_ids: Sequence[str]) -> Records:
        found: dict[str, TaskStatus | str] = {}
        unique = list(dict.fromkeys(task_ids))
        for start in range(0, len(unique), _RECORDS_AT_ONCE):
            found |= await self.results.answer(read_records(self.keys, unique[start : start + _RECORDS_AT_ONCE]))
        return found

    async def _trail(self, queues: Sequence[str], task_id: str, budget: int) -> list[Found]:
        found: list[Found] = []
        for start in range(0, len(queues), _QUEUES_AT_ONCE):
            some = queues[start : start + _QUEUES_AT_ONCE]
            found += await self.broker.ask(*(find_task(self.keys, queue, task_id, budget) for queue in some))
        return found
