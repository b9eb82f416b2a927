"""What the outcomes of its attempts mean for one batch: pure, with time as an argument (seconds of any steady clock).

    attempt ──▶ Delivered ──────────────────────────────────────────────────────▶ finished
       ▲   ├──▶ Retry ────▶ within `max_elapsed_time`? ── no ─▶ Drop(retries_exhausted)
       │   │                        └─ yes ─▶ Again, after back-off or what the server asked for
       │   ├──▶ Refused ──▶ within `auth_grace`? ── no ─▶ Drop(its code)
       │   │                        └─ yes ─▶ Again, after back-off
       │   └──▶ Drop ──────────────────────────────────────────────────────────▶ dropped, by its reason
       └──────────────────────────────── Again

A batch is never split here: what was sealed is sent as it is, or not at all.
"""

from dataclasses import dataclass

from agent.core.backoff import Backoff
from agent.exporters.sending.config import RetryConfig
from agent.exporters.sending.outcome import Delivered, Drop, Outcome, Refused, Retry

RETRIES_EXHAUSTED = "retries_exhausted"


@dataclass(frozen=True, slots=True)
class Again:
    """Send the same bytes again after `delay` seconds."""

    delay: float
    reason: str
    detail: str


Verdict = Delivered | Again | Drop


class Grace:
    """How long one destination may refuse one kind before its batches are given up.

    A deviation from the specification, which has them dropped at once (`seconds` of 0): 401 after a key was rotated
    says nothing about the batch. The time begins with the first refusal since the last acceptance, whichever batch
    met it, so that a destination that refuses for good is not paid for once a batch.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._since: float | None = None

    def accepted(self) -> None:
        """Begin anew with the next refusal."""
        self._since = None

    def left(self, now: float) -> float:
        """Return the seconds for which a refusal met at `now` is still held; 0 when the grace is over."""
        if self._since is None:
            self._since = now
        return max(0.0, self._since + self.seconds - now)


class Delivery:
    """One batch on its way; its first attempt begins at `now`."""

    def __init__(self, retry: RetryConfig, grace: Grace, now: float, backoff: Backoff | None = None) -> None:
        self._retry = retry
        self._grace = grace
        self._backoff = backoff or Backoff(retry.initial_interval, retry.max_interval)
        limit = retry.max_elapsed_time
        self._give_up_at = now + limit if limit else float("inf")

    def decide(self, outcome: Outcome, now: float, *, stopping: bool = False) -> Verdict:
        """Return what becomes of the batch after an attempt that ended at `now`.

        While the agent is stopping no delay is longer than the shortest of back-off's ceilings, whatever the server
        asked for: there is no later.
        """
        if isinstance(outcome, Delivered):
            self._grace.accepted()
            return outcome
        if isinstance(outcome, Retry):
            return self._again(outcome, self._backoff.next(outcome.after), now, stopping=stopping)
        if isinstance(outcome, Refused):
            left = self._grace.left(now) if self._retry.enabled else 0.0
            if not left:
                held = f"; held for auth_grace of {self._grace.seconds:g} s" if self._grace.seconds else ""
                return Drop(outcome.reason, outcome.detail + held)
            told = Refused(outcome.reason, f"{outcome.detail}; held for another {left:.0f} s at most (auth_grace)")
            # The last attempt is made when the grace ends, not a back-off earlier.
            return self._again(told, min(self._backoff.next(), left), now, stopping=stopping)
        return outcome

    def _again(self, outcome: Retry | Refused, delay: float, now: float, *, stopping: bool) -> Again | Drop:
        if not self._retry.enabled or now + delay > self._give_up_at:
            return Drop(RETRIES_EXHAUSTED, f"{outcome.reason}: {outcome.detail}")
        if stopping:
            delay = min(delay, self._retry.initial_interval)
        return Again(delay, outcome.reason, outcome.detail)
