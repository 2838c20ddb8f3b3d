"""`inference.backends._mlc_schema`: schemas in the words that mlc_llm's grammar engine has."""

from __future__ import annotations

from typing import Any

import pytest

from inference.backends._mlc_schema import MAX_NODES, translate
from inference.errors import InvalidSchemaError
from tests.fake_mlc.mlc_llm.serve.model import instance_of

ANY_OBJECT = {"type": "object", "additionalProperties": True}


def an_object(properties: dict[str, Any], required: list[str], others: Any = False) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": others,
    }


@pytest.mark.parametrize(
    ("schema", "wanted"),
    [
        ({}, ANY_OBJECT),
        ({"type": "string", "title": "x", "format": "date", "x-mine": 1}, {"type": "string"}),
        ({"type": ["integer", "null"]}, {"anyOf": [{"type": "integer"}, {"type": "null"}]}),
        ({"const": None}, {"const": None}),
        ({"type": "integer", "enum": [1, "a", 2]}, {"enum": [1, 2]}),
        ({"allOf": [{"type": "null"}]}, {"type": "null"}),
        ({"anyOf": [{"type": "null"}, True]}, {"anyOf": [{"type": "null"}, {}]}),
        ({"type": "object"}, an_object({}, [], True)),
        ({"required": ["a"]}, an_object({"a": {}}, ["a"])),
        ({"properties": {"a": True}}, an_object({"a": {}}, [])),
        ({"type": "object", "additionalProperties": {"type": "null"}}, an_object({}, [], {"type": "null"})),
        (
            {"$ref": "#/definitions/a~1b", "definitions": {"a/b": {"type": "boolean"}}},
            {"type": "boolean"},
        ),
        (
            {
                "properties": {"a": {"$ref": "#/$defs/n"}, "b": {"$ref": "#/$defs/n"}},
                "$defs": {"n": {"const": 1}},
            },
            an_object({"a": {"const": 1}, "b": {"const": 1}}, []),
        ),
        ({"type": "array"}, {"type": "array", "items": True}),
        ({"items": {"type": "null"}}, {"type": "array", "items": {"type": "null"}}),
        ({"type": "array", "items": False}, {"type": "array", "items": False}),
        ({"type": "array", "maxItems": 0}, {"type": "array", "items": False}),
        (
            {"type": "array", "minItems": 1, "items": {"type": "null"}},
            {"type": "array", "items": {"type": "null"}, "prefixItems": [{"type": "null"}]},
        ),
        (
            {"type": "array", "minItems": 1, "maxItems": 2},
            {
                "anyOf": [
                    {"type": "array", "items": False, "prefixItems": [{}]},
                    {"type": "array", "items": False, "prefixItems": [{}, {}]},
                ]
            },
        ),
        ({"type": "string", "minLength": 0}, {"type": "string"}),
        ({"type": "array", "uniqueItems": False}, {"type": "array", "items": True}),
    ],
)
def test_what_has_an_equal_is_put_so(schema: dict[str, Any], wanted: dict[str, Any]) -> None:
    """The engine knows one type at a time, no references and its own default of no further properties."""
    assert translate(schema) == wanted


def nested(depth: int) -> dict[str, Any]:
    """A schema whose references, all followed, are 2 ** depth."""
    levels = {f"l{n}": {"properties": {x: {"$ref": f"#/$defs/l{n + 1}"} for x in "ab"}} for n in range(depth)}
    return {"$ref": "#/$defs/l0", "$defs": {**levels, f"l{depth}": {"type": "null"}}}


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"type": "strange"}, "schema.type: expected one of array, boolean"),
        ({"type": []}, "schema.type"),
        ({"type": ["null", 3]}, "schema.type"),
        ({"properties": {"a": False}}, r"schema.properties.a: expected a schema other than false, got False"),
        ({"properties": []}, "schema.properties: expected an object"),
        ({"required": "a"}, "schema.required: expected a list of names"),
        ({"properties": {'a"b': {}}}, "without quotes"),
        ({"properties": {"a\\b": {}}}, "without quotes"),
        ({"properties": {"a\n": {}}}, "without quotes"),
        ({"items": 3}, "schema.items: expected a schema"),
        ({"prefixItems": {}}, "schema.prefixItems: expected a list"),
        ({"minItems": -1, "type": "array"}, "schema.minItems: expected a count"),
        ({"minItems": True, "type": "array"}, "schema.minItems: expected a count"),
        ({"minItems": 3, "maxItems": 2}, "schema.maxItems"),
        ({"maxItems": 65}, "schema.maxItems: expected a count up to 64"),
        ({"enum": []}, "schema.enum: expected a list with something in it"),
        ({"type": "null", "enum": [1]}, "a value of type null"),
        ({"type": "null", "const": 1}, "a value of type null"),
        ({"anyOf": {}}, "schema.anyOf: expected a list"),
        ({"allOf": [{}, {}]}, "takes one schema here, not 2"),
        ({"type": "object", "anyOf": [{"required": ["a"]}]}, "pass over 'type' beside 'anyOf'"),
        ({"$ref": "#/$defs/a", "type": "null", "$defs": {"a": {}}}, r"pass over 'type' beside '\$ref'"),
        ({"$ref": "#/$defs/none"}, r"schema.\$ref: expected a place in this schema"),
        ({"$ref": "http://x/y"}, r"schema.\$ref: expected a place in this schema"),
        ({"$ref": 3}, r"schema.\$ref: expected a place"),
        ({"properties": {"me": {"$ref": "#"}}}, "refers to itself"),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"items": {"$ref": "#/$defs/a"}}}}, "refers to itself"),
        ({"type": "string", "pattern": "^a+$"}, "schema.pattern: mlc_llm cannot hold a text to it"),
        ({"type": "string", "maxLength": 3}, "schema.maxLength"),
        ({"properties": {"a": {"type": "integer", "minimum": 0}}}, "schema.properties.a.minimum"),
        ({"oneOf": [{}]}, "schema.oneOf"),
        ({"not": {}}, "schema.not"),
        ({"type": "array", "uniqueItems": True}, "schema.uniqueItems"),
        (nested(12), f"more than {MAX_NODES} schemas"),
    ],
)
def test_what_would_kill_the_engine_or_be_passed_over_is_refused(schema: dict[str, Any], words: str) -> None:
    """With the place and what would do; a text that does not keep to its schema is worse than none."""
    with pytest.raises(InvalidSchemaError, match=words) as caught:
        translate(schema)
    assert caught.value.param == "response_format"


@pytest.mark.parametrize(
    "schema",
    [
        {"type": ["integer", "null"]},
        {"$ref": "#/$defs/a", "$defs": {"a": {"type": "null"}}},
        {"properties": {'"': {}}, "type": "object"},
    ],
)
def test_the_fake_dies_of_what_the_real_engine_dies_of(schema: dict[str, Any]) -> None:
    """Else the tests above would prove nothing."""
    with pytest.raises((RuntimeError, RecursionError)):
        instance_of(schema)
