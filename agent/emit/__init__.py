"""The other end of the wire: a worker's signal emitter, for Python workers, tests and the demo.

    emitter = SignalEmitter.connect("redis://localhost:6379/0", worker_id="worker-1", emitter="pod-7")
    task = emitter.attempt(envelope)          # Stem's Envelope.toJson as a dict; `args` never leave
    task.received()
    task.prerun()
    task.succeeded()
    task.postrun("succeeded")

`AsyncSignalEmitter` is the same with `await` before every signal. Each signal carries every field of the wire format:
later signals of an attempt repeat what the earlier ones said, and `seq` is assigned before anything can be dropped, so
that the agent notices every loss. A worker must never suffer from its telemetry: what Redis does not take within two
seconds, and everything in the five seconds after that, is dropped, counted in `dropped`, and told of once a minute.

Workers in Dart have `config/stem_signal_bridge.dart`, which says the same things of the same facts.
"""

from agent.emit.attempt import AttemptSignals
from agent.emit.composer import Composer, iso, utc_now
from agent.emit.emitter import Emitter
from agent.emit.senders import AsyncSignalEmitter, SignalEmitter

__all__ = ["AsyncSignalEmitter", "AttemptSignals", "Composer", "Emitter", "SignalEmitter", "iso", "utc_now"]
