"""Bounds of a JSON schema that a client sends to constrain the text."""

from __future__ import annotations

import json
from typing import Any, NoReturn

from inference.errors import InvalidSchemaError

# Engines have crashed on, or silently ignored, schemas beyond sizes like these.
MAX_SCHEMA_BYTES = 64 * 1024
MAX_DEPTH = 32
MAX_NODES = 2000
MAX_PATTERN_CHARACTERS = 512


def check_schema(schema: dict[str, Any], param: str) -> dict[str, Any]:
    """Return *schema* when an engine may be asked to compile it.

    Raises:
        InvalidSchemaError: it is too large, too deep, has too many nodes, too long a pattern, or
            refers to something outside itself.
    """
    size_bytes = len(json.dumps(schema).encode())
    if size_bytes > MAX_SCHEMA_BYTES:
        _refuse(param, f"{size_bytes} bytes; expected at most {MAX_SCHEMA_BYTES}")
    nodes = 0
    level: list[Any] = [schema]
    for _ in range(MAX_DEPTH):
        nodes += len(level)
        if nodes > MAX_NODES:
            _refuse(param, f"more than {MAX_NODES} nodes")
        for node in level:
            if isinstance(node, dict):
                _check_object(node, param)
        level = [child for node in level for child in _children(node)]
        if not level:
            return schema
    _refuse(param, f"deeper than {MAX_DEPTH} levels")


def _children(node: Any) -> list[Any]:
    if isinstance(node, dict):
        return list(node.values())
    return node if isinstance(node, list) else []


def _check_object(node: dict[str, Any], param: str) -> None:
    patterns = [node.get("pattern"), *_keys(node.get("patternProperties"))]
    if any(isinstance(text, str) and len(text) > MAX_PATTERN_CHARACTERS for text in patterns):
        _refuse(param, f"a pattern longer than {MAX_PATTERN_CHARACTERS} characters")
    target = node.get("$ref")
    if isinstance(target, str) and not target.startswith("#"):
        _refuse(param, "a $ref to another document; expected one that starts with '#'")


def _keys(value: Any) -> list[Any]:
    return list(value) if isinstance(value, dict) else []


def _refuse(param: str, problem: str) -> NoReturn:
    raise InvalidSchemaError(f"{param}: {problem}", param=param, hint="send a smaller or simpler schema")
