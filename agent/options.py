"""The README's table of options, made from the configuration models: `python -m agent.options [--check|--write]`."""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import NoneType
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from agent.configuration import ServiceConfig
from agent.registry import SECTIONS
from agent.settings.model import Env
from agent.settings.writing import written

README = Path(__file__).parents[1] / "README.md"


def tables() -> str:
    """Return one table per component, and one for `service`."""
    parts = []
    for section, types in SECTIONS.items():
        for name, component in types.items():
            parts.append(_table(f"`{section}: {name}`", component.config))
    parts.append(_table("`service`", ServiceConfig))
    return "\n".join(parts)


def _table(title: str, model: type[BaseModel]) -> str:
    purpose = (model.__doc__ or "").splitlines()[0]
    rows = "\n".join(f"| {' | '.join(row)} |" for row in _rows(model, ""))
    return f"{title}: {purpose}\n\n| option | default | variable | meaning |\n| --- | --- | --- | --- |\n{rows}\n"


def _rows(model: type[BaseModel], prefix: str, key: str = "") -> Iterator[tuple[str, str, str, str]]:
    for names, info in _alike(model).items():
        nested = info.annotation
        name = "{" + ",".join(names) + "}" if len(names) > 1 else names[0]
        if isinstance(nested, type) and issubclass(nested, BaseModel):
            yield from _rows(nested, f"{prefix}{name}.", key or name.upper())
            continue
        env = next((mark for mark in info.metadata if isinstance(mark, Env)), None)
        variables = ", ".join(f"`{variable.format(key)}`" for variable in env.names) if env else ""
        meaning = (info.description or "").replace("|", "\\|")
        yield f"`{prefix}{name}`", _default(info), variables, meaning + _choices(info)


def _alike(model: type[BaseModel]) -> dict[tuple[str, ...], FieldInfo]:
    """Return the fields; those whose options are the very same, as the signals' are, go together."""
    together: dict[Any, list[str]] = {}
    for name, info in model.model_fields.items():
        nested = info.annotation
        same = isinstance(nested, type) and issubclass(nested, BaseModel)
        together.setdefault(nested if same else name, []).append(name)
    return {tuple(names): model.model_fields[names[0]] for names in together.values()}


def _default(info: FieldInfo) -> str:
    value: Any = info.get_default(call_default_factory=True, validated_data={})
    if value is PydanticUndefined:
        return "required"
    if value in (None, (), {}):
        return ""
    return f"`{str(value).lower() if isinstance(value, bool) else written(info, value)}`"


def _choices(info: FieldInfo) -> str:
    choices = [choice for choice in get_args(info.annotation) if isinstance(choice, str)]
    is_choice = choices and NoneType not in get_args(info.annotation)
    return f" ({', '.join(f'`{choice}`' for choice in choices)})" if is_choice else ""


def keep(name: str, text: str, arguments: Sequence[str]) -> None:
    """Print a generated text, or with `--write` put it into the README, or with `--check` fail if that differs.

    Its place is between the comments `<!-- {name}: ... -->` and `<!-- {name} end -->`.
    """
    readme = README.read_text(encoding="utf-8")
    head, begin, rest = readme.partition(f"<!-- {name}: ")
    comment, _, rest = rest.partition("\n")
    _, end, tail = rest.partition(f"<!-- {name} end -->")
    updated = f"{head}{begin}{comment}\n{text}{end}{tail}"
    if "--write" in arguments:
        README.write_text(updated, encoding="utf-8")
    elif "--check" not in arguments:
        sys.stdout.write(text)
    elif updated != readme:
        sys.exit(f"what README.md has between `<!-- {name}` marks differs; make format writes it anew")


if __name__ == "__main__":
    keep("options", tables(), sys.argv[1:])
