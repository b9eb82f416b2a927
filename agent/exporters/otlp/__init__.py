"""What `otlp_http` and `otlp_grpc` have in common: everything but the road.

| module | what it decides |
| --- | --- |
| `config` | what an operator writes, and what of it holds for one kind |
| `headers` | header values, plain or from files |
| `answer` | partial success, and what servers say, in one printable line: pure |
| `exporter` | one transport for all kinds, one sender for each |
"""
