"""`memory_limiter`: keeps the agent below a memory limit, by spilling to disk and by dropping what matters least.

| module | what it decides |
| --- | --- |
| `agent.core.pressure` | what goes first, and when: pure; shared by all who hold telemetry |
| `config` | what an operator writes, and what it comes to in bytes |
| `cgroup` | how much memory there is |
| `events` | what it has to say |
| `extension` | looks at the memory in use, has done what was decided, and tells |
"""
