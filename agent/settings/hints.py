"""What to do about a mistake: the ends of messages. Pure."""

import difflib
from collections.abc import Iterator, Sequence
from typing import Any, get_args

from pydantic import BaseModel

_CUTOFF = 0.6


def match(word: str, known: Sequence[str]) -> str | None:
    """Return the known word that was most likely meant, if there is one; case, `-` and `_` do not count."""
    plain = {_plain(each): each for each in known}
    found = difflib.get_close_matches(_plain(word), plain, n=1, cutoff=_CUTOFF)
    return plain[found[0]] if found else None


def _plain(word: str) -> str:
    return word.lower().replace("-", "_")


def nearest(word: str, known: Sequence[str]) -> str:
    """Return the end of a message: the word that was meant, or else all that there are."""
    if meant := match(word, known):
        return f"; did you mean {meant!r}?"
    return f"; known here: {', '.join(sorted(known))}" if known else ""


def instead_of_key(key: str, model: type[BaseModel]) -> str:
    """Return what to do about a key that a mapping does not know: it is misspelt, or belongs further down."""
    known = list(model.model_fields)
    return (not match(key, known) and further_down(key, model)) or nearest(key, known)


def further_down(key: str, model: type[BaseModel]) -> str:
    """Return the end of a message: where below a model there is such a key; empty where there is none."""
    found = list(_below(model, key, ()))
    paths = [".".join(path) for path in found if len(path) == min(map(len, found))]
    return f"; did you mean {' or '.join(map(repr, paths))}?" if paths else ""


def _below(model: type[BaseModel], key: str, path: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    for name, info in model.model_fields.items():
        for nested in models_in(info.annotation):
            if key in nested.model_fields:
                yield (*path, name, key)
            yield from _below(nested, key, (*path, name))


def parts(annotation: Any) -> list[type]:
    """Return the types that an annotation such as `str | None` is made of."""
    if isinstance(annotation, type) and not get_args(annotation):
        return [annotation]
    return [part for each in get_args(annotation) for part in parts(each)]


def models_in(annotation: Any) -> list[type[BaseModel]]:
    """Return the models among those types."""
    return [part for part in parts(annotation) if issubclass(part, BaseModel)]
