"""Composes the payloads of the wire, and numbers them: everything but the sending."""

import itertools
import json
import os
import secrets
import socket
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from agent.stem.catalogue import SignalName
from agent.stem.channels import signal_channel

Envelope = Mapping[str, Any]

PRIVATE_META = frozenset(
    {
        "chainPrevResult",
        "chordResults",
        "kwargs",
        "stem.chord.callbackEnvelope",
        "stem.link",
        "stem.linkError",
        "stem.unique.duplicates",
    }
)
"""Meta keys that never leave a worker.

They repeat arguments and results of this task and of others (which may be personal), or grow with the number of tasks;
none of them says anything about the life of the task.
"""


def utc_now() -> datetime:
    """Return the time as signals write it."""
    return datetime.now(UTC)


def iso(moment: datetime) -> str:
    """Return Dart's ISO-8601: six fraction digits and `Z`."""
    return moment.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


class Composer:
    """Composes payloads and numbers them: everything about the wire but the sending.

    `emitter` names the process that speaks; it is `STEM_EMITTER`, else the host's name (a pod's name in Kubernetes).
    Raises `ValueError` for an emitter name with a colon.
    """

    def __init__(
        self,
        *,
        worker_id: str = "",
        namespace: str = "stem",
        emitter: str | None = None,
        clock: Callable[[], datetime] = utc_now,
    ) -> None:
        self.worker_id = worker_id
        self.namespace = namespace
        self.emitter = emitter or os.environ.get("STEM_EMITTER") or socket.gethostname()
        self.clock = clock
        self._begin_boot()
        if hasattr(os, "register_at_fork"):  # a child is another process: it must not go on with its parent's numbers
            os.register_at_fork(after_in_child=self._begin_boot)
        self.channel = signal_channel(namespace, self.emitter)

    def _begin_boot(self) -> None:
        self.boot = secrets.token_hex(8)
        self._numbers = itertools.count(1)
        self._process = {"pid": os.getpid(), "host": socket.gethostname()}

    def compose(
        self,
        name: SignalName | str,
        attributes: Mapping[str, Any],
        *,
        occurred_at: datetime | None = None,
        envelope: Envelope | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> bytes:
        """Return the next payload: one JSON object, UTF-8. Safe to call from several threads.

        Raises `ValueError`, `TypeError` or `KeyError` for what JSON cannot say; the number is taken all the same.
        """
        seq = next(self._numbers)
        signal: dict[str, Any] = {
            "eventName": str(name),
            "occurredAt": iso(occurred_at or self.clock()),
            "attributes": _without_payloads(name, attributes),
        }
        if envelope is not None:
            signal["envelope"] = _without_arguments(envelope)
        if name.startswith("worker-"):
            signal |= self._process
        signal |= {key: value for key, value in (extra or {}).items() if value is not None}
        signal |= {"emitter": self.emitter, "boot": self.boot, "seq": seq}
        text = json.dumps(signal, separators=(",", ":"), ensure_ascii=False, allow_nan=False, default=str)
        return text.encode("utf-8", "replace")


def _without_payloads(name: SignalName | str, attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out what workflows and commands are given or compute, and what has no value."""
    kept = {key: value for key, value in attributes.items() if value is not None}
    if name.startswith("workflow-run-") and isinstance(metadata := kept.pop("metadata", None), Mapping):
        metadata = {key: value for key, value in metadata.items() if key != "result"}
        if metadata:
            kept["metadata"] = metadata
    elif name.startswith("control-command-"):
        kept.pop("payload", None)
        kept.pop("response", None)
    return kept


def _without_arguments(envelope: Envelope) -> dict[str, Any]:
    kept = {key: value for key, value in envelope.items() if key != "args"}
    if isinstance(meta := kept.get("meta"), Mapping):
        kept["meta"] = {key: value for key, value in meta.items() if key not in PRIVATE_META}
    return kept
