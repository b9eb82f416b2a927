"""The receiver itself: fails fast on the first connect, reconnects for ever afterwards, decodes, hands on."""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from zoneinfo import ZoneInfo

from agent.core.backoff import Backoff
from agent.core.clock import NANOSECONDS, Clock
from agent.core.errors import StartupError
from agent.core.ownership import Ownership
from agent.core.pressure import Pressure
from agent.core.states import StateStore
from agent.core.status import Reporter, Reports, State
from agent.core.tasks import cancel
from agent.receivers.stem_signals import events, state
from agent.receivers.stem_signals.backlog import Backlog, Message
from agent.receivers.stem_signals.canary import Canary
from agent.receivers.stem_signals.claimant import Claimant
from agent.receivers.stem_signals.config import StemSignalsConfig
from agent.receivers.stem_signals.connection import Connection, Refused, subscribe
from agent.receivers.stem_signals.decoder import Decoder
from agent.receivers.stem_signals.sequence import SequenceTracker
from agent.receivers.stem_signals.session import SessionEnd, Subscription
from agent.stem.channels import heartbeat_channel, signal_channel, signal_pattern
from agent.stem.wire import Fact, Gap, Outage, ServerClock, SignalConsumer
from agent.telemetry.events import FileUnusable, Telemetry
from agent.telemetry.keeping import Keeping

CHUNK = 256
"""Messages decoded before the event loop gets its turn: about 3 ms, so the socket is never left waiting longer."""
TICK_SECONDS = 0.25
_STOP_SHARE = 0.5  # of the deadline, for what is still undecoded: delivering the rest needs the other half
_LEAVE_SHARE = 0.3  # for others to take over


