"""Several sources of one configuration: files, and `--set KEY=VALUE`.

As the Collector merges them (koanf): the later one wins, mappings are merged deep, everything else is replaced whole;
so a key without a value takes back what was said below it.
"""

from typing import Any

from agent.core.errors import ConfigError, Problem
from agent.settings.document import Document, Path, Place, compose

FLAG = "--set"


def merge(base: Document, over: Document) -> None:
    """Put `over` on top of `base`, places included."""
    base.problems += over.problems
    if isinstance(over.root, dict):
        base.root = {} if base.root is None else base.root
        if isinstance(base.root, dict):
            _merge(base, over, base.root, over.root, ())
    elif over.root is not None:
        over.problem((), "found no mapping, expected keys such as receivers, exporters and service")
        base.problems.append(over.problems[-1])


def _merge(base: Document, over: Document, old: dict[str, Any], new: dict[str, Any], path: Path) -> None:
    for key, value in new.items():
        here = (*path, key)
        known = old.get(key)
        if isinstance(value, dict) and isinstance(known, dict):
            _merge(base, over, known, value, here)
        else:
            old[key] = value
            _adopt(base, over, here)


def _adopt(base: Document, over: Document, path: Path) -> None:
    """Take over where everything at and below `path` stands."""
    for places, new in ((base.keys, over.keys), (base.values, over.values)):
        _forget(places, path)
        places.update({where: place for where, place in new.items() if where[: len(path)] == path})
    _forget(base.origins, path)


def _forget(places: dict[Path, Any], path: Path) -> None:
    for where in [where for where in places if where[: len(path)] == path]:
        del places[where]


def assignment(text: str) -> Document:
    """Return what `--set KEY=VALUE` says as a document: dots lead into mappings, the value is YAML.

    Its places name the flag, and never the value, which may be secret.
    """
    key, equals, value = text.partition("=")
    parts = tuple(key.split("."))
    document = Document(f"{FLAG} {key}")
    if not equals or not all(parts):
        wanted = "expected KEY=VALUE with dots in the key, such as receivers.stem_signals.namespace=shop"
        document.problems.append(Problem(FLAG, 0, 0, "", f"found {key!r}, {wanted}"))
        return document
    try:
        document = compose(value, document.file, under=parts)
    except ConfigError as error:
        document.problems.extend(error.problems)
        return document
    for depth in range(len(parts), 0, -1):
        document.root = {parts[depth - 1]: document.root}
        document.keys[parts[:depth]] = document.values[parts[:depth]] = Place(document.file)
    return document
