"""What a fleet did, as its streams and records tell it to whoever hears no signals."""

from msgspec.structs import replace

from agent.demo.truth import AttemptTruth, Truth

READABLE_US = 500_000
"""A record that stood for so long must have been read; what was overwritten before may never have been seen."""


def as_read(truth: Truth, readable_us: int = READABLE_US) -> Truth:
    """Return the truth by records: each attempt from the start to the end that they name."""
    return replace(truth, attempts=[_as_read(attempt, readable_us) for attempt in truth.attempts])


def _as_read(attempt: AttemptTruth, readable_us: int) -> AttemptTruth:
    told = attempt.stored == attempt.state
    return replace(
        attempt,
        started_us=attempt.running_us,
        received_us=0,
        ended_us=attempt.stored_us if told else attempt.ended_us,
        heard=told and attempt.stood_us >= readable_us,
    )
