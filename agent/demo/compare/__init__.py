"""Truth against sink: what the fleet did, and what arrived, item by item.

| module | role |
| --- | --- |
| `attempts` | which span is whose, and whether it says what happened |
| `spans` | the other spans: waits, roots, workflow runs |
| `metrics` | counters and histograms |
| `logs` | log records of starts and ends |
| `reading` | what can be known where nobody signals |
| `rows` | what a comparison comes to |
"""

from collections import Counter

from agent.demo.compare.attempts import match
from agent.demo.compare.logs import compare_logs
from agent.demo.compare.metrics import compare_metrics
from agent.demo.compare.reading import as_read
from agent.demo.compare.rows import Comparison, Fidelity, Row, Verdict, fidelity
from agent.demo.compare.spans import attempt_rows, compare_spans
from agent.demo.sink import Sink
from agent.demo.truth import Truth

__all__ = ["Comparison", "Fidelity", "Row", "Verdict", "compare", "examine"]


def compare(truth: Truth, sink: Sink) -> list[Row]:
    """Return one row per kind of thing that can be counted."""
    return examine(truth, sink).rows


def examine(truth: Truth, sink: Sink) -> Comparison:
    """Return the rows, what they mean for the attempts as a whole, and examples of what differs."""
    truth = as_read(truth) if truth.silent else truth
    matched = match(truth, sink)
    others = list(compare_spans(truth, sink, matched))
    # Log records and counts decide, too, whether an attempt was told exactly: they come before its row.
    log_rows = compare_logs(truth, sink, matched.told, matched.unattempted)
    metric_rows, uncounted = compare_metrics(truth, sink, matched)
    others += [*metric_rows, *log_rows]
    if not truth.blind and not truth.silent:  # what nobody listened for is not counted signal by signal
        noticed = sink.own("stem_agent.signals.lost").total()
        others.append(Row("signals lost, and noticed", truth.signals.noticeable, noticed))
    known = [told for told in matched.told if told.counts]
    verdicts = Counter(told.verdict for told in known)
    wrong, missing, incomplete = (
        [told.describe() for told in known if told.verdict is verdict]
        for verdict in (Verdict.WRONG, Verdict.MISSING, Verdict.INCOMPLETE)
    )
    return Comparison(
        rows=[*attempt_rows(matched), *others],
        fidelity=fidelity(verdicts, len(matched.invented), others, uncounted),
        examples=[  # the worst first
            *(f"invented or doubled: {seen.describe()}" for seen in matched.invented),
            *wrong,
            *(f"{row.what}: {note}" for row in others for note in row.notes),
            *missing,
            *incomplete,
        ],
    )
