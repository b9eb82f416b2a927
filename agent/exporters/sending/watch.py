"""Watching one sender: what came of its attempts, how old is what is accepted, how full its queue is. No I/O."""

from collections.abc import Awaitable, Callable

from agent.core.clock import NANOSECONDS, Clock
from agent.core.errors import fault
from agent.core.histogram import Histogram
from agent.core.status import Reporter, State
from agent.exporters.sending.outcome import Delivered, Outcome, Retry
from agent.exporters.sending.sealed import Sealed

Transport = Callable[[Sealed], Awaitable[Outcome]]
"""One attempt to deliver; never raises for what a network or server does."""

STALE_NS = 60 * NANOSECONDS
"""With something waiting, this long without any answer means that nothing is delivered, whatever the reason is."""
_NEARLY_FULL, _ROOMY = 0.8, 0.5  # shares of the queue; apart, so that a queue at the edge does not flap


class Watch:
    """A transport that tells what comes of each attempt; `queue_size` in `unit`s."""

    def __init__(
        self,
        transport: Transport,
        *,
        clock: Clock,
        delivery: Reporter,
        queue: Reporter,
        queue_size: int,
        unit: str,
        duration: Histogram,
        latency: Histogram,
    ) -> None:
        self._transport = transport
        self._clock = clock
        self._delivery = delivery
        self._queue = queue
        self._queue_size = queue_size
        self._unit = unit
        self._duration = duration
        self._latency = latency
        self._answered_ns = 0

    async def __call__(self, sealed: Sealed) -> Outcome:
        """Try once; raises what the transport raises, which is a fault of ours."""
        began_ns = self._clock()
        try:
            outcome = await self._transport(sealed)
        except Exception as error:
            self._delivery.failed(f"a fault of the agent: {fault(error)}")
            raise
        self._answered_ns = now_ns = self._clock()
        self._duration.observe((now_ns - began_ns) / NANOSECONDS)
        if isinstance(outcome, Delivered):
            for since_ns, count in sealed.ages:
                self._latency.observe(max(0, now_ns - since_ns) / NANOSECONDS, count)
            if outcome.rejected:
                self._delivery.degraded(f"the destination rejected {outcome.rejected} items: {outcome.message}")
            else:
                self._delivery.ok()
        elif isinstance(outcome, Retry):
            self._delivery.recovering(outcome.detail or outcome.reason)
        else:
            self._delivery.failed(outcome.detail or outcome.reason)
        return outcome

    def filled(self, size: int) -> None:
        """Take note of how much waits."""
        if size >= self._queue_size * _NEARLY_FULL:
            if self._queue.state is State.OK:
                self._queue.degraded(f"nearly full: {size} of {self._queue_size} {self._unit}")
        elif size <= self._queue_size * _ROOMY and self._queue.state is not State.OK:
            self._queue.ok()

    def overflowed(self) -> None:
        """Take note that something had to go."""
        self._queue.degraded(f"full: more than {self._queue_size} {self._unit} waited, and the oldest were dropped")

    def look(self, oldest_ns: int, now_ns: int) -> None:
        """Notice that nothing is answered at all; `oldest_ns` is when the oldest waiting batch was begun, 0: none."""
        waits_ns = now_ns - max(oldest_ns, self._answered_ns)
        if oldest_ns and waits_ns > STALE_NS and self._delivery.state in {State.OK, State.DEGRADED}:
            self._delivery.recovering(f"no answer for {waits_ns // NANOSECONDS} s, though telemetry waits")
