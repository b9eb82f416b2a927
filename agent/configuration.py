"""From the text of a YAML file to a checked configuration: every problem found, all at once."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from agent.core.errors import ConfigError, Level, Problem
from agent.core.masking import Masker
from agent.otlp.batch import Kind
from agent.registry import EXPORTERS, RECEIVERS, SECTIONS, SIGNALS, STORAGE, type_of
from agent.settings.document import Document, compose
from agent.settings.document import Path as KeyPath
from agent.settings.hints import further_down, match, nearest
from agent.settings.layers import assignment, merge
from agent.settings.model import Config
from agent.settings.resource import ResourceError, parse_attributes
from agent.settings.secrets import secrets_of
from agent.settings.substitution import read, substitute
from agent.settings.types import Duration
from agent.settings.validate import validate

PIPELINE_KINDS = (SIGNALS, *(str(kind) for kind in Kind))
SELF_TELEMETRY_CARRIERS = ("otlp_http", "otlp_grpc")
SELF_TELEMETRY_OFF = "none"
# Which sections each role of a pipeline may name: a connector ends the signals pipeline and begins the others.
_ROLES: dict[str, dict[str, tuple[str, ...]]] = {
    SIGNALS: {"receivers": ("receivers",), "processors": (), "exporters": ("connectors",)},
    "telemetry": {"receivers": ("connectors", "receivers"), "processors": ("processors",), "exporters": ("exporters",)},
}


class PipelineConfig(Config):
    """One pipeline: where its data comes from, what happens on the way, where it goes."""

    receivers: tuple[str, ...] = Field(min_length=1, description="component ids; connectors count as receivers here")
    processors: tuple[str, ...] = Field((), description="component ids, in the order of the data")
    exporters: tuple[str, ...] = Field(min_length=1, description="component ids; connectors count as exporters here")


class SelfLogsConfig(Config):
    """The agent's own log lines, on standard error and, if wanted, over OTLP."""

    level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", description="lines below are not written")
    format: Literal["console", "json"] = Field("console", description="text for people, or one JSON object a line")
    exporter: str | None = Field(
        None,
        description="id of the `otlp_http` or `otlp_grpc` whose destination gets them too; "
        "absent or `none`: standard error only",
    )


class SelfMetricsConfig(Config):
    """The agent's own metrics."""

    exporter: str | None = Field(
        None,
        description="id of the `otlp_http` or `otlp_grpc` whose destination they use; absent: the metrics pipeline's; "
        "`none`: off",
    )
    interval: Duration = Field(60.0, gt=0, description="how often they are exported")


class SelfTelemetryConfig(Config):
    """What the agent says about itself."""

    logs: SelfLogsConfig = Field(default_factory=SelfLogsConfig, description="log lines")
    metrics: SelfMetricsConfig = Field(default_factory=SelfMetricsConfig, description="metrics")


class ServiceConfig(Config):
    """Which components run, and how they are joined."""

    pipelines: dict[str, PipelineConfig] = Field(min_length=1, description="`signals`, `traces`, `metrics`, `logs`")
    extensions: tuple[str, ...] = Field((), description="ids of extensions to run")
    shutdown_timeout: Duration = Field(10.0, gt=0, description="from SIGTERM to exit, whatever is still queued")
    telemetry: SelfTelemetryConfig = Field(default_factory=SelfTelemetryConfig, description="about the agent itself")


class _Root(Config):
    """What a file may have beside components, to look for misplaced keys in."""

    service: ServiceConfig


_KEYS = "receivers, connectors, exporters and service"
_ID = re.compile(r"[^/\s]+(/[^/\s]+)?")
_SINGLE = ("memory_limiter", "ownership")
"""Types of which one runs: it speaks for the whole agent."""


@dataclass(slots=True)
class AgentConfig:
    """A checked configuration: every reference resolves, every value has its type.

    `components` maps a section (`receivers`, ...) to component ids to their configurations. `mask` hides their secrets
    in any text.
    """

    components: dict[str, dict[str, Config]]
    service: ServiceConfig
    warnings: list[Problem] = field(default_factory=list)
    mask: Masker = field(default_factory=Masker)


_YES, _NO = {"1", "on", "true", "yes"}, {"", "0", "off", "false", "no"}


def default_file() -> Path:
    """Return the shipped default configuration: beside the code in a wheel, in `config/` in a checkout."""
    packaged = Path(str(resources.files("agent"))) / "config" / "default.yaml"
    return packaged if packaged.exists() else Path(__file__).parents[1] / "config" / "default.yaml"


