"""A JSON schema in the words of mlc_llm's grammar engine, which dies of some others and ignores the rest.

What it does was read in xgrammar d4f57c4, which mlc_llm builds in: a list of types, ``false``, a reference to
nowhere or a quote in a property's name end its thread; a schema that refers to itself overflows its
stack; lengths, ranges, patterns, ``allOf`` and ``oneOf`` it passes over with a warning that nobody sees. So
references are followed here, what has an equal in its words is put so, and the rest is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from inference.errors import InvalidSchemaError

MAX_NODES = 4000  # references that are followed can make a short schema long
_MAX_ITEMS = 64
_IGNORED = {
    "oneOf": "anyOf",
    "not": None,
    "if": None,
    "then": None,
    "else": None,
    "dependentRequired": None,
    "dependentSchemas": None,
    "minLength": "an enum",
    "maxLength": "an enum",
    "pattern": "an enum",
    "multipleOf": "an enum",
    "minimum": "an enum",
    "maximum": "an enum",
    "exclusiveMinimum": "an enum",
    "exclusiveMaximum": "an enum",
    "uniqueItems": None,
    "contains": None,
    "minContains": None,
    "maxContains": None,
    "patternProperties": "properties",
    "minProperties": "required",
    "maxProperties": "additionalProperties",
    "propertyNames": "properties",
    "unevaluatedItems": "items",
    "unevaluatedProperties": "additionalProperties",
    "$dynamicRef": "$ref",
}
# Always true, however the engine takes it.
_NEUTRAL = {"minLength": 0, "uniqueItems": False, "minProperties": 0, "minContains": 0}
_OBJECT = ("properties", "required", "additionalProperties")
_ARRAY = ("items", "prefixItems", "minItems", "maxItems")
_ALTERNATIVES = ("anyOf", "allOf", "enum", "const", "$ref")
_CONSTRAINTS = frozenset({"type", *_OBJECT, *_ARRAY, *_ALTERNATIVES})
_IS: dict[str, Callable[[Any], bool]] = {
    "object": lambda value: isinstance(value, Mapping),
    "array": lambda value: isinstance(value, list),
    "string": lambda value: isinstance(value, str),
    "integer": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "number": lambda value: isinstance(value, (int, float)) and not isinstance(value, bool),
    "boolean": lambda value: isinstance(value, bool),
    "null": lambda value: value is None,
}


def translate(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return a schema that mlc_llm enforces, every text of which *schema* allows; ``{}`` is any object.

    Raises:
        InvalidSchemaError: it is no schema, or asks for what the engine cannot; with the place.
    """
    if not schema:
        return {"type": "object", "additionalProperties": True}
    return _Translation(schema).node(schema, "schema", ())


class _Translation:
    """One schema on its way; *root* is what its references point into."""

    def __init__(self, root: Mapping[str, Any]) -> None:
        self._root = root
        self._nodes = 0

    def node(self, node: Any, at: str, trail: tuple[str, ...]) -> dict[str, Any]:
        """Return *node*, which is found *at* a place, by way of the references of *trail*."""
        self._nodes += 1
        if self._nodes > MAX_NODES:
            raise _error(f"{at}: more than {MAX_NODES} schemas, with all references followed")
        if node is True:
            return {}
        if not isinstance(node, Mapping):
            _expected(at, "a schema other than false", node)
        _check_enforced(node, at)
        for key in _ALTERNATIVES:
            if key in node:
                return self._alternative(key, node, at, trail)
        return self._typed(node, at, trail)

    def _alternative(
        self, key: str, node: Mapping[str, Any], at: str, trail: tuple[str, ...]
    ) -> dict[str, Any]:
        """Return what stands under *key*, beside which the engine looks at nothing else."""
        beside = {"type"} if key in ("enum", "const") else set()
        others = sorted((_CONSTRAINTS & set(node)) - {key} - beside)
        if others:
            raise _error(f"{at}: mlc_llm would pass over {others[0]!r} beside {key!r}")
        value = node[key]
        if key == "$ref":
            return self._reference(value, at, trail)
        if key == "const":
            return {"const": _of_type([value], node, at)[0]}
        if not isinstance(value, list) or not value:
            _expected(f"{at}.{key}", "a list with something in it", value)
        if key == "enum":
            return {"enum": _of_type(value, node, at)}
        if key == "allOf" and len(value) > 1:
            raise _error(f"{at}.allOf: mlc_llm takes one schema here, not {len(value)}")
        nodes = [self.node(one, f"{at}.{key}[{number}]", trail) for number, one in enumerate(value)]
        return {"anyOf": nodes} if key == "anyOf" else nodes[0]

    def _reference(self, target: Any, at: str, trail: tuple[str, ...]) -> dict[str, Any]:
        if not isinstance(target, str) or not target.startswith("#"):
            _expected(f"{at}.$ref", "a place in this schema", target)
        if target in trail or target == "#":
            raise _error(f"{at}.$ref: mlc_llm cannot follow a schema that refers to itself: {target!r}")
        found: Any = self._root
        for part in target[1:].split("/")[1:]:
            name = part.replace("~1", "/").replace("~0", "~")
            found = found.get(name) if isinstance(found, Mapping) else None
        if found is None:
            _expected(f"{at}.$ref", "a place in this schema", target)
        return self.node(found, at, (*trail, target))

    def _typed(self, node: Mapping[str, Any], at: str, trail: tuple[str, ...]) -> dict[str, Any]:
        kinds = _types(node, at)
        made = [self._of_kind(kind, node, at, trail) for kind in kinds]
        if not made:
            return {}
        return made[0] if len(made) == 1 else {"anyOf": made}

    def _of_kind(self, kind: str, node: Mapping[str, Any], at: str, trail: tuple[str, ...]) -> dict[str, Any]:
        if kind == "object":
            return self._object(node, at, trail)
        if kind == "array":
            return self._array(node, at, trail)
        return {"type": kind}

    def _object(self, node: Mapping[str, Any], at: str, trail: tuple[str, ...]) -> dict[str, Any]:
        given = node.get("properties", {})
        required = node.get("required", [])
        if not isinstance(given, Mapping):
            _expected(f"{at}.properties", "an object", given)
        if not isinstance(required, list) or not all(isinstance(name, str) for name in required):
            _expected(f"{at}.required", "a list of names", required)
        # A name that has no schema of its own would not be asked for.
        every = {**given, **{name: True for name in required if name not in given}}
        properties = {
            _checked_name(name, at): self.node(one, f"{at}.properties.{name}", trail)
            for name, one in every.items()
        }
        # The engine's own default is none, with which an object without properties could only be {}.
        others = node.get("additionalProperties", not properties)
        if others is not False:
            others = self.node(others, f"{at}.additionalProperties", trail) or True
        return {
            "type": "object",
            "properties": properties,
            "required": list(dict.fromkeys(required)),
            "additionalProperties": others,
        }

    def _array(self, node: Mapping[str, Any], at: str, trail: tuple[str, ...]) -> dict[str, Any]:
        first = node.get("prefixItems", [])
        if not isinstance(first, list):
            _expected(f"{at}.prefixItems", "a list of schemas", first)
        prefix = [self.node(one, f"{at}.prefixItems[{number}]", trail) for number, one in enumerate(first)]
        items = node.get("items", True)
        more = None if items is False else self.node(items, f"{at}.items", trail)
        least, most = _count(node, "minItems", at) or 0, _count(node, "maxItems", at)
        if more is None:
            most = min(len(prefix), len(prefix) if most is None else most)
        if most is None:
            return _list(_stretched(prefix, more, max(least, len(prefix))), more)
        if least > most or most > _MAX_ITEMS:
            _expected(f"{at}.maxItems", f"{least} to {_MAX_ITEMS}", most)
        shortest = min(max(least, len(prefix)), most) if prefix else least
        lists = [_list(_stretched(prefix, more, size), None) for size in range(shortest, most + 1)]
        self._nodes += sum(len(one.get("prefixItems", ())) for one in lists)
        return lists[0] if len(lists) == 1 else {"anyOf": lists}


