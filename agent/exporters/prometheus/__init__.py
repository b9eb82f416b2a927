"""`prometheus`: the metrics of the last interval, for Prometheus to scrape.

| path | answers |
| --- | --- |
| `/metrics` | the metrics of the pipelines: of tasks and, from the agent that leads, of the fleet |
| `/metrics/agent` | the agent's own |

Both in OpenMetrics 1.0 with exemplars, or in the older text format 0.0.4, whichever the scraper prefers. Names, labels
and targets follow the OpenTelemetry specification, "Prometheus and OpenMetrics Compatibility". An exposition has
several resources (the agent's, the fleet's), so it does what is said there of the Collector: `job` and `instance` on
every series, and one `target_info` for each pair of them.

| module | what it decides |
| --- | --- |
| `config` | what an operator writes |
| `names` | the names of metrics and labels: pure |
| `accept` | which format an answer has: pure |
| `snapshots` | what is told at this moment, and what ended: pure |
| `exposition` | the families of an exposition: pure |
| `exporter` | the server |
"""
