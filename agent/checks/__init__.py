"""What `stem-agent validate` looks at beyond the text of a configuration, without running it.

| module | what is asked |
| --- | --- |
| `environment` | this machine: directories, TLS and header files, addresses to listen on, the memory limit |
| `connectivity` | the other side: Redis (login and rights), the OTLP endpoints (an empty export) |

Components say what they need themselves: `Config.missing_here` and `Config.redis_uses`.
"""