def load(
    files: Path | Sequence[Path] | None, environ: Mapping[str, str] | None = None, *, sets: Sequence[str] = ()
) -> AgentConfig:
    """Load a configuration as `gather` does, and check it. Raises `ConfigError` with every problem."""
    environ = os.environ if environ is None else environ
    return check(gather(files, environ, sets=sets), environ)


def gather(files: Path | Sequence[Path] | None, environ: Mapping[str, str], *, sets: Sequence[str] = ()) -> Document:
    """Read `files`, or without any the shipped default with Stem's own variables applied, and merge them.

    Later files go over earlier ones, and what is `set` as `KEY=VALUE` over all files; then variables are substituted.
    Raises `ConfigError` where something cannot be read, or is not YAML.
    """
    paths = [files] if isinstance(files, Path) else list(files or ())
    documents: list[Document] = []
    problems: list[Problem] = []
    for path in paths or [default_file()]:
        try:
            documents.append(_composed(path))
        except ConfigError as error:
            problems.extend(error.problems)
    if problems:
        raise ConfigError(problems)
    document = documents[0]
    if not paths:
        _apply_protocols(document, environ)
        _apply_metric_exporters(document, environ)
        _apply_health(document, environ)
        _apply_tail(document, environ)
    else:
        document.warnings.extend(_left_out(environ))
    for over in (*documents[1:], *map(assignment, sets)):
        merge(document, over)
    substitute(document, environ)
    return document


def _composed(path: Path) -> Document:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise ConfigError([Problem(str(path), 0, 0, "", f"cannot be read: {(reason or '').lower()}")]) from None
    return compose(text, str(path))


def parse(text: str, environ: Mapping[str, str], file: str = "config.yaml") -> AgentConfig:
    """Check a configuration given as text; raises `ConfigError`."""
    return check(read(text, file, environ), environ)


def check(document: Document, environ: Mapping[str, str]) -> AgentConfig:
    """Turn a document into a configuration; raises `ConfigError` with every problem in it."""
    root = document.root
    if not isinstance(root, dict):
        document.problem((), f"found {'nothing' if root is None else 'no mapping'}, expected the keys {_KEYS}")
        raise ConfigError(document.problems)
    known = [*SECTIONS, "service"]
    for key in root:
        if key not in known:
            below = "" if match(key, known) else further_down(key, _Root)
            document.problem((key,), f"unknown key{below or nearest(key, known)}", at_key=True)
    components = {section: _components(section, document, environ) for section in SECTIONS}
    service = validate(ServiceConfig, root.get("service"), ("service",), document, environ)
    document.level = Level.REFERENCES
    warnings = [*document.warnings, *_References(root, document).check()]
    try:
        parse_attributes(environ.get("OTEL_RESOURCE_ATTRIBUTES", ""))
    except ResourceError as error:
        variable = "environment variable OTEL_RESOURCE_ATTRIBUTES"
        document.problems.append(Problem(variable, 0, 0, "", str(error)))
    if document.problems or service is None:
        raise ConfigError(document.problems)
    typed = {
        section: {identity: config for identity, config in configs.items() if config}
        for section, configs in components.items()
    }
    return AgentConfig(typed, service, warnings, Masker(secrets_of(typed)))


def _components(section: str, document: Document, environ: Mapping[str, str]) -> dict[str, Config | None]:
    found = document.root.get(section)
    if found is None:
        return {}
    if not isinstance(found, dict):
        example = next(iter(SECTIONS[section]))
        wanted = f"a mapping of component ids to their options, such as {{{example}: {{}}}}"
        document.problem((section,), f"found {'a list' if isinstance(found, list) else 'text'}, expected {wanted}")
        return {}
    types = SECTIONS[section]
    configs: dict[str, Config | None] = {}
    for identity, values in found.items():
        path = (section, identity)
        component = types.get(type_of(identity))
        if component is None:
            document.problem(path, f"unknown {section.removesuffix('s')}{_instead(section, identity)}", at_key=True)
        elif not _ID.fullmatch(identity):
            message = f"found {identity!r}, expected an id such as {type_of(identity)} or {type_of(identity)}/name"
            document.problem(path, message, at_key=True)
        else:
            configs[identity] = validate(component.config, values, path, document, environ)
    return configs


