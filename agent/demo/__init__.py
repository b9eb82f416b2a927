"""The demo: a simulated fleet, a local OTLP endpoint, and a comparison of what was done with what arrived.

| module | role |
| --- | --- |
| `fleet` | producers and workers that live through task lifecycles, in a process of their own |
| `truth` | what the fleet did, as a file others can compare with |
| `sink` | a real OTLP/HTTP endpoint that remembers what it received |
| `compare` | truth against sink, exactly |
| `stage` | starts and stops the processes |
"""
