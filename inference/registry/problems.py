"""Problems of a models.json in words: the path, what was expected, what was found."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from typing import Any

from pydantic import ValidationError

from inference.registry.sources import SOURCE_TYPES
from inference.registry.spec import NAME_RULE
from inference.registry.strict_json import Loc

_MAX_SHOWN = 60
NOTHING = object()


def problems(error: ValidationError, schema: dict[str, Any]) -> Iterator[tuple[Loc, str]]:
    """Say what each item of *error* means, in the words of the schema's descriptions."""
    for item in error.errors(include_url=False, include_context=False):
        kind, found = item["type"], item["input"]
        loc, description, siblings = _follow(schema, item["loc"])
        if kind == "extra_forbidden":
            yield loc, unknown_key(str(loc[-1]), siblings)
        elif kind == "value_error":
            got = "" if isinstance(found, dict) else f", got {shown(found)}"
            yield loc, item["msg"].removeprefix("Value error, ") + got
        elif kind.startswith("union_tag"):
            yield (*loc, "type"), f"expected {SOURCE_TYPES}, got {shown(found.get('type', NOTHING))}"
        else:
            yield loc, f"expected {description}, got {shown(NOTHING if kind == 'missing' else found)}"


def unknown_key(key: str, known: Iterable[str]) -> str:
    """Say that *key* is unknown and which known one may have been meant."""
    return f"unknown key{meant(key, known)}"


def meant(name: str, known: Iterable[str]) -> str:
    """Return the end of an error: which known name may have been meant, or nothing."""
    close = difflib.get_close_matches(name[:100], list(known), n=1)
    return f"; did you mean {shown(close[0])}?" if close else ""


def shown(value: Any) -> str:
    """Return *value* as an error shows it, short."""
    if value is NOTHING:
        return "nothing"
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "a list"
    words = {None: "null", True: "true", False: "false"}
    text = words[value] if value is None or isinstance(value, bool) else ascii(value)
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."


def dotted(loc: Loc) -> str:
    """Return a place as text: ``models.gpt2.aliases[0]``."""
    parts = (f"[{step}]" if isinstance(step, int) else f".{_printable(step)}" for step in loc)
    return "".join(parts).removeprefix(".")


def _printable(key: str) -> str:
    return key if key and key.isprintable() and len(key) <= 100 else shown(key)


def _follow(schema: dict[str, Any], steps: Loc) -> tuple[Loc, str, list[str]]:
    """Walk *steps* of a pydantic error through the schema.

    Returns:
        the place without pydantic's own steps, its description, the keys that its parent may have.
    """
    node, parent, loc = schema, schema, list[str | int]()
    for step in steps:
        if step == "[key]":
            return tuple(loc), NAME_RULE, []
        parent = _resolved(schema, node)
        if "oneOf" in parent:  # pydantic names the chosen member of a union as a step of its own
            node = {"$ref": parent["discriminator"]["mapping"][step]}
            continue
        loc.append(step)
        node = _child(parent, step)
    return tuple(loc), _description(node), list(parent.get("properties", ()))


def _resolved(schema: dict[str, Any], node: dict[str, Any]) -> dict[str, Any]:
    while "$ref" in node or "anyOf" in node:
        ref = node.get("$ref")
        node = schema["$defs"][ref.rsplit("/", 1)[1]] if ref else node["anyOf"][0]
    return node


def _child(node: dict[str, Any], step: str | int) -> dict[str, Any]:
    if isinstance(step, int):
        return dict(node.get("items", {}))
    if step in node.get("properties", {}):
        return dict(node["properties"][step])
    others = [*node.get("patternProperties", {}).values(), node.get("additionalProperties")]
    return next((dict(other) for other in others if isinstance(other, dict)), {})


def _description(node: dict[str, Any]) -> str:
    for place in (node, *node.get("anyOf", ())):
        if "description" in place:
            return str(place["description"])
        if "const" in place:
            return repr(place["const"])
    return "an object"