# What the Collector has, and we have otherwise.
_FOREIGN = {
    ("exporters", "otlp"): "; the Collector's otlp is otlp_grpc here",
    ("exporters", "otlphttp"): "; the Collector's otlphttp is otlp_http here",
    ("exporters", "logging"): "; the Collector's logging is debug here",
    ("extensions", "health_check"): "; the Collector's health_check is health here",
    ("processors", "batch"): "; batching is an option of each exporter here: sending_queue.batch",
}


def _instead(section: str, identity: str) -> str:
    """Say what to do about a component that a section does not have."""
    name, types = type_of(identity), SECTIONS[section]
    elsewhere = next((other for other, known in SECTIONS.items() if name in known), None)
    owners = [known for known, component in types.items() if name in component.config.model_fields]
    if foreign := _FOREIGN.get((section, name)):
        return foreign
    if elsewhere:
        return f"; {name} is one of the {elsewhere}: move it there"
    if owners:
        return f"; {name} is an option of {' and '.join(owners)}: indent it below one of them"
    return nearest(name, list(types))


def _mapping(found: Any) -> Mapping[str, Any]:
    return found if isinstance(found, dict) else {}


def _texts(found: Any) -> list[str]:
    return [item for item in found if isinstance(item, str)] if isinstance(found, list) else []


def _told_already(root: Mapping[str, Any]) -> set[str]:
    """Return the ids of which something was told already: what names them, too, would tell of the same mistake."""
    strays = [found for key, found in root.items() if key not in SECTIONS and key != "service"]
    strays += [found for key, found in root.items() if key in SECTIONS and not isinstance(found, dict)]
    told = {identity for found in strays for identity in (_mapping(found) or _texts(found) or [str(found)])}
    for section, types in SECTIONS.items():
        told |= {identity for identity in _mapping(root.get(section)) if type_of(identity) not in types}
    return told


_WHICH = {"receivers": "traces, metrics or logs", "exporters": "signals"}


