"""From plain values to a configuration model, with errors that name the place, the found, the expected, the nearest."""

from collections.abc import Mapping
from typing import Any, TypeVar, get_args, get_origin

from pydantic import BaseModel, SecretStr, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from agent.settings.document import Document, Path, dotted
from agent.settings.hints import instead_of_key, match, models_in, parts
from agent.settings.model import Env
from agent.settings.substitution import without_defaults
from agent.settings.types import EXPECTED
from agent.settings.writing import written

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
    "too_short": "at least one",
    "string_too_short": "text that is not empty",
}
_NO_MAPPING = frozenset({"model_type", "model_attributes_type"})
_MOST_OPTIONS = 8
"""Named where somebody has to be told what options there are."""
_BOUNDS = {"gt": "more than", "ge": "at least", "lt": "less than", "le": "at most"}


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
        above = models_in(_annotation_at(model, detail["loc"][:-1]))[0]
        document.problem(where, f"unknown key{instead_of_key(str(detail['loc'][-1]), above)}", at_key=True)
        return
    info = _field_at(model, detail["loc"])
    if kind == "missing":
        about = f" ({info.description})" if info and info.description else ""
        document.problem(where, f"required, but missing: give it a value{about}")
        return
    secret = info is not None and SecretStr in parts(info.annotation)
    value = _written(document.root, where, detail["input"])
    found = _shown(value, where, document, secret=secret)
    options = [name for each in models_in(_annotation_at(model, detail["loc"])) for name in each.model_fields]
    hint = _of_options(options) if kind in _NO_MAPPING else _hint(value, kind, found, info)
    document.problem(where, f"found {found}, expected {_wanted(detail, info)}{hint}")


def _wanted(detail: ErrorDetails, info: FieldInfo | None) -> str:
    kind, context = detail["type"], detail.get("ctx", {})
    if kind == EXPECTED:
        return str(context["what"])
    if kind == "literal_error":
        return str(context["expected"]).replace("'", "")
    if kind in _WANTED:
        return _WANTED[kind]
    for sign, words in _BOUNDS.items():
        if sign in context:
            bound = written(info, context[sign]) if info else context[sign]
            return f"{words} {bound:g}" if isinstance(bound, float) else f"{words} {bound}"
    message = detail["msg"]
    return message.removeprefix("Input should be ").removeprefix("Value error, ")


def _of_options(options: list[str]) -> str:
    more = ", ..." if len(options) > _MOST_OPTIONS else ""
    return f" of its options: {', '.join(options[:_MOST_OPTIONS])}{more}"


def _hint(value: Any, kind: str, found: str, info: FieldInfo | None) -> str:
    """Return an example, or what was meant, where there is one."""
    if value is None:
        return "; give it a value, or leave the key out"
    is_shown = found == repr(value)
    if kind in {"list_type", "tuple_type"}:
        return f" such as [{value}]" if is_shown else ""
    if kind == "dict_type":
        return " such as {name: value}"
    choices = [choice for choice in get_args(info.annotation) if isinstance(choice, str)] if info else []
    meant = match(str(value), choices) if kind == "literal_error" and is_shown else None
    return f"; did you mean {meant!r}?" if meant else ""


def _written(root: Any, where: Path, value: Any) -> Any:
    """Return what stands in the document at a path, which the model may have turned into something else."""
    for part in where:
        try:
            root = root[part]
        except (KeyError, IndexError, TypeError):
            return value
    return root


def _shown(value: Any, where: Path, document: Document, *, secret: bool) -> str:
    """Show what was found without showing a secret: references stay references, URLs lose their credentials."""
    if where in document.raw and not _hides(raw := without_defaults(document.raw[where])):
        return f"{raw!r} (as substituted)"
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, list | tuple):
        return "a list" if value else "an empty list"
    if value is None:
        return "nothing"
    text = str(value)
    # Variables are where secrets are, a header is a secret as a whole.
    hidden = secret or where in document.origins or where in document.raw or "headers" in where or _hides(text)
    return _HIDDEN if hidden else repr(text)


def _hides(text: str) -> bool:
    """Tell whether a text may have a secret in it: a malformed URL may have its password anywhere."""
    return any(mark in text for mark in ("@", "//:", "?"))


def _annotation_at(model: type[BaseModel], loc: tuple[str | int, ...]) -> Any:
    """Return the type of the option at `loc`, as it is annotated; None where there is none."""
    if not loc:
        return model
    info = _field_at(model, loc)
    return info.annotation if info else None


def _field_at(model: type[BaseModel], loc: tuple[str | int, ...]) -> FieldInfo | None:
    """Return the option at `loc`, or the mapping or list of which something is wrong there."""
    current: Any = model
    info: FieldInfo | None = None
    for part in loc:
        fields = next((each.model_fields for each in models_in(current)), {})
        info = fields.get(str(part), info)
        current = info.annotation if info else None
    return info
