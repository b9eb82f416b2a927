"""A simulated fleet that writes on Redis what Stem writes, signals what Stem signals, and knows the truth about it.

It runs in a process of its own, so that the agent's figures are the agent's. One fleet serves the demo, the tests, the
fidelity and the chaos runs.

| module | role |
| --- | --- |
| `fleet` | starts and stops the parts, publishes, kills |
| `worker` | lives through deliveries: gates, attempts, endings |
| `control` | a worker's answers to control commands |
| `handler` | what a task's own code does |
| `workflows`, `beat` | workflow runs and schedules |
| `client` | publishing: `Stem.enqueue`, canvas, Beat |
| `broker`, `backend`, `heartbeat` | what Stem keeps on Redis |
| `envelopes` | envelopes and their encodings: pure |
| `kinds` | what the tasks are, and how they behave |
| `faults` | what goes wrong on purpose |
"""
