"""stem-agent: an OpenTelemetry sidecar for Stem job workers.

The tree is the architecture, and imports point downward only (`import-linter` keeps it so):

| package | what lives there |
| --- | --- |
| `cli`, `demo` | commands for people, and the simulated fleet |
| `app`, `configuration`, `pipeline`, `registry` | load, build, supervise, drain |
| `changes`, `joints`, `swap`, `reload` | another configuration in the place of the one that runs |
| `checks`, `options`, `schema`, `printing` | what `validate` looks at; what is made of the models: tables, schema |
| `self_telemetry`, `replay` | the agent's own metrics and lines; sending what waits on the disk |
| `receivers`, `correlate`, `processors`, `exporters`, `extensions` | the components, by kind |
| `storage` | the extension `file_storage`: batches and states on a disk, for whoever is told to use it |
| `emit` | the other end of the wire: a worker's signal emitter |
| `otlp`, `stem` | the two languages we speak, as pure code |
| `redis_client`, `http_server` | redis-py for commands, with an operator's credentials and TLS; serving with them |
| `instruments` | metrics that more than one component can tell |
| `settings` | YAML with line numbers, substitution, value types |
| `telemetry` | what the agent says about itself |
| `core` | clock, back-off, ledger, errors, states that are kept, the component protocol |
"""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("stem-otel-agent")
except PackageNotFoundError:  # a source tree on sys.path without an installed distribution
    __version__ = "0.0.0"
