"""`health`: tells orchestrators and people how the agent is, over HTTP.

| path | answers |
| --- | --- |
| `/livez` | 200 while the event loop turns; knows nothing of Redis or the destinations |
| `/readyz` | 200 between the end of the start and the beginning of the drain, and while `ready_needs` are healthy |
| `/status` | JSON: every component's state, since when and why, its last error; the ledger; counters |

| module | what it decides |
| --- | --- |
| `config` | what an operator writes |
| `judge` | when a component counts as unhealthy: pure |
| `report` | what `/status` says: pure |
| `extension` | the server |
"""
