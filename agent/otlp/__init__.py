"""OTLP as pure code: the wire, spans, log records, metrics, resources, requests.

The pipelines' currency is the OTLP wire format itself. A span or log record is encoded once, when it is made, straight
to bytes (`wire`): 1.4 us a span against 4.9 us through protobuf messages, measured on the same span. Its size is then
known exactly, so batching and memory limits are arithmetic, the garbage collector has nothing to walk, and fanning
out to several exporters shares one immutable value. Metrics, low in volume, use the protobuf messages.
"""
