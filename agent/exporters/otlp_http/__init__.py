"""`otlp_http`: OTLP over HTTP with protobuf bodies, by the letter of the specification.

| module | what it decides |
| --- | --- |
| `config` | what an operator writes |
| `answer` | what a status, its headers and body mean: pure |
| `transport` | session, TLS, requests; imports aiohttp, so it is itself imported only where it is used |
"""
