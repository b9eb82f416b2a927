"""The demo: a simulated fleet, a local OTLP endpoint, and a comparison of what was done with what arrived.

| module | role |
| --- | --- |
| `fleet` | a package: a simulated Stem fleet, in a process of its own |
| `truth` | what the fleet did, as a file others can compare with |
| `sink` | a real OTLP/HTTP endpoint that remembers what it received |
| `compare` | truth against sink, exactly |
| `stage` | what is played: starts the parts, lets them work, stops them in order |
| `process`, `valkey` | child processes; the embedded server |
| `reach` | whether anybody listens at the user's own endpoint |
| `view`, `screen` | what there is to see, and how it is drawn |
"""
