"""A checked configuration as YAML without its secrets, with the origin of each value in a comment behind it. Pure.

But for the secrets, what is printed is the same configuration when it is read again.
"""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from pydantic import BaseModel

from agent.configuration import AgentConfig
from agent.core.masking import Masker
from agent.settings.document import Document, Path
from agent.settings.writing import plain, written

# What YAML takes for plain text, with a margin; everything else is quoted.
_PLAIN = re.compile(r"[A-Za-z0-9/_](?:[A-Za-z0-9/_.@%+:-]*[A-Za-z0-9/_.@%+-])?")
_NULLS = frozenset({"null", "Null", "NULL"})
_WIDEST = 60
"""Characters; the origin of a value that is longer stands right behind it."""


class _Line(NamedTuple):
    text: str
    origin: str = ""


def printed(config: AgentConfig, document: Document) -> str:
    """Return the text; `document` is what the configuration was made of."""
    printer = _Printer(document, config.mask)
    lines: list[_Line] = []
    for section, components in config.components.items():
        if components:
            lines += [_Line(f"{section}:"), *printer.mapping(components, (section,))]
    lines += [_Line("service:"), *printer.model(config.service, ("service",))]
    width = min(_WIDEST, max(len(line.text) for line in lines if line.origin))
    shown = (f"{line.text:{width}}  # {line.origin}" if line.origin else line.text for line in lines)
    return config.mask("".join(f"{line}\n" for line in shown))


class _Printer:
    def __init__(self, document: Document, mask: Masker) -> None:
        self._document = document
        self._mask = mask

    def model(self, model: BaseModel, path: Path) -> Iterator[_Line]:
        for name, info in type(model).model_fields.items():
            value, here = getattr(model, name), (*path, name)
            is_nested = isinstance(value, BaseModel) or _holds_models(value)
            yield from self._entry(here, value if is_nested else written(info, value))

    def mapping(self, values: Mapping[str, Any], path: Path) -> Iterator[_Line]:
        for key, value in values.items():
            yield from self._entry((*path, key), value if isinstance(value, BaseModel) else plain(value))

    def _entry(self, path: Path, value: Any) -> Iterator[_Line]:
        key = f"{'  ' * (len(path) - 1)}{self._text(str(path[-1]))}:"
        if isinstance(value, BaseModel):
            yield _Line(key)
            yield from self.model(value, path)
        elif isinstance(value, Mapping) and value:
            yield _Line(key)
            yield from self.mapping(value, path)
        else:
            yield _Line(f"{key} {self._value(value)}", self._origin(path))

    def _value(self, value: Any) -> str:
        if isinstance(value, list):
            return f"[{', '.join(map(self._value, value))}]"
        return self._text(value) if isinstance(value, str) else json.dumps(value)

    def _text(self, text: str) -> str:
        shown = self._mask(text).replace("$", "$$")
        is_plain = _PLAIN.fullmatch(shown) and shown not in _NULLS
        return shown if is_plain else json.dumps(shown, ensure_ascii=False)

    def _origin(self, path: Path) -> str:
        document = self._document
        if path in document.origins:
            return document.origins[path]
        if path not in document.values:
            # Variables fill whole mappings, too: the headers.
            parent = path[:-1]
            return document.origins.get(parent, "default")
        place = str(document.values[path])
        return ", ".join((place, *document.filled.get(path, ())))


def _holds_models(value: Any) -> bool:
    return isinstance(value, Mapping) and any(isinstance(each, BaseModel) for each in value.values())
