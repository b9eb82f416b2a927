"""A YAML file as plain values with their places: every scalar is text, every key and value knows its line and column.

ruamel.yaml's composer keeps the positions; its constructors, which guess types, are not used.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from agent.core.errors import ConfigError, Problem

Path = tuple[str | int, ...]
_NULLS = {"", "~", "null", "Null", "NULL"}
# ${env:NAME}, ${env:NAME:-default}, ${NAME}; $$ is a dollar sign.
_REFERENCE = re.compile(r"\$\$|\$\{(?:env:)?([^}:]*)(?::-([^}]*))?\}|\$\{([^}]*)\}")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,199}")


@dataclass(slots=True)
class Document:
    """The values of a file, where they stand, and what was found wrong while reading.

    `keys` and `values` map a path to line and column, counted from 1; `raw` maps the paths of substituted scalars
    to the text in the file, so that a message can show the reference and not the secret behind it.
    """

    file: str
    root: Any = None
    keys: dict[Path, tuple[int, int]] = field(default_factory=dict)
    values: dict[Path, tuple[int, int]] = field(default_factory=dict)
    raw: dict[Path, str] = field(default_factory=dict)
    origins: dict[Path, str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def problem(self, path: Path, message: str, *, at_key: bool = False) -> None:
        """Note a problem at the value, or the key, of `path`; at the nearest parent if the path is not in the file."""
        if path in self.origins:
            self.problems.append(Problem(self.origins[path], 0, 0, dotted(path), message))
            return
        where, places = path, self.keys if at_key else self.values
        while where and where not in places:
            where, places = where[:-1], self.keys if len(where) > 1 else self.values
        line, column = places.get(where, (1, 1))
        self.problems.append(Problem(self.file, line, column, dotted(path), message))


def dotted(path: Path) -> str:
    """Return a path as people write it: `exporters.otlp_http.headers`, `receivers[0]`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def read(text: str, file: str, environ: Mapping[str, str]) -> Document:
    """Parse `text` and substitute variables in its scalar leaves, once.

    Raises `ConfigError` where the text is not YAML; everything else is noted in the document.
    """
    document = Document(file)
    yaml = YAML(typ="safe", pure=True)
    yaml.allow_duplicate_keys = True  # noticed below, with both lines
    try:
        node = yaml.compose(text)
        document.root = _Reader(document, environ).value(node, ()) if node else None
    except RecursionError:
        raise ConfigError([Problem(file, 1, 1, "", "not valid YAML: nested too deeply")]) from None
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
        raise ConfigError([Problem(file, line, column, "", f"not valid YAML: {error.problem}")]) from None
    except YAMLError as error:
        first_line = str(error).splitlines()[0]
        raise ConfigError([Problem(file, 1, 1, "", f"not valid YAML: {first_line}")]) from None
    return document


class _Reader:
    def __init__(self, document: Document, environ: Mapping[str, str]) -> None:
        self._document = document
        self._environ = environ
        self._open: set[int] = set()

    def value(self, node: Node, path: Path) -> Any:
        mark = node.start_mark
        self._document.values[path] = (mark.line + 1, mark.column + 1)
        if id(node) in self._open:
            self._document.problem(path, "the alias refers to the very thing it is in")
            return None
        self._open.add(id(node))
        try:
            return self._typed(node, path)
        finally:
            self._open.discard(id(node))

    def _typed(self, node: Node, path: Path) -> Any:
        if isinstance(node, MappingNode):
            return self._mapping(node, path)
        if isinstance(node, SequenceNode):
            return [self.value(item, (*path, index)) for index, item in enumerate(node.value)]
        return self._scalar(cast("ScalarNode", node), path)

    def _mapping(self, node: MappingNode, path: Path) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = str(key_node.value)
            here = (*path, key)
            place = (key_node.start_mark.line + 1, key_node.start_mark.column + 1)
            if key in result:
                message = f"duplicate key; first given in line {self._document.keys[here][0]}"
                self._document.problems.append(Problem(self._document.file, *place, dotted(here), message))
                continue
            self._document.keys[here] = place
            result[key] = self.value(value_node, here)
        return result

    def _scalar(self, node: ScalarNode, path: Path) -> str | None:
        text = str(node.value)
        if node.style is None and text in _NULLS:
            return None
        if "$" not in text:
            return text
        substituted = _REFERENCE.sub(lambda match: self._substitute(match, path), text)
        if substituted != text:
            self._document.raw[path] = text
        return substituted

    def _substitute(self, match: re.Match[str], path: Path) -> str:
        if match[0] == "$$":
            return "$"
        name, default, other = match[1], match[2], match[3]
        if other is not None or not _NAME.fullmatch(name):
            self._document.problem(
                path, f"found {match[0]!r}, expected ${{env:NAME}} or ${{env:NAME:-default}} ($$ for a dollar sign)"
            )
            return ""
        # The default also serves a variable that is set but empty, as the OpenTelemetry data model says.
        if value := self._environ.get(name):
            return value
        if default is not None:
            return default
        state = "empty" if name in self._environ else "not set"
        self._document.problem(
            path,
            f"environment variable {name} is {state} and has no default; set it, or write ${{env:{name}:-default}}",
        )
        return ""
