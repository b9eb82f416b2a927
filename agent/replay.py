"""Sending what waits on the disk, without receiving anything."""

from collections.abc import Mapping, Sequence

from agent.configuration import AgentConfig
from agent.core.clock import SteadyClock
from agent.core.ledger import Account, Ledger
from agent.core.status import StatusBoard
from agent.otlp.resource import Resource
from agent.registry import EXPORTERS, EXTENSIONS, STORAGE, Host, type_of
from agent.settings.resource import detect_resource
from agent.telemetry.events import Telemetry


async def replay(config: AgentConfig, environ: Mapping[str, str], timeout: float) -> Sequence[Account]:  # noqa: ASYNC109 - of a drain
    """Deliver for up to `timeout` seconds; return the accounts. Raises `StartupError`."""
    clock = SteadyClock()
    resource = Resource(detect_resource(environ, "stem"))
    host = Host(Telemetry(), Ledger(), clock, resource, StatusBoard(clock))
    components = [
        EXTENSIONS[STORAGE].build(identity, config.components["extensions"][identity], host)
        for identity in config.service.extensions
        if type_of(identity) == STORAGE
    ]
    for identity, settings in config.components["exporters"].items():
        if (queue := getattr(settings, "sending_queue", None)) and queue.storage:
            components.append(EXPORTERS[type_of(identity)].build(identity, settings, host))
    started = components[:0]
    try:
        for component in components:
            started.append(component)
            await component.start()
    except BaseException:
        timeout = 0.0
        raise
    finally:
        for component in reversed(started):
            await component.stop(timeout)
    return list(host.ledger.accounts.values())
