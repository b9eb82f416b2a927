"""From plain values to a configuration model, with errors that name the place, the found, the expected, the nearest."""

import difflib
from collections.abc import Mapping
from typing import Any, TypeVar, get_args, get_origin

from pydantic import BaseModel, SecretStr, ValidationError
from pydantic_core import ErrorDetails

from agent.settings.document import Document, Path, dotted
from agent.settings.model import Env
from agent.settings.substitution import without_defaults
from agent.settings.types import EXPECTED

Model = TypeVar("Model", bound=BaseModel)

_HIDDEN = "a value (not shown: it may be secret)"
_WANTED = {
    "int_parsing": "a whole number",
    "int_type": "a whole number",
    "float_parsing": "a number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
    "list_type": "a list",
    "tuple_type": "a list",
    "is_instance_of": "text",
    "missing": "a value",
}


def validate(
    model: type[Model], found: Any, path: Path, document: Document, environ: Mapping[str, str]
) -> Model | None:
    """Return `found` as `model`, or None after noting every problem in the document.

    Fields that the YAML leaves out are filled from their environment variables (`Env`) first. An empty key
    (`otlp_http:`) means all defaults.
    """
    values = _from_environment(model, {} if found is None else found, path, document, environ)
    try:
        return model.model_validate(values)
    except ValidationError as error:
        for detail in error.errors(include_url=False):
            _note(detail, model, path, document)
        return None


def nearest(word: str, known: list[str]) -> str:
    """Return the end of an error: the nearest known word, and all of them where they are few."""
    match = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    hint = f"; did you mean {match[0]!r}?" if match else ""
    return f"{hint or ';'} known here: {', '.join(sorted(known))}" if known else hint


def _from_environment(
    model: type[BaseModel],
    found: Any,
    path: Path,
    document: Document,
    environ: Mapping[str, str],
    component: tuple[Any, Path] | None = None,
) -> Any:
    if not isinstance(found, Mapping):
        return found
    component = component or (found, path)
    values = dict(found)
    for name, info in model.model_fields.items():
        here = (*path, name)
        nested = info.annotation
        if isinstance(nested, type) and issubclass(nested, BaseModel):
            filled = _from_environment(nested, values.get(name) or {}, here, document, environ, component)
            if filled or name in values:
                values[name] = filled
            continue
        env = next((mark for mark in info.metadata if isinstance(mark, Env)), None)
        key = str(here[len(component[1])])
        if env is None or name in values or not (hit := env.find(environ, key)):
            continue
        if env.unless and _is_settled(env.unless, component, document):
            continue
        variable, text = hit
        document.origins[here] = f"environment variable {variable}"
        is_list = get_origin(nested) is tuple or any(get_origin(arg) is tuple for arg in get_args(nested))
        values[name] = tuple(part.strip() for part in text.split(",") if part.strip()) if is_list else text
    return values


def _is_settled(option: str, component: tuple[Any, Path], document: Document) -> bool:
    """Tell whether an option of the component was given in the YAML, or by a `STEM_*` variable."""
    found, path = component
    where = option.split(".")
    if " STEM_" in document.origins.get((*path, *where), ""):
        return True
    for part in where:
        if not isinstance(found, Mapping) or part not in found:
            return False
        found = found[part]
    return True


def _note(detail: ErrorDetails, model: type[BaseModel], path: Path, document: Document) -> None:
    where = (*path, *detail["loc"])
    if any(problem.path == dotted(where) for problem in document.problems):
        return  # one cause, one message
    kind = detail["type"]
    if kind == "extra_forbidden":
        known = _keys_at(model, detail["loc"][:-1])
        document.problem(where, f"unknown key{nearest(str(detail['loc'][-1]), known)}", at_key=True)
    elif kind == "missing":
        document.problem(where, "required, but missing")
    else:
        secret = SecretStr in _parts(_annotation_at(model, detail["loc"]))
        found = _shown(detail["input"], where, document, secret=secret)
        document.problem(where, f"found {found}, expected {_wanted(detail)}")


def _wanted(detail: ErrorDetails) -> str:
    kind, context = detail["type"], detail.get("ctx", {})
    if kind == EXPECTED:
        return str(context["what"])
    if kind == "literal_error":
        return str(context["expected"]).replace("'", "")
    if kind in _WANTED:
        return _WANTED[kind]
    message = detail["msg"]
    return message.removeprefix("Input should be ").removeprefix("Value error, ")


def _shown(value: Any, where: Path, document: Document, *, secret: bool) -> str:
    """Show what was found without showing a secret: references stay references, URLs lose their credentials."""
    if where in document.raw and not _hides(raw := without_defaults(document.raw[where])):
        return f"{raw!r} (as substituted)"
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, list | tuple):
        return "a list"
    if value is None:
        return "nothing"
    text = str(value)
    # Variables are where secrets are, a header is a secret as a whole.
    hidden = secret or where in document.origins or where in document.raw or "headers" in where or _hides(text)
    return _HIDDEN if hidden else repr(text)


def _hides(text: str) -> bool:
    """Tell whether a text may have a secret in it: a malformed URL may have its password anywhere."""
    return any(mark in text for mark in ("@", "//:", "?"))


def _keys_at(model: type[BaseModel], loc: tuple[str | int, ...]) -> list[str]:
    models = [part for part in _parts(_annotation_at(model, loc)) if issubclass(part, BaseModel)]
    return list(models[0].model_fields) if models else []


def _annotation_at(model: type[BaseModel], loc: tuple[str | int, ...]) -> Any:
    """Return the type of the option at `loc`, as it is annotated; None where there is none."""
    current: Any = model
    for part in loc:
        fields = next((each.model_fields for each in _parts(current) if issubclass(each, BaseModel)), {})
        info = fields.get(str(part))
        current = info.annotation if info else None
    return current


def _parts(annotation: Any) -> list[type]:
    """Return the types that an annotation such as `str | None` is made of."""
    if isinstance(annotation, type) and not get_args(annotation):
        return [annotation]
    return [part for each in get_args(annotation) for part in _parts(each)]
