"""What is worth telling about correlation itself, counted by (name, label)."""

from collections import Counter

LATE = "stem_agent.signals.late"
EVICTED = "stem_agent.correlate.evicted"
CLOCK_ADJUSTED = "stem_agent.correlate.clock_adjusted"
UNATTRIBUTED = "stem_agent.signals.unattributed"
HANDED_OVER = "stem_agent.correlate.handed_over"
REPAIRS = "stem_agent.repairs"

Counters = Counter[tuple[str, str]]
