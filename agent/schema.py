"""The JSON Schema (2020-12) of a whole configuration, made from the models: `python -m agent.schema [--check|--write]`.

Editors check a file against it while it is written. It knows every key, type and choice; what refers to what, and
what stands in variables, only `stem-agent validate` knows.
"""

import json
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic.json_schema import GenerateJsonSchema, models_json_schema
from pydantic_core import PydanticUndefined, core_schema

from agent.configuration import PIPELINE_KINDS, PipelineConfig, ServiceConfig
from agent.registry import SECTIONS
from agent.settings.model import Env
from agent.settings.writing import written

FILE = Path(__file__).parents[1] / "config" / "schema.json"
_REFERENCE = {"$ref": "#/$defs/reference"}
_TEXT = ["string", "number", "boolean"]
"""An unquoted `0123` or `yes` is text to the agent, and something else to an editor."""
_NAMED = "(/[^\\s/]+)?"
_SCALARS = frozenset({"string", "integer", "number", "boolean"})
_Schema = dict[str, Any]


def schema() -> _Schema:
    """Return the schema, in plain types."""
    models = [component.config for types in SECTIONS.values() for component in types.values()]
    models += [ServiceConfig, PipelineConfig]
    refs, told = models_json_schema(
        [(model, "validation") for model in models],
        ref_template="#/$defs/{model}",
        schema_generator=_Generator,
    )
    ref = {model: found for (model, _), found in refs.items()}
    definitions = {name: _substitutable(found) for name, found in sorted(told["$defs"].items())}
    service = definitions[ref[ServiceConfig]["$ref"].rpartition("/")[2]]
    pipelines = service["properties"]["pipelines"]
    del pipelines["additionalProperties"]
    pipelines |= _keyed(dict.fromkeys(PIPELINE_KINDS, ref[PipelineConfig]))
    sections = {
        section: {
            "description": f"{section} by id: `type` or `type/name`",
            "type": ["object", "null"],
            **_keyed({name: ref[component.config] for name, component in types.items()}),
        }
        for section, types in SECTIONS.items()
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "stem-agent",
        "description": "The configuration of stem-agent. Made from its code by `make format`.",
        "type": "object",
        "properties": {**sections, "service": ref[ServiceConfig]},
        "additionalProperties": False,
        "required": ["service"],
        "$defs": {
            **definitions,
            "reference": {
                "description": "a variable: ${env:NAME}, or ${env:NAME:-default}",
                "type": "string",
                "pattern": r"\$\{[^}]+\}",
            },
        },
    }


def text() -> str:
    """Return the schema as the file has it."""
    return json.dumps(schema(), indent=1, ensure_ascii=False) + "\n"


def _keyed(types: Mapping[str, _Schema]) -> _Schema:
    patterns = {f"^{re.escape(name)}{_NAMED}$": ref for name, ref in types.items()}
    return {"patternProperties": patterns, "additionalProperties": False}


class _Generator(GenerateJsonSchema):
    """Tells defaults as they are written, and which variables fill an option."""

    def model_schema(self, schema: core_schema.ModelSchema) -> _Schema:
        """Return the schema of a model; a key without a value is one with all defaults."""
        told = super().model_schema(schema)
        model: type[BaseModel] = schema["cls"]
        for name, info in model.model_fields.items():
            _describe(told["properties"][name], info)
        return {**told, "type": ["object", "null"]}

    def field_title_should_be_set(self, schema: Any) -> bool:
        """Leave titles out: they would only repeat the keys."""
        del schema
        return False


def _describe(told: _Schema, info: FieldInfo) -> None:
    told.pop("default", None)
    value = info.get_default(call_default_factory=True, validated_data={})
    if value not in (PydanticUndefined, None, (), {}) and not isinstance(value, BaseModel):
        told["default"] = written(info, value)
    variables = [name for mark in info.metadata if isinstance(mark, Env) for name in mark.names]
    if variables:
        names = ", ".join(name.replace("{}", "<SIGNAL>") for name in variables)
        told["description"] = f"{told.get('description', '')} (variable {names})"


def _substitutable(model: _Schema) -> _Schema:
    """Allow a variable wherever a scalar, or a mapping of scalars, may stand."""
    told = {key: value for key, value in model.items() if key != "title"}
    if "properties" in told:
        told["properties"] = {name: _option(found) for name, found in told["properties"].items()}
    return told


def _option(found: _Schema) -> _Schema:
    """Return the schema of one option, with what describes it at the top."""
    about: _Schema = {key: found[key] for key in ("description", "default") if key in found}
    if "$ref" in found or "allOf" in found:
        return found
    alternatives = list(_alternatives(found))
    if len(alternatives) == 1:
        return {**about, **alternatives[0]}
    return {**about, "anyOf": alternatives}


def _alternatives(found: _Schema) -> Iterator[_Schema]:
    """Yield what may stand there: each type, and a variable unless text of any kind may."""
    shapes = [_shape(each) for each in _leaves(found)]
    yield from shapes
    is_text = any(shape.get("type") == _TEXT for shape in shapes)
    if not is_text and any(_is_scalar(shape) or _is_map(shape) for shape in shapes):
        yield _REFERENCE


def _leaves(found: _Schema) -> Iterator[_Schema]:
    if "anyOf" in found:
        for each in found["anyOf"]:
            yield from _leaves(each)
    else:
        yield found


def _is_scalar(shape: _Schema) -> bool:
    return shape.get("type") in _SCALARS or "const" in shape or "enum" in shape


def _is_map(shape: _Schema) -> bool:
    return "additionalProperties" in shape and "$ref" not in shape["additionalProperties"]


def _shape(found: _Schema) -> _Schema:
    told = {key: value for key, value in found.items() if key not in _ABOUT}
    if told.get("type") == "array":
        told["items"] = _option(told["items"])
    elif isinstance(told.get("additionalProperties"), dict):
        told["additionalProperties"] = _option(told["additionalProperties"])
    elif told.get("type") == "string" and not told.keys() & {"enum", "const", "pattern"}:
        told["type"] = _TEXT
    return told


_ABOUT = frozenset({"title", "description", "default", "format", "writeOnly", "gt", "ge", "lt", "le"})


if __name__ == "__main__":
    if "--write" in sys.argv:
        FILE.write_text(text(), encoding="utf-8")
    elif "--check" not in sys.argv:
        sys.stdout.write(text())
    elif not FILE.exists() or FILE.read_text(encoding="utf-8") != text():
        sys.exit("config/schema.json differs from the models; make format writes it anew")