class _References:
    """Follows every reference between components; notes those that lead nowhere."""

    def __init__(self, root: Mapping[str, Any], document: Document) -> None:
        self._root = root
        self._document = document
        self._ids = {section: list(_mapping(root.get(section))) for section in SECTIONS}
        self._used: dict[str, set[str]] = {section: set() for section in SECTIONS}
        self._told = _told_already(root)
        self._roles: dict[str, set[str]] = {"receivers": set(), "exporters": set()}  # of connectors

    def check(self) -> list[Problem]:
        """Note the problems; return warnings about components that nothing uses.

        Works on what was written, not on the typed configuration, so that a wrong type elsewhere hides nothing here.
        """
        service = _mapping(self._root.get("service"))
        for name, pipeline in _mapping(service.get("pipelines")).items():
            self._pipeline(name, _mapping(pipeline))
        self._extensions(_texts(service.get("extensions")))
        self._self_telemetry(service)
        self._storages(_texts(service.get("extensions")))
        if not any(problem.level is Level.REFERENCES for problem in self._document.problems):
            self._ends_of_connectors()  # else one that is missing may be what was misspelt
        return [
            self._unused(section, i) for section in SECTIONS for i in self._ids[section] if i not in self._used[section]
        ]

    def _ends_of_connectors(self) -> None:
        for identity in sorted(self._used["connectors"]):
            for role, other in (("exporters", "receivers"), ("receivers", "exporters")):
                if identity not in self._roles[role]:
                    remedy = f"name it in the {role} of a {_WHICH[role]} pipeline"
                    message = f"used as one of the {other}, but in no pipeline as one of the {role}; {remedy}"
                    self._document.problem(("connectors", identity), message, at_key=True)

    def _extensions(self, identities: Sequence[str]) -> None:
        for index, identity in enumerate(identities):
            path = ("service", "extensions", index)
            earlier = [other for other in identities[:index] if type_of(other) == type_of(identity)]
            if identity in earlier:
                self._document.problem(path, f"found {identity!r} twice; name it once")
            elif earlier and type_of(identity) in _SINGLE:
                message = f"found a second {type_of(identity)}; one speaks for the whole agent: leave one out"
                self._document.problem(path, message)
            self._follow(identity, path, ("extensions",), "the list of extensions")

    def _self_telemetry(self, service: Mapping[str, Any]) -> None:
        telemetry = _mapping(service.get("telemetry"))
        carriers = [identity for identity in self._ids["exporters"] if type_of(identity) in SELF_TELEMETRY_CARRIERS]
        for what in ("logs", "metrics"):
            name = _mapping(telemetry.get(what)).get("exporter")
            if isinstance(name, str) and name not in {SELF_TELEMETRY_OFF, *carriers}:
                path = ("service", "telemetry", what, "exporter")
                wanted, hint = " or ".join(SELF_TELEMETRY_CARRIERS), nearest(name, [*carriers, SELF_TELEMETRY_OFF])
                self._document.problem(path, f"found {name!r}, expected the id of an {wanted}{hint}")

    def _storages(self, running: Sequence[str]) -> None:
        """Follow every option `storage`, of a component or of its queue."""
        known = [identity for identity in self._ids["extensions"] if type_of(identity) == STORAGE]
        for section in SECTIONS:
            for identity, options in _mapping(self._root.get(section)).items():
                for within in ((), ("sending_queue",)):
                    found = _mapping(options)
                    for key in within:
                        found = _mapping(found.get(key))
                    name = found.get("storage")
                    path = (section, identity, *within, "storage")
                    if not isinstance(name, str) or (name in running and name in known):
                        continue
                    if name in known:
                        message = f"found {name!r}, which does not run: name it in service.extensions, too"
                    else:
                        hint = nearest(name, known) or f"; add `{STORAGE}:` there, and name it in service.extensions"
                        message = f"found {name!r}, expected the id of a {STORAGE} under extensions{hint}"
                    self._document.problem(path, message)

    def _pipeline(self, name: str, pipeline: Mapping[str, Any]) -> None:
        path: KeyPath = ("service", "pipelines", name)
        kind = type_of(name)
        if kind not in PIPELINE_KINDS:
            hint = nearest(kind, list(PIPELINE_KINDS))
            self._document.problem(path, f"unknown kind of pipeline{hint}", at_key=True)
            return
        for role, sections in _ROLES[SIGNALS if kind == SIGNALS else "telemetry"].items():
            identities = _texts(pipeline.get(role))
            for index, identity in enumerate(identities):
                if identity in identities[:index]:
                    message = f"found {identity!r} twice, which would get everything twice; name it once"
                    self._document.problem((*path, role, index), message)
                place = (*path, role, index)
                section = self._follow(identity, place, sections, f"a {kind} pipeline")
                if section == "connectors":
                    self._roles[role].add(identity)
                elif section == "receivers":
                    self._begins(identity, place, kind)
                elif section == "exporters":
                    self._ends(identity, place, kind)

    def _begins(self, identity: str, path: KeyPath, kind: str) -> None:
        receiver = RECEIVERS.get(type_of(identity))
        if receiver and kind not in receiver.begins:
            begins = " or ".join(receiver.begins)
            message = f"found {identity!r}, which begins a {begins} pipeline; {kind} begin at a connector: name that"
            self._document.problem(path, message)

    def _ends(self, identity: str, path: KeyPath, kind: str) -> None:
        exporter = EXPORTERS.get(type_of(identity))
        if exporter and kind not in exporter.ends:
            message = f"found {identity!r}, which takes {' and '.join(exporter.ends)} only"
            self._document.problem(path, message)

    def _follow(self, identity: str, path: KeyPath, sections: tuple[str, ...], taker: str) -> str | None:
        """Return the section that has the component, or None after noting why there is none."""
        for section in sections:
            if identity in self._ids[section]:
                self._used[section].add(identity)
                return section
        if identity in self._told:
            return None  # one cause, one message
        elsewhere = next((s for s in SECTIONS if identity in self._ids[s]), None)
        where = " or ".join(sections)
        if not sections:
            message = f"found {identity!r}, expected nothing: signals are correlated, and not processed; leave it out"
        elif elsewhere:
            message = f"found {identity!r}, which is one of the {elsewhere}; {taker} takes {where} here"
        else:
            message = f"found {identity!r}, which is not configured under {where}{self._add(identity, sections)}"
        self._document.problem(path, message)
        return None

    def _add(self, identity: str, sections: tuple[str, ...]) -> str:
        known = [other for section in sections for other in self._ids[section]]
        section = next((each for each in sections if type_of(identity) in SECTIONS[each]), None)
        return f"; add `{identity}:` under {section}" if section else nearest(identity, known)

    def _unused(self, section: str, identity: str) -> Problem:
        place = self._document.place((section, identity), at_key=True)
        message = "configured, but used in no pipeline; it will not run"
        return Problem(*place, f"{section}.{identity}", message, Level.REFERENCES)


_PROTOCOLS = {"http/protobuf": "otlp_http", "grpc": "otlp_grpc"}


