"""`correlate`: everything known of a fleet's tasks, merged into one story. Pure, but for the shells named below.

What is heard has one correlator, whose telemetry is this agent's own. What is read of a fleet that says nothing has
another for as long as this agent leads, whose telemetry is the fleet's: nothing is shared, so nothing is told twice.

An attempt is (task id, attempt number, worker id). A second delivery of the same attempt to the same worker is told
apart by its process (`boot`) and its start. Its life here:

| state | it comes from | by what is known | what happens then |
| --- | --- | --- | --- |
| open | | any fact | facts are merged; the start is counted and logged as soon as it is known |
| ending | open | an ending signal, `task-postrun`, or a later attempt of the task | it is due `settle` later |
| complete | open, ending | start, ending signal and postrun | settled at once, once retry and parent are known |
| asked | ending | start or end are still missing when it is due | its record is read; it is due again after 3 s |
| suspect | open | signals of its process were lost: a gap, an outage | its record is read; without news it stays open |
| abandoned | open | its process vanished or stopped | its record is read; without an end in it: lost (*) |
| settled | complete, ending, asked, suspect, abandoned | | spans, end logs, counters; a tombstone for `settled_ttl` |
| late | settled | any fact, while the tombstone stays | counted in `stem_agent.signals.late`, else ignored |
| evicted | open | too many (`max_tasks`), too old (`task_ttl`), the agent stops | dropped and counted, never exported |
| kept | open, ending, asked, suspect, abandoned | the agent stops with a `storage` | the next process goes on |

(*) of unknown end, where signals were missed and the record does not have it running: it may have ended meanwhile.

Every merge rule is independent of the order of arrival, so that within `settle` any permutation, repetition or loss of
an attempt's facts gives the same spans, or the same marked `stem.incomplete`; never a wrong one. What was heard is
believed before what was read.

| module | concern |
| --- | --- |
| `correlator` | hands each fact to who is concerned, and the time to everybody |
| `tasks` | the state machine above: signals and time |
| `attempts` | the table: finding, due times, tombstones, memory of retries |
| `attempt`, `deliveries` | one attempt's facts and the rules that merge them; whose delivery a fact is about |
| `publishes` | what was published, and not begun yet |
| `readings` | what is read of those who say nothing: merged likewise, but never waited for |
| `repair`, `mender` | what a record proves; whose are asked for, and what becomes of the answers |
| `process` | who speaks, who is silent, who took whose place |
| `workers` | heartbeats, goodbyes, collisions of worker ids, clock skews |
| `workflows`, `schedules`, `control` | the other signals of the catalogue |
| `origin`, `family` | what an envelope tells; who inherited whose header |
| `settlement`, `settler` | what was heard of an attempt, turned into what is told; closing it |
| `keep` | which attempts become spans |
| `recorder`, `outbox` | tells: `spans`, `logs`, `metrics`; `ids` derived, `labels` encoded once, text within `limits` |
| `state`, `shift` | everything above as bytes, from one process to the next; its times by another clock |
| `counters` | what is worth telling about correlation itself |
| `teller`, `fleet_voice` | handing on what a correlator makes: as this agent's, or as the fleet's while it leads |
| `connector`, `config` | the shell: pipelines, timers, options |
| `results`, `results_config` | the shell that reads result records, paced, and its options |
"""
