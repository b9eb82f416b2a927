"""`correlate`: everything heard about one task attempt, merged into one story. Pure, but for `connector` and `results`.

An attempt is (task id, attempt number, worker id), and a second delivery of the same attempt to the same worker is
told apart by its start. Its life here:

| state | facts heard | what happens |
| --- | --- | --- |
| open | any | merged; the start is counted and logged as soon as it is known |
| ending | an ending signal, or `task-postrun` | a settlement is due `settle` later |
| complete | start, ending signal and postrun | settled at once |
| settled | | spans, end logs, counters and histograms are made; a tombstone stays for `settled_ttl` |
| late | any, while the tombstone stays | counted in `stem_agent.signals.late`, else ignored |
| evicted | too many, or too old | dropped and counted: an attempt whose end may still come is never exported |

Every merge rule is independent of the order of arrival, so that within `settle` any permutation, repetition or loss of
an attempt's facts gives the same spans, or the same marked `stem.incomplete`; never a wrong one.

| module | concern |
| --- | --- |
| `ids` | identities, derived and never random |
| `origin` | what the envelope tells: trace context, enqueue time, lineage |
| `attempt` | one attempt's facts and the rules that merge them |
| `correlator` | the table of attempts: opening, settling, evicting |
| `spans`, `logs`, `metrics` | what is made of a settled attempt |
| `labels` | the encoded attributes that many records share |
| `workers` | heartbeats and the life of workers |
| `results`, `results_config` | the shell that reads result records, paced, and its options |
| `connector`, `config` | the shell: pipelines, timers, options |
"""
