"""An exporter of either transport with its books, and nothing around it."""

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from opentelemetry.proto.trace.v1.trace_pb2 import Span

from agent.core.clock import SteadyClock
from agent.core.ledger import Account, Ledger
from agent.core.status import StatusBoard
from agent.otlp.batch import Batch, Kind
from agent.otlp.resource import Resource
from agent.registry import EXPORTERS, EXTENSIONS, Host
from agent.registry import STORAGE as DISK
from agent.settings.substitution import read
from agent.settings.validate import validate
from agent.storage.config import FileStorageConfig
from agent.telemetry.events import Telemetry
from tests.conftest import until

HTTP, GRPC = "otlp_http", "otlp_grpc"
RESOURCE = Resource({"service.name": "shop"})
CLOCK = SteadyClock()
# Long enough that nothing is tried again by itself while a test looks, and that a server's wish fits into the maximum.
INITIAL, MAXIMUM = 60.0, 3600.0


class Sending:
    """An exporter of either transport, with its books."""

    def __init__(
        self,
        transport: str,
        port: int,
        options: dict[str, Any],
        *,
        host: str = "127.0.0.1",
        directory: Path | None = None,
    ) -> None:
        scheme = "https" if options.get("tls") else "http"
        values = {
            "endpoint": f"{scheme}://{host}:{port}",
            "timeout": "5s",
            "retry_on_failure": {"initial_interval": f"{INITIAL:g}s", "max_interval": f"{MAXIMUM:g}s"},
            "sending_queue": {"batch": {"flush_timeout": "1ms"}, **({"storage": DISK} if directory else {})},
            **options,
        }
        document = read("", "matrix.yaml", {})
        config: Any = validate(EXPORTERS[transport].config, values, ("exporters", transport), document, {})
        assert document.problems == []
        self.telemetry = Telemetry()
        self.ledger = Ledger()
        shared = Host(self.telemetry, self.ledger, CLOCK, RESOURCE, StatusBoard(CLOCK))
        self.storage = EXTENSIONS[DISK].build(DISK, FileStorageConfig(directory=str(directory)), shared)
        self.has_disk = directory is not None
        self.exporter = EXPORTERS[transport].build(transport, config, shared)
        self.account: Account = self.ledger.account(transport, "traces")

    async def start(self) -> None:
        if self.has_disk:
            await self.storage.start()
        await self.exporter.start()

    async def stop(self, seconds: float) -> None:
        await self.exporter.stop(seconds)
        await self.storage.stop(1)

    def consume(self, *sizes: int) -> None:
        spans = [Span(name=chr(ord("a") + index) * size) for index, size in enumerate(sizes)]
        self.exporter.consume(Batch(Kind.TRACES, RESOURCE, [span.SerializeToString() for span in spans], len(spans)))

    async def settled(self) -> None:
        """Wait until the first attempt has come to something."""
        account, counted = self.account, self.telemetry.counted
        await until(lambda: not account.held or bool(counted("stem_agent.exporter.retries")))

    @property
    def books(self) -> tuple[int, int, dict[str, int], int]:
        account = self.account
        assert account.accepted == account.delivered + account.lost + account.held
        return account.delivered, account.rejected.total(), dict(account.dropped), account.held


@contextlib.asynccontextmanager
async def sending(*arguments: Any, **named: Any) -> AsyncIterator[Sending]:
    stage = Sending(*arguments, **named)
    await stage.start()
    try:
        yield stage
    finally:
        await stage.stop(0)
