"""Evaluates an admission policy on a pod with Google's CEL, as the API server would.

That library knows types from Protocol Buffers only, and cannot have both a type `Object` and a type `Object.spec`. So
the typed literals of the API server are turned into map literals; that their types are paths in a pod is tested apart.
"""

import re
from copy import deepcopy
from typing import Any

import jsonpatch
from cel_expr_python import cel

from tests.helm.charts import Object

_TEXT = re.compile(r'("(?:\\.|[^"\\])*")')
_TYPED = re.compile(r"\b(?:JSONPatch|Object(?:\.\w+)+)\s*\{")
_FIELD = re.compile(r"\b(\w+): ")
_ENVIRONMENT = cel.NewEnv(variables={"object": cel.Type.DYN})


def _untyped(expression: str) -> str:
    parts = _TEXT.split(expression)
    parts[::2] = [_FIELD.sub(r'"\1": ', _TYPED.sub("{", part)) for part in parts[::2]]
    return "".join(parts)


def types(expression: str) -> set[str]:
    """Return the types of the objects that an expression makes: paths in the pod."""
    return {name.rstrip("{ ") for part in _TEXT.split(expression)[::2] for name in _TYPED.findall(part)} - {"JSONPatch"}


def evaluate(expression: str, pod: Object) -> Any:
    """Return an expression's value for a pod that is asked for; raises where it does not compile."""
    return _ENVIRONMENT.compile(_untyped(expression)).eval(data={"object": pod}).plain_value()


def admitted(policy: Object, pod: Object) -> Object:
    """Return the pod as it is made."""
    spec, pod = policy["spec"], deepcopy(pod)
    if not all(evaluate(each["expression"], pod) for each in spec["matchConditions"]):
        return pod
    for mutation in spec["mutations"]:
        assert mutation["patchType"] == "JSONPatch"
        patch = evaluate(mutation["jsonPatch"]["expression"], pod)
        pod = jsonpatch.apply_patch(pod, patch)
    return pod