class StemSignalsReceiver:
    """Listens to the channels its configuration names and hands on what it hears, decoded and in order."""

    def __init__(
        self,
        identity: str,
        config: StemSignalsConfig,
        consumer: SignalConsumer,
        telemetry: Telemetry,
        clock: Clock,
        reports: Reports,
        store: StateStore | None = None,
        pressure: Pressure | None = None,
    ) -> None:
        self._id = identity
        self._keeping = Keeping(store, f"receivers/{identity}", identity, telemetry) if store else None
        self._inherited: Keeping | None = None
        self._config = config
        self._consumer = consumer
        self._telemetry = telemetry
        self._clock = clock
        self._zone = ZoneInfo(config.assume_timezone)
        self._backlog = Backlog(config.backlog, self._shed)
        self._pressure = pressure or Pressure()
        self._sequence = SequenceTracker()
        self._decoder = Decoder(identity, config, self._sequence, telemetry, clock)
        self._claimant: Claimant | None = None
        self._canary = (
            Canary(identity, config, telemetry, reports.part("canary"), heard=lambda: self._backlog.pushed)
            if config.canary.enabled
            else None
        )
        self._subscription = reports.part("subscription")
        self._backlog_status = reports.part("backlog")
        self._sheds = False
        self._deaf_since_ns: int | None = None
        self._listening_since_ns: int | None = None
        self._connection: Connection | None = None
        self._tls = config.tls.reloading(0.0, self._unusable) if config.url.tls else None
        self._healthy = False
        self._canary_flies = False
        self._tasks: list[asyncio.Task[None]] = []
        self._draining: asyncio.Handle | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        telemetry.gauge("stem_agent.receiver.connected", lambda: float(self._connection is not None), receiver=identity)
        telemetry.gauge("stem_agent.receiver.backlog", lambda: float(self._backlog.bytes), receiver=identity)

    def share(self, ownership: Ownership, pressure: Pressure, status: Reporter) -> None:
        """Process only what is ours by agreement with other agents."""
        self._claimant = self._decoder.claimant = Claimant(
            *(self._id, self._config, ownership, self, self._sequence), self._telemetry, self._clock, status
        )
        self._claimant.watched_by(pressure)

    @property
    def subscriptions(self) -> tuple[Subscription, ...]:
        """What this receiver listens to."""
        namespace = self._config.namespace
        canary = (Subscription((self._canary.channel,), optional=True),) if self._canary else ()
        if self._config.emitters:
            channels = tuple(signal_channel(namespace, emitter) for emitter in self._config.emitters)
            return (Subscription(channels), *canary)
        return (
            Subscription((signal_pattern(namespace),), pattern=True),
            # Shared by every worker of the fleet: a gateway's business, too much for a sidecar.
            Subscription((heartbeat_channel(namespace),), optional=True),
            *canary,
        )

    async def start(self) -> None:
        """Subscribe, or leave the reconnecting to the background if the server may come back.

        Raises `StartupError` if the server refuses for a reason that will not heal.
        """
        self._loop = asyncio.get_running_loop()
        started_ns = self._clock()
        self._pressure.join(self._backlog)
        inherited, self._inherited = self._inherited, None
        if keeping := inherited or self._keeping:  # whoever goes on from before was deaf until now
            deaf_since_ns = await keeping.take(lambda kept: state.restore(kept, self._sequence, self._clock()))
            self._outage_begins(deaf_since_ns or started_ns)
        if inherited and self._keeping:  # what may still be there is older
            await self._keeping.take(lambda _: None)
        if self._claimant:
            self._claimant.start()
        backoff = Backoff(self._config.initial_backoff, self._config.max_backoff)
        try:
            self._connection = await self._subscribe()
        except Refused as refused:
            if not refused.heals:
                user = self._config.url.username or "default"
                raise StartupError(
                    f"{self._id}: redis {self._config.url.address} refused user {user}: {refused}"
                ) from None
            self._connect_failed(refused, delay := backoff.next())
            self._outage_begins(started_ns)
            first_delay = delay
        else:
            first_delay = 0.0
        self._tasks = [
            asyncio.create_task(self._keep_connected(backoff, first_delay), name=f"{self._id}: connection"),
            asyncio.create_task(self._tick(), name=f"{self._id}: tick"),
        ]

    async def stop(self, timeout: float) -> None:  # noqa: ASYNC109 - see Component
        """Stop listening, then decode what was already heard. Before that let other agents take over, if there are."""
        if self._claimant:
            await self._claimant.leave(timeout * _LEAVE_SHARE)
        tasks, self._tasks = self._tasks, []
        await cancel(tasks)
        if self._connection:
            self._connection.end(SessionEnd.STOPPED)
            self._connection = None
        await self._drain_backlog(timeout * _STOP_SHARE)
        if self._claimant:
            self._claimant.finish()
        await self._end_numbering(timeout)
        if self._canary:
            await self._canary.close()
        self._pressure.leave(self._backlog)
        if self._claimant:
            self._claimant.unwatched_by(self._pressure)

    def hand_over(self, store: StateStore) -> None:
        """Leave the numbering to the receiver that follows in this process."""
        self._keeping = Keeping(store, f"receivers/{self._id}", self._id, self._telemetry)
        self._keeping.began = True

    def take_over(self, store: StateStore) -> None:
        """Go on, when started, from the numbering that the receiver before left."""
        self._inherited = Keeping(store, f"receivers/{self._id}", self._id, self._telemetry)

    async def _drain_backlog(self, seconds: float) -> None:
        """Decode what was heard, as much of it as time allows; count the rest."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        while self._backlog and loop.time() < deadline:
            self._process()
            await asyncio.sleep(0)
        while self._backlog:
            self.hand_on(self._outages())
            for channel, payload in self._backlog.take(CHUNK):
                self._decoder.account(channel, payload, events.SignalUnread(self._id))
        if self._draining:
            self._draining.cancel()
            self._draining = None

    async def _end_numbering(self, seconds: float) -> None:
        if self._keeping is None:
            self.report(self._sequence.close())
        elif self._keeping.began:
            kept = state.snapshot(self._sequence, self._clock(), self._deaf_since_ns)
            if not await self._keeping.put(kept, seconds):
                self.report(self._sequence.close())

    async def _subscribe(self) -> Connection:
        config = self._config
        connection, declined = await subscribe(
            config.url,
            self._tls.get(asyncio.get_running_loop().time()) if self._tls else None,
            self.subscriptions,
            self._hear_canary_too if self._canary else self._hear,
            timeout=config.connect_timeout,
        )
        self._listens()
        for refusal in declined:
            self._telemetry.emit(events.StepDeclined(self._id, refusal.step, refusal.answer))
        refused = {refusal.step.partition(" ")[2] for refusal in declined}
        names = [name for subscription in self.subscriptions for name in subscription.names if name not in refused]
        self._telemetry.emit(events.Subscribed(self._id, config.url.address, " ".join(names)))
        self._subscription.ok(f"subscribed at {config.url.address}")
        if connection.server_clock:
            server_us, moment = connection.server_clock
            self.hand_on([ServerClock(config.namespace, server_us * 1000 - self._epoch_ns(moment))])
        connection.keep_alive(config.ping_interval)
        self._canary_flies = self._canary is not None and self._canary.channel not in refused
        if self._canary and not self._canary_flies:
            self._canary.refused()
        return connection

    def _unusable(self, reason: str) -> None:
        self._telemetry.emit(FileUnusable(self._id, reason))

    async def _keep_connected(self, backoff: Backoff, delay: float) -> None:
        while True:
            if self._connection is None:
                await asyncio.sleep(delay)
                try:
                    self._connection = await self._subscribe()
                except Exception as refused:  # noqa: BLE001 - whatever it was, giving up would be the end of listening
                    self._connect_failed(refused, delay := backoff.next())
                    self._outage_begins(self._clock())
                    continue
            connected_at, self._healthy = self._loop.time() if self._loop else 0.0, False
            reason = await self._end_of(self._connection)
            self._outage_begins(self._epoch_ns(self._connection.heard_until))
            self._connection = None
            self._telemetry.emit(events.Disconnected(self._id, self._config.url.address, reason.value))
            self._subscription.recovering(f"lost the connection to redis {self._config.url.address}: {reason.value}")
            # Health is having heard a message, or having stayed: a server that accepts and closes at once must meet a
            # growing delay, but whoever is cut off for reading too slowly must be back at once.
            if self._healthy or (self._loop and self._loop.time() - connected_at > self._config.max_backoff):
                backoff.reset()
            delay = backoff.next()

    async def _end_of(self, connection: Connection) -> SessionEnd:
        """Wait until a session ends, with a canary in it if there is one."""
        watch = []
        if self._canary and self._canary_flies:
            watch = [asyncio.create_task(self._canary.watch(connection), name=f"{self._id}: canary")]
        try:
            return await connection.ended
        finally:
            await cancel(watch)

    def _outage_begins(self, from_ns: int) -> None:
        """Tell, after everything heard before, that nothing is heard; unless that was told."""
        if self._deaf_since_ns is None:
            self._deaf_since_ns, self._listening_since_ns = from_ns, None
            if self._claimant:
                self._claimant.received()
            self._sequence.listen(None)  # at once: what is heard and not decoded yet has no use for the promise
            self._tell_outage(from_ns, 0)

    def _listens(self) -> None:
        """Note that the subscription stands, and tell the end of the outage before anything that is heard over it."""
        if self._listening_since_ns is not None:
            return
        self._listening_since_ns = now_ns = self._clock()
        if self._deaf_since_ns is None:
            self._sequence.listen(now_ns)
        else:
            from_ns, self._deaf_since_ns = self._deaf_since_ns, None
            self._tell_outage(from_ns, now_ns)

    def _tell_outage(self, from_ns: int, to_ns: int) -> None:
        self._backlog.mark(Outage(self._config.namespace, self._config.emitters, from_ns, to_ns))
        self._drain_soon()

    def _epoch_ns(self, moment: float) -> int:
        """Turn a moment of the loop's clock into nanoseconds of ours."""
        now = asyncio.get_running_loop().time()
        return self._clock() - max(0, int((now - moment) * NANOSECONDS))

    def _connect_failed(self, refused: Exception, delay: float) -> None:
        self._telemetry.emit(events.ConnectFailed(self._id, self._config.url.address, str(refused), delay))
        self._subscription.recovering(f"failed to connect to redis {self._config.url.address}: {refused}")

    def _hear(self, channel: bytes, payload: bytes) -> None:
        if self._deaf_since_ns is not None:
            self._listens()
        self._healthy = True
        self._backlog.push(channel, payload)
        self._drain_soon()

    def _hear_canary_too(self, channel: bytes, payload: bytes) -> None:
        if self._canary and channel == self._canary.channel_bytes:
            self._canary.hear(payload)
        else:
            self._hear(channel, payload)

    def _drain_soon(self) -> None:
        if self._draining is None and self._loop:
            self._draining = self._loop.call_soon(self._drain)

    def _drain(self) -> None:
        self._draining = None
        self._process()
        if self._backlog and self._loop:
            self._draining = self._loop.call_soon(self._drain)

    def _process(self) -> None:
        now_ns = self._clock()
        if self._claimant:
            self._claimant.look(now_ns)
        facts, decode = self._outages(), self._decoder.decode
        facts += [
            fact
            for channel, payload in self._backlog.take(CHUNK)
            if (fact := decode(channel, payload, now_ns)) is not None
        ]
        self.hand_on(facts)

    def _outages(self) -> list[Fact]:
        """Return the outages whose turn it is."""
        due = self._backlog.outages()
        for outage in due:
            if outage.to_ns and outage.to_ns == self._listening_since_ns:  # or there is another behind it
                self._sequence.listen(outage.to_ns)
        return list(due)

    def hand_on(self, facts: Sequence[Fact]) -> None:
        """Hand facts to the next step."""
        if facts:
            self._consumer.consume_facts(facts, self._zone)

    # --- among other agents ------------------------------------------------------------------------------------------

    def replay(self, messages: Sequence[Message]) -> None:
        """Process messages that were kept until they were ours."""
        now_ns = self._clock()
        for start in range(0, len(messages), CHUNK):
            some = messages[start : start + CHUNK]
            facts = (self._decoder.decode(channel, payload, now_ns) for channel, payload in some)
            self.hand_on([fact for fact in facts if fact is not None])

    def not_owned(self, emitter: str, payload: bytes) -> None:
        """Account for a message that may have been ours."""
        self._decoder.not_owned(emitter, payload)

    def forget_channels(self, emitters: Iterable[str]) -> None:
        """Ask anew about the channels of these emitters."""
        self._decoder.forget_channels(emitters)

    def ping(self, answered: Callable[[], None]) -> None:
        """Have `answered` called when everything that was published until now has been received."""
        if self._connection:
            self._connection.ping(answered)
        else:
            answered()

    def position(self) -> tuple[int, int]:
        """Return how many messages were received and how many processed, ever."""
        return self._backlog.pushed, self._backlog.taken

    def _shed(self, channel: bytes, payload: bytes) -> None:
        self._sheds = True
        self._decoder.account(channel, payload, events.SignalShed(self._id, self._backlog.limit))

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_SECONDS)
            self.report(self._sequence.tick(self._clock()))
            self._judge_backlog()
            if self._claimant:
                self._claimant.tick()
            self.hand_on(self._decoder.take_shed())

    def _judge_backlog(self) -> None:
        if self._sheds:
            self._backlog_status.degraded(
                f"more than {self._backlog.limit} bytes waited, or memory is short; the oldest are shed"
            )
        elif self._backlog_status.state is not State.OK:
            self._backlog_status.ok()
        self._sheds = False

    def report(self, gaps: Iterable[Gap]) -> None:
        """Count gaps, and hand them on."""
        missing = list(gaps)
        for gap in missing:
            self._telemetry.count("stem_agent.signals.gaps", receiver=self._id)
            self._telemetry.emit(events.SignalsMissing(self._id, gap.emitter, gap.boot, gap.first, gap.last))
        self.hand_on(missing)
