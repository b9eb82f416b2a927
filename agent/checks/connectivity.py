"""What the other side says to a configuration: Redis to login and rights, the OTLP endpoints to an empty export."""

import asyncio
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence

from agent.checks.findings import Findings, kinds_of, models, running
from agent.configuration import AgentConfig
from agent.core.clock import SteadyClock
from agent.core.errors import Level, StartupError
from agent.exporters.otlp.config import OtlpConfig
from agent.exporters.otlp.exporter import Transport
from agent.exporters.otlp_grpc.config import OtlpGrpcConfig
from agent.exporters.otlp_http.config import OtlpHttpConfig
from agent.exporters.sending.outcome import Delivered, Drop, Outcome
from agent.exporters.sending.sealed import Sealed
from agent.otlp.batch import Kind
from agent.redis_client import failure
from agent.settings.document import Document, Path, dotted
from agent.settings.needs import VERSION_PROBE, RedisUse, is_older, missing, trouble
from agent.stem.client.reader import RedisReader
from agent.stem.questions.query import ServerError
from agent.telemetry.events import Telemetry

_SUBSCRIPTIONS = frozenset({"SUBSCRIBE", "PSUBSCRIBE"})
_Used = list[tuple[Path, RedisUse]]


async def check_connectivity(config: AgentConfig, document: Document, leave_out: Collection[Path] = ()) -> Findings:
    """Ask every server that would be used, all at once; those of the components in `leave_out` are not asked."""
    findings = Findings(Level.CONNECTIVITY, document)
    components = [(path, component) for path, component in running(config) if path not in leave_out]
    logins: dict[tuple[object, ...], _Used] = defaultdict(list)
    for path, component in components:
        for where, each in models(component, path):
            for use in each.redis_uses():
                url = use.url
                login = url.address, url.database, url.username, url.password, url.tls, use.tls
                logins[login].append(((*where, *use.option), use))
    exporters = [(path, each) for path, each in components if isinstance(each, OtlpConfig)]
    telemetry = Telemetry(SteadyClock(), config.mask)
    await asyncio.gather(
        *(_redis(uses, findings) for uses in logins.values()),
        *(
            _otlp(path, each, [Kind(kind) for kind in kinds_of(config, str(path[-1]))], telemetry, findings)
            for path, each in exporters
        ),
    )
    findings.sort()
    return findings


# --- redis -----------------------------------------------------------------------------------------------------------


async def _redis(uses: _Used, findings: Findings) -> None:
    """Log in once for everybody who does so alike, then try what each has to be allowed to do."""
    (path, first), url = uses[0], uses[0][1].url
    others = dict.fromkeys(dotted(where) for where, _ in uses[1:] if where != path)
    also = f" (so do {', '.join(others)})" if others else ""
    reader = RedisReader(url, first.tls, timeout=first.timeout, on_failure=lambda _: None)
    try:
        if away := await reader.greet(""):
            reason = f"failed to connect to redis {url.address}: {failure(away)}"
            findings.error((*path, "url"), f"{reason}; check the address, and that it is reachable from here{also}")
            return
        for where, use in uses:
            refusals = await _tried(reader, use)
            if state := trouble(refusals):
                findings.error((*where, "url"), f"redis {url.address} cannot be used: {state}")
                return
            older = any(refusals) and is_older(str((await reader.send([VERSION_PROBE]))[0]))
            _rights(where, use, missing(use.rights, refusals, older=older), findings)
        names = ", ".join(dict.fromkeys(str(where[1]) for where, _ in uses))
        findings.well.append(f"redis {url.address} ({names})")
    except StartupError as refused:
        reason = str(refused).removeprefix(": ")
        findings.error((*path, "url"), f"{reason}; check user, password and database{also}")
    except Exception as error:  # noqa: BLE001 - whatever it was, it is told, and the others are asked
        findings.error((*path, "url"), f"failed to ask redis {url.address}: {failure(error)}{also}")
    finally:
        await reader.close()


async def _tried(reader: RedisReader, use: RedisUse) -> list[str | None]:
    """Return the server's refusal of each right, None where there is none."""
    # A connection that has subscribed may do little else.
    order = sorted(range(len(use.rights)), key=lambda index: use.rights[index].command[0] in _SUBSCRIPTIONS)
    replies = await reader.send([use.rights[index].command for index in order])
    refused = {i: str(reply) for i, reply in zip(order, replies, strict=True) if isinstance(reply, ServerError)}
    await reader.close()  # the next one begins with a connection that has not subscribed
    return [refused.get(index) for index in range(len(order))]


def _rights(path: Path, use: RedisUse, lacking: Mapping[str, Sequence[str]], findings: Findings) -> None:
    user = use.url.username or "default"
    for gives, rules in lacking.items():
        line = f"ACL SETUSER {user} {' '.join(rules)}"
        server = f"user {user} of redis {use.url.address}"
        if gives:
            findings.warn(path, f"{server} lacks the rights for {gives}, which there will not be; run: {line}")
        else:
            findings.error(path, f"{server} lacks the rights that are needed here; run: {line}")


# --- otlp ------------------------------------------------------------------------------------------------------------


async def _otlp(path: Path, config: OtlpConfig, kinds: Sequence[Kind], telemetry: Telemetry, found: Findings) -> None:
    transport = _transport(path, config, telemetry)
    try:
        await transport.open()
        outcomes = await asyncio.gather(*(_export(transport, kind) for kind in kinds))
    except StartupError as error:
        found.error(path, str(error))
        return
    finally:
        await transport.close()
    alike: dict[tuple[bool, str], list[Kind]] = defaultdict(list)
    for kind, outcome in zip(kinds, outcomes, strict=True):
        if isinstance(outcome, Delivered):
            continue
        # One cause, one message, though each kind has a URL of its own.
        told = f"{outcome.reason}: {outcome.detail.replace(f' ({config.endpoint_of(kind)})', '')}"
        alike[isinstance(outcome, Drop), told].append(kind)
    for (is_drop, told), those in alike.items():
        where = " and ".join(config.endpoint_of(kind) for kind in those)
        if is_drop:  # the way there and the key are right; some take no request without items
            found.warn(path, f"an empty export was not taken by {where}: {told}")
        else:
            found.error(path, f"failed to export to {where}: {told}")
    if well := [kind for kind, outcome in zip(kinds, outcomes, strict=True) if isinstance(outcome, Delivered)]:
        found.well.append(f"{path[-1]} ({', '.join(well)})")


def _transport(path: Path, config: OtlpConfig, telemetry: Telemetry) -> Transport:
    # Imported where they are used: each brings a large library along.
    if isinstance(config, OtlpGrpcConfig):
        from agent.exporters.otlp_grpc.transport import GrpcTransport  # noqa: PLC0415

        return GrpcTransport(str(path[-1]), config, telemetry)
    from agent.exporters.otlp_http.transport import HttpTransport  # noqa: PLC0415

    assert isinstance(config, OtlpHttpConfig)  # noqa: S101 - there are two
    return HttpTransport(str(path[-1]), config, telemetry)


async def _export(transport: Transport, kind: Kind) -> Outcome:
    """Send a request without items."""
    coding = transport.coding(kind)
    _, outcome = await transport.send(kind, Sealed(coding.compress(b""), 0, 0, encoding=coding.name))
    return outcome
