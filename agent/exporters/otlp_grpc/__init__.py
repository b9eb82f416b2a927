"""`otlp_grpc`: OTLP over gRPC, by the letter of the specification.

| module | what it decides |
| --- | --- |
| `config` | what an operator writes |
| `answer` | what a status and its details mean: pure |
| `transport` | channels, credentials, calls; imports grpc, so it is itself imported only where it is used |
"""

import os

# grpc's C core would write lines of its own, in its own form, past the agent's log. It reads this when it is imported.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
