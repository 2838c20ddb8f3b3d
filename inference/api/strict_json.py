"""Strict JSON: what a request body must be before anything reads it."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from typing import Any, NoReturn

from inference.api.errors import InvalidJSONError

MAX_DEPTH = 64
_MAX_INTEGER_DIGITS = 20
# The closing quote may be missing: the parser says so, and this stays linear either way.
_STRING = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*(?:"|\\?\Z)', re.DOTALL)
_BRACKET = re.compile(r"[\[\]{}]")
_DUBIOUS_ESCAPE = re.compile(r"\\u(?:0000|[dD][89a-fA-F])")


def parse_object(body: bytes) -> dict[str, Any]:
    """Parse *body* as one JSON object.

    Refused beyond what RFC 8259 refuses: other encodings than UTF-8, more than 64 levels, duplicate
    keys, NaN and Infinity, numbers that no 64-bit type holds, lone surrogates, NUL characters.

    Raises:
        InvalidJSONError: with the position where there is one, never with the content.
    """
    if not body:
        _refuse("the request body is empty; expected a JSON object")
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        _refuse(f"the request body is not UTF-8 at byte {error.start}")
    _check_depth(text)
    try:
        value = json.loads(
            text,
            parse_constant=_constant,
            parse_float=_float,
            parse_int=_integer,
            object_pairs_hook=_object,
        )
    except json.JSONDecodeError as error:
        reason = f"{error.msg[0].lower()}{error.msg[1:]}"
        _refuse(f"the request body is not JSON: {reason} at line {error.lineno} column {error.colno}")
    if _DUBIOUS_ESCAPE.search(text):
        _check_strings(value)
    if not isinstance(value, dict):
        _refuse(f"the request body is a JSON {_kind(value)}; expected an object")
    return value


def depth_exceeds(text: str, limit: int) -> bool:
    """Whether brackets outside strings nest deeper than *limit*, found without building anything."""
    if text.count("[") + text.count("{") <= limit:
        return False
    depth = 0
    for bracket in _BRACKET.findall(_STRING.sub("", text)):
        depth += 1 if bracket in "[{" else -1
        if depth > limit:
            return True
    return False


def _check_depth(text: str) -> None:
    if depth_exceeds(text, MAX_DEPTH):
        _refuse(f"the request body nests deeper than {MAX_DEPTH} levels")


def _constant(name: str) -> NoReturn:
    _refuse(f"the request body holds {name}; expected finite numbers")


def _float(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        _refuse("the request body holds a number that is too large")
    return value


def _integer(digits: str) -> int:
    if len(digits) > _MAX_INTEGER_DIGITS:
        _refuse(f"the request body holds an integer of {len(digits)} digits")
    return int(digits)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        _refuse(f"the request body holds the key {twice[:64]!r} twice in one object")
    return found


def _check_strings(value: Any) -> None:
    if isinstance(value, str):
        if "\0" in value:
            _refuse("the request body holds a NUL character")
        if not value.isascii() and any("\ud800" <= char <= "\udfff" for char in value):
            _refuse("the request body holds half of a surrogate pair")
    elif isinstance(value, list):
        for item in value:
            _check_strings(item)
    elif isinstance(value, dict):
        for key, item in value.items():
            _check_strings(key)
            _check_strings(item)


def _kind(value: Any) -> str:
    names = {list: "array", str: "string", bool: "boolean", type(None): "null"}
    return names.get(type(value), "number")


def _refuse(message: str) -> NoReturn:
    raise InvalidJSONError(message, hint="send one UTF-8 JSON object; docs/api.md lists the fields") from None
