"""`ownership`: one voice among many agents, by leases in Redis.

| module | what it decides |
| --- | --- |
| `agent.core.ownership` | how long a lease may be used, and what that means for others: pure |
| `config` | what an operator writes |
| `events` | what it has to say |
| `leader` | who is the leader of the fleet: redis-py's lock |
| `news` | that something changed, heard at once instead of with the next renewal |
| `extension` | the pace, and what happens when Redis cannot be reached |
"""
