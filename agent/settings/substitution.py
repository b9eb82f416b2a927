"""Variables in a configuration: `${env:NAME}`, `${env:NAME:-default}`, `${NAME}`; `$$` is a dollar sign.

Only scalar leaves are substituted, and once: a value can neither add structure nor refer to another variable.
"""

import re
from collections.abc import Mapping
from typing import Any

from agent.settings.document import Document, Path, compose

_REFERENCE = re.compile(r"\$\$|\$\{(?:env:)?([^}:]*)(?::-([^}]*))?\}|\$\{([^}]*)\}")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,199}")

_FILE = "${file:"
"""How the Collector reads a file."""


def read(text: str, file: str, environ: Mapping[str, str]) -> Document:
    """Parse `text` and substitute its variables; raises `ConfigError` where it is not YAML."""
    document = compose(text, file)
    substitute(document, environ)
    return document


def substitute(document: Document, environ: Mapping[str, str]) -> None:
    """Put the variables' values into the document; what cannot be is noted as a problem."""
    document.root = _Substitution(document, environ).value(document.root, ())


def without_defaults(text: str) -> str:
    """Return what stands in a file with the references in it as names alone: a default may be a secret."""
    return _REFERENCE.sub(lambda match: f"${{env:{match[1]}}}" if match[1] else match[0], text)


class _Substitution:
    def __init__(self, document: Document, environ: Mapping[str, str]) -> None:
        self._document = document
        self._environ = environ
        self._filled: list[str] = []

    def value(self, found: Any, path: Path) -> Any:
        if isinstance(found, dict):
            return {key: self.value(value, (*path, key)) for key, value in found.items()}
        if isinstance(found, list):
            return [self.value(value, (*path, index)) for index, value in enumerate(found)]
        # What a variable filled is not of the file: a dollar sign in it is one.
        if isinstance(found, str) and "$" in found and path not in self._document.origins:
            return self._text(found, path)
        return found

    def _text(self, text: str, path: Path) -> str:
        self._filled = []
        substituted = _REFERENCE.sub(lambda match: self._substitute(match, path), text)
        if substituted != text:
            self._document.raw[path] = text
            self._document.filled[path] = tuple(dict.fromkeys(self._filled))
        return substituted

    def _substitute(self, match: re.Match[str], path: Path) -> str:
        if match[0] == "$$":
            return "$"
        name, default, other = match[1], match[2], match[3]
        if other is not None or not _NAME.fullmatch(name):
            forms = "${env:NAME} or ${env:NAME:-default} ($$ for a dollar sign)"
            files = "; the content of a file: `name: {file: PATH}`, in headers" if match[0].startswith(_FILE) else ""
            self._document.problem(path, f"found {match[0]!r}, expected {forms}{files}")
            return ""
        # The default also serves a variable that is set but empty, as the OpenTelemetry data model says.
        if value := self._environ.get(name):
            self._filled.append(f"environment variable {name}")
            return value
        if default is not None:
            self._filled.append(f"default of ${{env:{name}}}")
            return default
        state = "empty" if name in self._environ else "not set"
        self._document.problem(
            path,
            f"environment variable {name} is {state} and has no default; set it, or write ${{env:{name}:-default}}",
        )
        return ""
