"""Which components there are: YAML name -> configuration and builder. Add a component here, and nowhere else.

A builder gets the component's id and configuration, its next step where it has one, and the host: everything that
all components share. It never sees its neighbours.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar
from uuid import uuid4

from agent.core.clock import Clock
from agent.core.component import Component
from agent.core.ledger import Ledger
from agent.core.ownership import Ownership
from agent.core.pressure import Pressure
from agent.core.status import StatusBoard
from agent.correlate.config import CorrelateConfig
from agent.correlate.connector import CorrelateConnector
from agent.exporters.console import ConsoleConfig, ConsoleExporter
from agent.exporters.datadog.config import DatadogConfig
from agent.exporters.debug import DebugConfig, DebugExporter
from agent.exporters.file.config import FileConfig
from agent.exporters.otlp.config import OtlpConfig
from agent.exporters.otlp.exporter import Options, OtlpExporter, Transport
from agent.exporters.otlp_grpc.config import OtlpGrpcConfig
from agent.exporters.otlp_http.config import OtlpHttpConfig
from agent.exporters.prometheus.config import PrometheusConfig
from agent.extensions.health.config import HealthConfig
from agent.extensions.health.extension import HealthExtension
from agent.extensions.memory_limiter.config import MemoryLimiterConfig
from agent.extensions.memory_limiter.extension import MemoryLimiter
from agent.extensions.ownership.config import OwnershipConfig
from agent.extensions.ownership.extension import OwnershipExtension
from agent.otlp.batch import Consumer, Fanout, Kind
from agent.otlp.deltas import Deltas
from agent.otlp.resource import Resource
from agent.processors.resource import ResourceConfig, ResourceProcessor
from agent.receivers.stem_signals.config import StemSignalsConfig
from agent.receivers.stem_signals.receiver import StemSignalsReceiver
from agent.receivers.stem_state.config import StemStateConfig
from agent.receivers.stem_state.receiver import FleetMetrics, StemStateReceiver
from agent.receivers.stem_tail.config import StemTailConfig
from agent.receivers.stem_tail.memory import Memory
from agent.receivers.stem_tail.receiver import StemTailReceiver
from agent.settings.model import Config
from agent.stem.wire import SignalConsumer
from agent.storage.config import FileStorageConfig
from agent.storage.file_storage import FileStorage
from agent.telemetry.events import Telemetry


@dataclass(frozen=True, slots=True)
class Host:
    """What every component may use.

    A component tells how it is through `status.of(section, identity)`, and keeps what survives a restart in a storage.
    Whoever holds much in memory takes part in `pressure`; what one of several agents is to do is asked of `ownership`.
    """

    telemetry: Telemetry
    ledger: Ledger
    clock: Clock
    resource: Resource
    status: StatusBoard
    storages: dict[str, FileStorage] = field(default_factory=dict)
    pressure: Pressure = field(default_factory=Pressure)
    ownership: Ownership = field(default_factory=Ownership)

    def storage(self, identity: str | None) -> FileStorage | None:
        """Return the storage of an id; None for none."""
        return self.storages[identity] if identity else None


class Exporter(Component, Consumer, Protocol):
    """A component that ends a pipeline."""


class Processor(Component, Consumer, Protocol):
    """A component in the middle of a pipeline."""


class Connector(Component, SignalConsumer, Protocol):
    """A component that ends the signals pipeline and begins others."""


@dataclass(frozen=True, slots=True)
class Outputs:
    """The next steps of a receiver: of the signals pipeline, and of each of the others that it begins.

    Signals of a receiver that begins no signals pipeline go nowhere.
    """

    signals: SignalConsumer
    telemetry: Mapping[Kind, Consumer]


Build = TypeVar("Build", bound=Callable[..., Component])


@dataclass(frozen=True, slots=True)
class ComponentType(Generic[Build]):
    """The configuration and the builder of one YAML name.

    Of a receiver, the kinds of pipelines that it can begin; of an exporter, those that it can end. A `bound` receiver
    and its connectors have an understanding: where one of them is built anew, so is the other.
    """

    config: type[Config]
    build: Build
    begins: tuple[str, ...] = ()
    bound: bool = False
    ends: tuple[Kind, ...] = tuple(Kind)


SIGNALS = "signals"
STORAGE = "file_storage"

BuildReceiver = Callable[[str, Any, Outputs, Host], Component]
BuildConnector = Callable[[str, Any, Mapping[Kind, Consumer], Host], Connector]
BuildProcessor = Callable[[str, Any, Consumer, Host], Processor]
BuildExporter = Callable[[str, Any, Host], Exporter]
BuildExtension = Callable[[str, Any, Host], Component]


def _otlp_http(identity: str, config: OtlpHttpConfig, host: Host) -> OtlpExporter:
    from agent.exporters.otlp_http.transport import HttpTransport  # noqa: PLC0415 - aiohttp, for those who use it

    return _with_temporality(
        _otlp(identity, config, HttpTransport(identity, config, host.telemetry), host), config, host
    )


def _otlp_grpc(identity: str, config: OtlpGrpcConfig, host: Host) -> OtlpExporter:
    from agent.exporters.otlp_grpc.transport import GrpcTransport  # noqa: PLC0415 - grpc, for those who use it

    return _with_temporality(
        _otlp(identity, config, GrpcTransport(identity, config, host.telemetry), host), config, host
    )


def _file(identity: str, config: FileConfig, host: Host) -> OtlpExporter:
    from agent.exporters.file.transport import FileTransport  # noqa: PLC0415 - protobuf's json, for those who use it

    return _otlp(identity, config, FileTransport(identity, config), host)


def _with_temporality(exporter: OtlpExporter, config: OtlpConfig, host: Host) -> OtlpExporter:
    if config.temporality == "delta":
        exporter.tell_differences(Deltas(host.clock()))
    return exporter


def _otlp(identity: str, config: Options, transport: Transport, host: Host) -> OtlpExporter:
    return OtlpExporter(
        *(identity, config, transport, host.ledger, host.telemetry),
        host.status.of("exporters", identity),
        host.storage(config.sending_queue.storage),
        host.pressure,
    )


def _prometheus(identity: str, config: PrometheusConfig, host: Host) -> Exporter:
    from agent.exporters.prometheus.exporter import PrometheusExporter  # noqa: PLC0415 - its library, for those who do

    attributes = {key: str(value) for key, value in host.resource.attributes.items()}
    return PrometheusExporter(
        identity, config, attributes, host.ledger, host.telemetry, host.status.of("exporters", identity)
    )


def _datadog(identity: str, config: DatadogConfig, host: Host) -> Exporter:
    from agent.exporters.datadog.exporter import DatadogExporter  # noqa: PLC0415 - its library costs 5 MiB

    return DatadogExporter(identity, config, host.ledger, host.telemetry, host.status.of("exporters", identity))


def _stem_signals(identity: str, config: StemSignalsConfig, outputs: Outputs, host: Host) -> StemSignalsReceiver:
    reports = host.status.of("receivers", identity)
    receiver = StemSignalsReceiver(
        *(identity, config, outputs.signals, host.telemetry, host.clock, reports),
        host.storage(config.storage),
        host.pressure,
    )
    if host.ownership.configured:
        receiver.share(host.ownership, host.pressure, reports.part("claims"))
    return receiver


def _stem_state(identity: str, config: StemStateConfig, outputs: Outputs, host: Host) -> StemStateReceiver:
    consumer = outputs.telemetry.get(Kind.METRICS, Fanout(()))
    return StemStateReceiver(
        *(identity, config, FleetMetrics(consumer, host.resource.of_the_fleet(), identity), outputs.signals),
        *(host.telemetry, host.clock),
        host.status.of("receivers", identity),
        host.ownership,
    )


def _stem_tail(identity: str, config: StemTailConfig, outputs: Outputs, host: Host) -> StemTailReceiver:
    memory = Memory(identity, host.ownership, host.ledger, host.telemetry, host.storage(config.storage))
    return StemTailReceiver(
        *(identity, config, outputs.signals, host.telemetry, host.clock),
        *(host.status.of("receivers", identity), host.ownership, memory),
    )


def _correlate(
    identity: str, config: CorrelateConfig, outputs: Mapping[Kind, Consumer], host: Host
) -> CorrelateConnector:
    connector = CorrelateConnector(
        *(identity, config, outputs, host.resource, host.telemetry, host.clock),
        host.status.of("connectors", identity),
        host.storage(config.storage),
    )
    connector.share(host.ownership)
    return connector


RECEIVERS: dict[str, ComponentType[BuildReceiver]] = {
    "stem_signals": ComponentType(StemSignalsConfig, _stem_signals, begins=(SIGNALS,)),
    "stem_state": ComponentType(StemStateConfig, _stem_state, begins=(SIGNALS, Kind.METRICS)),
    "stem_tail": ComponentType(StemTailConfig, _stem_tail, begins=(SIGNALS,), bound=True),
}
CONNECTORS: dict[str, ComponentType[BuildConnector]] = {"correlate": ComponentType(CorrelateConfig, _correlate)}
PROCESSORS: dict[str, ComponentType[BuildProcessor]] = {
    "resource": ComponentType(
        ResourceConfig, lambda _identity, config, consumer, _host: ResourceProcessor(config, consumer)
    ),
}
EXPORTERS: dict[str, ComponentType[BuildExporter]] = {
    "otlp_http": ComponentType(OtlpHttpConfig, _otlp_http),
    "otlp_grpc": ComponentType(OtlpGrpcConfig, _otlp_grpc),
    "prometheus": ComponentType(PrometheusConfig, _prometheus, ends=(Kind.METRICS,)),
    "datadog": ComponentType(DatadogConfig, _datadog, ends=(Kind.METRICS,)),
    "file": ComponentType(FileConfig, _file),
    "console": ComponentType(
        ConsoleConfig,
        lambda identity, config, host: ConsoleExporter(
            identity, config, host.ledger, host.status.of("exporters", identity)
        ),
    ),
    "debug": ComponentType(
        DebugConfig,
        lambda identity, config, host: DebugExporter(
            identity, config, host.ledger, host.status.of("exporters", identity)
        ),
    ),
}


def _file_storage(identity: str, config: FileStorageConfig, host: Host) -> FileStorage:
    """Build a storage, and leave it where the others find it: extensions are built first."""
    storage = FileStorage(identity, config, host.telemetry, host.clock, host.status.of("extensions", identity))
    host.storages[identity] = storage
    return storage


def _agent_id(host: Host) -> str:
    """Return what tells this agent from all others: distinct also where the resource does not say."""
    return str(host.resource.attributes.get("service.instance.id") or uuid4()).replace(" ", "_")


EXTENSIONS: dict[str, ComponentType[BuildExtension]] = {
    STORAGE: ComponentType(FileStorageConfig, _file_storage),
    "health": ComponentType(
        HealthConfig,
        lambda identity, config, host: HealthExtension(identity, config, host.status, host.ledger, host.telemetry),
    ),
    "memory_limiter": ComponentType(
        MemoryLimiterConfig,
        lambda identity, config, host: MemoryLimiter(
            identity, config, host.pressure, host.telemetry, host.status.of("extensions", identity)
        ),
    ),
    "ownership": ComponentType(
        OwnershipConfig,
        lambda identity, config, host: OwnershipExtension(
            *(identity, config, host.ownership, _agent_id(host), host.telemetry, host.clock),
            host.status.of("extensions", identity),
        ),
    ),
}

SECTIONS: dict[str, Mapping[str, ComponentType[Any]]] = {
    "receivers": RECEIVERS,
    "connectors": CONNECTORS,
    "processors": PROCESSORS,
    "exporters": EXPORTERS,
    "extensions": EXTENSIONS,
}


def type_of(identity: str) -> str:
    """Return the type of a component id: `otlp_http` of `otlp_http/backup`."""
    return identity.partition("/")[0]
