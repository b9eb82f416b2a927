"""`datadog`: metrics to a Datadog agent beside us, by DogStatsD, through Datadog's own client.

| OpenTelemetry | Datadog |
| --- | --- |
| counter | count: what came since it was told last |
| gauge, sum that may fall | gauge |
| histogram | distribution: as many values as came, each within its bucket, their sum exact |

| module | what it decides |
| --- | --- |
| `config` | what an operator writes |
| `points` | names, tags and values: pure |
| `statsd` | writing, and what became of it: blocks, so it runs in a thread |
| `exporter` | one batch of each source at a time |
"""
