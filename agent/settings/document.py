"""A YAML file as plain values with their places: every scalar is text, every key and value knows its line and column.

ruamel.yaml's composer keeps the positions; its constructors, which guess types, are not used.
"""

from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from agent.core.errors import ConfigError, Level, Problem
from agent.settings.yaml_errors import explained

Path = tuple[str | int, ...]
_MERGE = "<<"
_NULLS = {"", "~", "null", "Null", "NULL"}


class Place(NamedTuple):
    """Where something is written; line and column count from 1, and are 0 where there are none: in a flag."""

    file: str
    line: int = 0
    column: int = 0

    def __str__(self) -> str:
        return f"{self.file}:{self.line}" if self.line else self.file


@dataclass(slots=True)
class Document:
    """The values of one file, or of several merged; where they stand, and what was found wrong while reading.

    `keys` and `values` map a path to the place of the key and of the value; `raw` maps the paths of substituted scalars
    to the text in the file, so that a message can show the reference and not the secret behind it, and `filled` to
    where the substitutes came from, in words; `origins` has the paths that a variable filled, with its name in words.
    """

    file: str
    root: Any = None
    keys: dict[Path, Place] = field(default_factory=dict)
    values: dict[Path, Place] = field(default_factory=dict)
    raw: dict[Path, str] = field(default_factory=dict)
    filled: dict[Path, tuple[str, ...]] = field(default_factory=dict)
    origins: dict[Path, str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    warnings: list[Problem] = field(default_factory=list)
    level: Level = Level.SYNTAX

    def problem(self, path: Path, message: str, *, at_key: bool = False) -> None:
        """Note a problem at the value, or the key, of `path`; at the nearest parent if the path is not in the file."""
        place = self.source(path, at_key=at_key)
        told = any((known.file, known.message) == (place.file, message) for known in self.problems)
        if path in self.origins and told:
            return  # a variable fills options of several components: one cause, one message
        self.problems.append(Problem(*place, dotted(path), message, self.level))

    def source(self, path: Path, *, at_key: bool = False) -> Place:
        """Return where `path` comes from: a variable that filled it, else its place."""
        return Place(self.origins[path]) if path in self.origins else self.place(path, at_key=at_key)

    def place(self, path: Path, *, at_key: bool = False) -> Place:
        """Return where the value, or the key, of `path` is; that of the nearest parent if it is not in the file."""
        where, places = path, self.keys if at_key else self.values
        while where and where not in places:
            where, places = where[:-1], self.keys if len(where) > 1 else self.values
        return places.get(where, Place(self.file, 1, 1))


def dotted(path: Path) -> str:
    """Return a path as people write it: `exporters.otlp_http.headers`, `receivers[0]`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def compose(text: str, file: str, *, under: Path = ()) -> Document:
    """Parse `text`; nothing is substituted yet. A flag has no lines: it is said `under` which path its value belongs.

    Raises `ConfigError` where the text is not YAML; everything else is noted in the document.
    """
    document = Document(file)
    yaml = YAML(typ="safe", pure=True)
    yaml.allow_duplicate_keys = True  # noticed below, with both lines
    try:
        node = yaml.compose(text)
        document.root = _Reader(document, flag=bool(under)).value(node, under) if node else None
    except RecursionError:
        raise _not_yaml(Place(file) if under else Place(file, 1, 1), "nested too deeply") from None
    except MarkedYAMLError as error:
        mark, reason = explained(error)
        line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
        raise _not_yaml(Place(file) if under else Place(file, line, column), reason) from None
    except YAMLError as error:
        raise _not_yaml(Place(file) if under else Place(file, 1, 1), str(error).splitlines()[0]) from None
    return document


def _not_yaml(place: Place, reason: str) -> ConfigError:
    return ConfigError([Problem(*place, "", f"not valid YAML: {reason}")])


class _Reader:
    def __init__(self, document: Document, *, flag: bool) -> None:
        self._document = document
        self._flag = flag
        self._open: set[int] = set()

    def value(self, node: Node, path: Path) -> Any:
        self._document.values[path] = self._place(node)
        if id(node) in self._open:
            self._document.problem(path, "the alias refers to the very thing it is in")
            return None
        self._open.add(id(node))
        try:
            return self._typed(node, path)
        finally:
            self._open.discard(id(node))

    def _place(self, node: Node) -> Place:
        mark = node.start_mark
        file = self._document.file
        return Place(file) if self._flag else Place(file, mark.line + 1, mark.column + 1)

    def _typed(self, node: Node, path: Path) -> Any:
        if isinstance(node, MappingNode):
            return self._mapping(node, path)
        if isinstance(node, SequenceNode):
            return [self.value(item, (*path, index)) for index, item in enumerate(node.value)]
        return _scalar(cast("ScalarNode", node))

    def _mapping(self, node: MappingNode, path: Path) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = str(key_node.value)
            here = (*path, key)
            place = self._place(key_node)
            if key in result:
                first = self._document.keys[here].line
                message = f"duplicate key{f'; first given in line {first}' if first else ''}; keep one of them"
                self._document.problems.append(Problem(*place, dotted(here), message))
                continue
            self._document.keys[here] = place
            result[key] = self.value(value_node, here)
            if result[key] is None:
                self._document.values[here] = place  # a value that is not there stands where the next thing does
            if key == _MERGE:
                message = "YAML's merge keys are not read; write the options out, or give them as a file of their own"
                self._document.problems.append(Problem(*place, dotted(here), message))
        return result


def _scalar(node: ScalarNode) -> str | None:
    text = str(node.value)
    return None if node.style is None and text in _NULLS else text
