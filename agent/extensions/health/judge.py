"""When a component counts as unhealthy, and when the event loop as standing still: pure."""

from dataclasses import dataclass

from agent.core.status import ComponentStatus


@dataclass(slots=True)
class Hysteresis:
    """A judgement that follows the facts only when they have stayed for a while, so that a blip changes nothing.

    Delays are in nanoseconds; a delay of 0 follows at once.
    """

    unhealthy_after_ns: int
    healthy_after_ns: int
    healthy: bool = True
    bad: bool = False
    since_ns: int = 0

    def observe(self, *, bad: bool, now_ns: int) -> None:
        """Take a fact: how it is from `now_ns` on."""
        self.judge(now_ns)
        if bad is not self.bad:
            self.bad, self.since_ns = bad, now_ns
        self.judge(now_ns)

    def judge(self, now_ns: int) -> bool:
        """Return whether it counts as healthy."""
        delay_ns = self.unhealthy_after_ns if self.bad else self.healthy_after_ns
        if self.healthy is self.bad and now_ns - self.since_ns >= delay_ns:
            self.healthy = not self.bad
        return self.healthy


class Judge:
    """Judges each component by what it says over time."""

    def __init__(self, *, unhealthy_after_ns: int, healthy_after_ns: int) -> None:
        self._delays = (unhealthy_after_ns, healthy_after_ns)
        self._judged: dict[tuple[str, str], Hysteresis] = {}

    def observe(self, component: ComponentStatus, now_ns: int) -> None:
        """Take note of a component's state."""
        self._of(component).observe(bad=component.unhealthy, now_ns=now_ns)

    def healthy(self, component: ComponentStatus, now_ns: int) -> bool:
        """Return whether the component counts as healthy."""
        return self._of(component).judge(now_ns)

    def _of(self, component: ComponentStatus) -> Hysteresis:
        key = (component.section, component.identity)
        if key not in self._judged:
            self._judged[key] = Hysteresis(*self._delays)
        return self._judged[key]


@dataclass(slots=True)
class Watchdog:
    """Knows when the event loop turned last; moments and the limit in seconds of any one clock.

    A timer beats, and whoever asks is somebody else: an answer alone proves only that answering works.
    """

    limit: float
    beat_at: float

    def beat(self, now: float) -> None:
        """Note that the loop turned."""
        self.beat_at = now

    def still(self, now: float) -> float:
        """Return for how long the loop has stood still, if that is too long; else 0."""
        silence = now - self.beat_at
        return silence if silence > self.limit else 0.0
