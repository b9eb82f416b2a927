"""What this machine has for a configuration: files, directories, addresses, memory. Nothing is changed."""

import errno
import os
import socket
from collections.abc import Iterator, Mapping

from agent.app import Agent
from agent.checks.findings import Findings, models, running
from agent.configuration import AgentConfig
from agent.core.errors import AgentError, Level, StartupError
from agent.exporters.otlp.config import OtlpConfig
from agent.settings.document import Document, Path
from agent.settings.model import Config
from agent.settings.types import HostPort


def check_environment(config: AgentConfig, document: Document, environ: Mapping[str, str]) -> Findings:
    """Look at what each component that would run needs here, and build them all."""
    findings = Findings(Level.ENVIRONMENT, document)
    for path, component in running(config):
        for where, each in models(component, path):
            for message in each.missing_here():
                findings.error(where, message)
        for where, message in (*_files(component, path), *_addresses(component, path)):
            findings.error(where, message)
        findings.well.extend(_shown(component))
    if not findings.errors:
        try:
            Agent(config, environ)
        except AgentError as error:
            findings.error((), str(error))
    findings.sort()
    return findings


def _files(component: Config, path: Path) -> Iterator[tuple[Path, str]]:
    """Read each file that is named."""
    if isinstance(component, OtlpConfig):
        try:
            component.check_files()
        except StartupError as error:
            yield path, str(error)
    for where, each in models(component, path):
        for use in each.redis_uses():
            if use.url.tls:
                try:
                    use.tls.context()
                except StartupError as error:
                    yield (*where, *use.option, "tls"), str(error)


def _addresses(component: Config, path: Path) -> Iterator[tuple[Path, str]]:
    for where, each in models(component, path):
        for name in type(each).model_fields:
            address = getattr(each, name)
            if isinstance(address, HostPort) and (reason := _cannot_listen(address)):
                yield (*where, name), f"cannot listen on {address}: {reason}; name an address of this machine"


def _cannot_listen(address: HostPort) -> str:
    """Say why nobody can listen there; that somebody does already is no reason: it may be the agent itself."""
    try:
        found = socket.getaddrinfo(*address, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, where = found[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(where)
    except socket.gaierror:
        return "the host is not known"
    except OSError as error:
        return "" if error.errno == errno.EADDRINUSE else os.strerror(error.errno or 0).lower()
    return ""


def _shown(component: Config) -> Iterator[str]:
    """Say what was looked at, for people."""
    for _, each in models(component, ()):
        for name in type(each).model_fields:
            value = getattr(each, name)
            if (name in {"ca_file", "cert_file", "key_file", "directory"} and value) or isinstance(value, HostPort):
                yield str(value)
