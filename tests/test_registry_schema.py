"""The JSON schema of models.json: shipped, current, closed, and true.

After a change of the registry's types: ``python -m tests.test_registry_schema`` writes it anew.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from inference.registry import Status, registry_schema

ROOT = Path(__file__).parent.parent
SCHEMA_FILE = ROOT / "models.schema.json"
SIX_KEYS = ["name", "parameters", "memory_requirement", "container", "status", "use_cases"]
_WORDS = {"$defs", "$ref", "$schema", "default", "description", "discriminator", "propertyNames", "title"}
_SHAPES = {
    "additionalProperties",
    "anyOf",
    "items",
    "oneOf",
    "patternProperties",
    "properties",
    "required",
    "type",
}
_TYPES: dict[str, Callable[[Any], bool]] = {
    "object": lambda value: isinstance(value, dict),
    "array": lambda value: isinstance(value, list),
    "string": lambda value: isinstance(value, str),
    "null": lambda value: value is None,
    "boolean": lambda value: isinstance(value, bool),
    "integer": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "number": lambda value: isinstance(value, int | float) and not isinstance(value, bool),
}
_LIMITS: dict[str, Callable[[Any, Any], bool]] = {
    "minimum": lambda value, limit: value >= limit,
    "maximum": lambda value, limit: value <= limit,
    "exclusiveMinimum": lambda value, limit: value > limit,
    "minLength": lambda value, limit: len(value) >= limit,
    "maxLength": lambda value, limit: len(value) <= limit,
    "minItems": lambda value, limit: len(value) >= limit,
    "maxItems": lambda value, limit: len(value) <= limit,
    "pattern": lambda value, limit: re.search(limit, value) is not None,
    "enum": lambda value, limit: value in limit,
    "const": lambda value, limit: value == limit,
}


def schema_text() -> str:
    """What models.schema.json should hold."""
    return json.dumps(registry_schema(), indent=2) + "\n"


def violations(value: Any, node: dict[str, Any], schema: dict[str, Any], path: str = "$") -> Iterator[str]:
    """Where *value* breaks the schema; a reading of JSON Schema that owes nothing to pydantic."""
    if "$ref" in node:
        yield from violations(value, schema["$defs"][node["$ref"].rsplit("/", 1)[1]], schema, path)
    for word, count in (("anyOf", (1, 2, 3)), ("oneOf", (1,))):
        options = node.get(word)
        if options and sum(not list(violations(value, o, schema, path)) for o in options) not in count:
            yield f"{path}: {word}"
    if "type" in node and not _TYPES[node["type"]](value):
        yield f"{path}: type"
        return
    for word, holds in _LIMITS.items():
        if word in node and not holds(value, node[word]):
            yield f"{path}: {word}"
    if isinstance(value, list):
        for index, item in enumerate(value):
            yield from violations(item, node.get("items", {}), schema, f"{path}[{index}]")
    if isinstance(value, dict):
        yield from _object_violations(value, node, schema, path)
    unread = set(node) - _WORDS - _SHAPES - set(_LIMITS)
    assert not unread, unread


def _object_violations(
    value: dict[str, Any], node: dict[str, Any], schema: dict[str, Any], path: str
) -> Iterator[str]:
    yield from (f"{path}.{key}: required" for key in node.get("required", ()) if key not in value)
    for key, item in value.items():
        children = [node["properties"][key]] if key in node.get("properties", {}) else []
        children += [c for p, c in node.get("patternProperties", {}).items() if re.search(p, key)]
        if not children and node.get("additionalProperties") is False:
            yield f"{path}.{key}: additionalProperties"
        for child in children:
            yield from violations(item, child, schema, f"{path}.{key}")


def objects(node: Any) -> Iterator[dict[str, Any]]:
    """Every schema of an object inside *node*."""
    if isinstance(node, dict):
        if node.get("type") == "object":
            yield node
        for child in node.values():
            yield from objects(child)
    elif isinstance(node, list):
        for child in node:
            yield from objects(child)


def test_the_shipped_schema_is_current() -> None:
    """models.schema.json is what the types say; see this file's docstring when it is not."""
    assert SCHEMA_FILE.read_text(encoding="utf-8") == schema_text()


def test_the_shipped_registry_keeps_the_schema() -> None:
    """models.json has no key, type or value that the shipped schema does not allow."""
    schema = json.loads(SCHEMA_FILE.read_text(encoding="utf-8"))
    registry = json.loads((ROOT / "models.json").read_text(encoding="utf-8"))
    assert list(violations(registry, schema, schema)) == []


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"alias": []}, "$.models.gpt2.alias: additionalProperties"),
        ({"status": "good"}, "$.models.gpt2.status: enum"),
        ({"memory_requirement": "1 GB"}, "$.models.gpt2.memory_requirement: type"),
        ({"memory_requirement": 0}, "$.models.gpt2.memory_requirement: exclusiveMinimum"),
        ({"use_cases": []}, "$.models.gpt2.use_cases: minItems"),
        ({"variants": {"a b": {}}}, "$.models.gpt2.variants.a b: additionalProperties"),
        ({"variants": {"a": {}}}, "$.models.gpt2.variants.a.backend: required"),
        ({"variants": {"a": {"backend": "vllm"}}}, "$.models.gpt2.variants.a.backend: enum"),
        (
            {"variants": {"a": {"backend": "mlc", "source": {"type": "hub"}}}},
            "$.models.gpt2.variants.a.source: anyOf",
        ),
    ],
)
def test_the_schema_refuses(change: dict[str, Any], where: str) -> None:
    """An editor that knows the schema marks what load_registry would refuse."""
    schema = registry_schema()
    registry = json.loads((ROOT / "models.json").read_text(encoding="utf-8"))
    changed = copy.deepcopy(registry)
    changed["models"]["gpt2"].update(change)
    assert list(violations(changed, schema, schema)) == [where]


def test_every_object_of_the_schema_is_closed() -> None:
    """No level takes a key that it does not know."""
    found = list(objects(registry_schema()))
    assert len(found) > 10
    assert [node for node in found if node.get("additionalProperties") is not False] == []


def test_the_schema_asks_for_the_guides_keys_only() -> None:
    """The six keys of the original form are required, and nothing else is."""
    schema = registry_schema()
    assert schema["$defs"]["ModelSpec"]["required"] == SIX_KEYS
    assert schema["properties"].keys() == {"models", "$schema"}
    assert schema["required"] == ["models"]
    assert schema["$defs"]["Status"]["enum"] == [status.value for status in Status]


def test_every_key_has_a_meaning_and_words_for_its_errors() -> None:
    """A title that is more than the key again, and a rule to complete "expected ..."."""
    schema = registry_schema()
    for owner, definition in {**schema["$defs"], "file": schema}.items():
        for key, node in definition.get("properties", {}).items():
            assert node["title"].lower().replace(" ", "_") != key, f"{owner}.{key}"
            options = [node, *node.get("anyOf", [])]
            assert any("description" in each or "const" in each for each in options), f"{owner}.{key}"


if __name__ == "__main__":
    SCHEMA_FILE.write_text(schema_text(), encoding="utf-8")
