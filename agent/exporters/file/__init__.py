"""`file`: OTLP as JSON lines, one file per kind, for whoever picks files up.

Specification: OpenTelemetry, "OpenTelemetry Protocol File Exporter": `traces.jsonl`, `metrics.jsonl`, `logs.jsonl`, one
export request a line. Batching, queueing and the ledger are those of `otlp_http` and `otlp_grpc`; the file is the
transport.

| module | what it decides |
| --- | --- |
| `config` | what an operator writes |
| `lines` | a request as a line: pure |
| `rotating` | appending, rotating, syncing |
| `transport` | all of that beside the event loop |
"""