def _list(prefix: list[dict[str, Any]], more: dict[str, Any] | None) -> dict[str, Any]:
    made: dict[str, Any] = {"type": "array", "items": False if more is None else more or True}
    return made | ({"prefixItems": prefix} if prefix else {})


def _stretched(prefix: list[dict[str, Any]], more: dict[str, Any] | None, size: int) -> list[dict[str, Any]]:
    return [*prefix[:size], *[more or {}] * (size - len(prefix))]


def _types(node: Mapping[str, Any], at: str) -> list[str]:
    """Return the types that *node* names, or the one that its other words are about."""
    if "type" not in node:
        about = {"object": _OBJECT, "array": _ARRAY}
        return [kind for kind, words in about.items() if any(word in node for word in words)][:1]
    kinds = node["type"] if isinstance(node["type"], list) else [node["type"]]
    wrong = [kind for kind in kinds if not isinstance(kind, str) or kind not in _IS]
    if wrong or not kinds:
        _expected(f"{at}.type", f"one of {', '.join(sorted(_IS))}", wrong[0] if wrong else kinds)
    return list(dict.fromkeys(kinds))


def _of_type(values: list[Any], node: Mapping[str, Any], at: str) -> list[Any]:
    kinds = _types({"type": node["type"]}, at) if "type" in node else list(_IS)
    kept = [value for value in values if any(_IS[kind](value) for kind in kinds)]
    if not kept:
        _expected(at, f"a value of type {' or '.join(kinds)}", values)
    return kept


def _check_enforced(node: Mapping[str, Any], at: str) -> None:
    for key in node:
        if key in _IGNORED and not (key in _NEUTRAL and node[key] == _NEUTRAL[key]):
            instead = _IGNORED[key]
            hint = f"use {instead}, or a llamacpp variant" if instead else "use a llamacpp variant"
            raise _error(f"{at}.{key}: mlc_llm cannot hold a text to it", hint)


def _checked_name(name: Any, at: str) -> str:
    if not isinstance(name, str) or not name.isprintable() or any(mark in name for mark in '"\\'):
        _expected(f"{at}.properties", "a name without quotes, backslashes and control characters", name)
    return str(name)


def _count(node: Mapping[str, Any], key: str, at: str) -> int | None:
    value = node.get(key)
    if value is not None and not (_IS["integer"](value) and 0 <= value <= _MAX_ITEMS):
        _expected(f"{at}.{key}", f"a count up to {_MAX_ITEMS}", value)
    return value


def _expected(at: str, wanted: str, found: Any) -> NoReturn:
    text = repr(found)
    raise _error(f"{at}: expected {wanted}, got {text[:80]}")


def _error(message: str, hint: str | None = None) -> InvalidSchemaError:
    return InvalidSchemaError(message, param="response_format", hint=hint)