def _apply_protocols(document: Document, environ: Mapping[str, str]) -> None:
    """Choose the exporter of each pipeline as `OTEL_EXPORTER_OTLP_PROTOCOL` and its variants for one signal say."""
    pipelines, used = document.root["service"]["pipelines"], set()
    for kind in Kind:
        names = (f"OTEL_EXPORTER_OTLP_{kind.upper()}_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
        variable = next((name for name in names if environ.get(name)), None)
        protocol = environ[variable] if variable else "http/protobuf"
        if exporter := _PROTOCOLS.get(protocol):
            pipelines[kind]["exporters"] = [exporter]
            if variable:
                document.origins["service", "pipelines", str(kind), "exporters"] = f"environment variable {variable}"
            used.add(exporter)
        else:
            message = f"found {protocol!r}, expected {' or '.join(_PROTOCOLS)}"
            document.problems.append(Problem(f"environment variable {variable}", 0, 0, "", message))
    document.root["exporters"] = dict.fromkeys(sorted(used or {"otlp_http"}))


METRIC_EXPORTERS = "STEM_METRIC_EXPORTERS"
_OTHER_METRIC_EXPORTERS = ("prometheus", "datadog", "console")


def _apply_metric_exporters(document: Document, environ: Mapping[str, str]) -> None:
    """Choose the exporters of the metrics pipeline as Stem's own variable does.

    A comma-separated list of `otlp`, `otlp:<url of metrics>`, `prometheus`, `datadog` and `console`; without it, or
    with nothing in it, they go where traces and logs go.
    """
    (otlp,) = document.root["service"]["pipelines"]["metrics"]["exporters"]
    exporters, chosen = document.root["exporters"], list[str]()
    entries = (part.strip() for part in environ.get(METRIC_EXPORTERS, "").split(","))
    for entry in dict.fromkeys(filter(None, entries)):
        name, colon, url = entry.partition(":")
        if name == "otlp" and bool(colon) is bool(url):
            # What has a path is OTLP over HTTP, whatever the others speak.
            kind = "otlp_http" if "/" in url.partition("://")[2].rstrip("/") else otlp
            count = sum(type_of(identity) == kind for identity in chosen)
            identity = f"{kind}/{count + 1}" if count else kind
            exporters[identity] = {**(exporters.get(identity) or {}), **({"metrics_endpoint": url} if url else {})}
            document.origins["exporters", identity, "metrics_endpoint"] = f"environment variable {METRIC_EXPORTERS}"
        elif entry in _OTHER_METRIC_EXPORTERS:
            identity = entry
            exporters[identity] = {}
        else:
            known = " or ".join((", ".join(("otlp", "otlp:<url>", *_OTHER_METRIC_EXPORTERS[:-1])), "console"))
            message = f"found {entry!r}, expected {known}"
            document.problems.append(Problem(f"environment variable {METRIC_EXPORTERS}", 0, 0, "", message))
            continue
        chosen.append(identity)
    if chosen:
        document.root["service"]["pipelines"]["metrics"]["exporters"] = chosen
        document.origins["service", "pipelines", "metrics", "exporters"] = f"environment variable {METRIC_EXPORTERS}"


def _left_out(environ: Mapping[str, str]) -> list[Problem]:
    """Warn of a variable that chooses what a file chooses, too: the file does."""
    if not environ.get(METRIC_EXPORTERS):
        return []
    message = "not used: with --config the file says where metrics go (service.pipelines.metrics.exporters)"
    return [Problem(f"environment variable {METRIC_EXPORTERS}", 0, 0, "", message)]


def _apply_tail(document: Document, environ: Mapping[str, str]) -> None:
    """Run `stem_tail` if somebody wants it: it costs reading every task, also of those who signal theirs."""
    wanted = environ.get("STEM_TAIL", "").strip().lower()
    if wanted in _YES:
        document.root["receivers"]["stem_tail"] = {}
        document.root["service"]["pipelines"]["signals"]["receivers"].append("stem_tail")
    elif wanted not in _NO:
        message = f"found {wanted!r}, expected on or off"
        document.problems.append(Problem("environment variable STEM_TAIL", 0, 0, "", message))


def _apply_health(document: Document, environ: Mapping[str, str]) -> None:
    """Run `health` if somebody says where: of several agents on one host only one can have the default port."""
    if environ.get("STEM_HEALTH_ENDPOINT"):
        document.root["extensions"]["health"] = {}
        document.root["service"]["extensions"].append("health")
