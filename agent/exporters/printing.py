"""Exporters that print: each batch at once, on standard output. What is printed counts as delivered."""

import sys
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import TextIO

from google.protobuf.message import DecodeError

from agent.core.component import Passive
from agent.core.ledger import Ledger
from agent.core.status import Reports
from agent.otlp.batch import Batch


class Printer(Passive, ABC):
    """Writes the lines that a subclass makes of a batch; a batch that cannot be written whole is dropped."""

    def __init__(self, identity: str, ledger: Ledger, reports: Reports, stream: TextIO | None = None) -> None:
        self.identity = identity
        self._ledger = ledger
        self._output = reports.part("output")
        self._stream = stream

    @abstractmethod
    def lines(self, batch: Batch) -> Iterable[str]:
        """Return what is printed of a batch; raises `DecodeError` for what is no OTLP."""

    def consume(self, batch: Batch) -> None:
        """Print the batch, if there is anything in it."""
        if not batch.items:
            return
        account = self._ledger.account(self.identity, batch.kind)
        account.accepted += batch.count
        stream = self._stream or sys.stdout
        try:
            stream.write("".join(f"{line}\n" for line in self.lines(batch)))
            stream.flush()
        except DecodeError:
            account.dropped["undecodable"] += batch.count
            self._output.degraded("something was no OTLP, and could not be printed")
        except (OSError, ValueError) as error:  # the disk is full, the reader is gone, the encoding is too narrow
            account.dropped["output_failed"] += batch.count
            reason = getattr(error, "strerror", None) or type(error).__name__
            self._output.failed(f"failed to write: {reason.lower()}")
        else:
            account.delivered += batch.count
            self._output.ok()
        account.ended()
