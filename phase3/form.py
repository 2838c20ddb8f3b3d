"""The JSON form of frozen dataclasses: writing, strict reading, and the JSON schema, all from the types."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, TypeVar, Union

T = TypeVar("T")
_NAMES = {str: "a string", int: "an integer", float: "a number", bool: "true or false", type(None): "null"}
_SCHEMAS = {str: "string", int: "integer", float: "number", bool: "boolean", type(None): "null"}
_SHOWN_CHARS = 60


class FormError(Exception):
    """A JSON value is not what the type wants; the message names the path and both."""


def encode(value: Any, path: str = "$") -> Any:
    """Return *value* as JSON values.

    Raises:
        ValueError: a number in it is not finite: unknown is None, never NaN.
    """
    if dataclasses.is_dataclass(value):
        names = [field.name for field in dataclasses.fields(value)]
        return {name: encode(getattr(value, name), f"{path}.{name}") for name in names}
    if isinstance(value, Mapping):
        return {str(key): encode(item, f"{path}.{key}") for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [encode(item, f"{path}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{path}: expected a finite number, got {value}; unknown is None")
    return value


def decode(form: type[T], value: Any, path: str = "$") -> T:
    """Return *value* as a *form*; every key must be known, and those without a default must be there.

    Raises:
        FormError: it is not one.
    """
    return typing.cast(T, _decode(form, value, path))


def schema(form: type[Any]) -> dict[str, Any]:
    """Return the JSON schema of *form*."""
    found: dict[str, Any] = {}
    top = _schema(form, found)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **top, "$defs": found}


def _decode(form: Any, value: Any, path: str) -> Any:
    origin = typing.get_origin(form)
    if dataclasses.is_dataclass(form):
        return _decode_object(form, value, path)
    if origin is Literal:
        return _decode_choice(form, value, path)
    if origin in (Union, types.UnionType):
        return _decode_union(form, value, path)
    if origin is tuple:
        return _decode_array(form, value, path)
    if origin is dict:
        item = typing.get_args(form)[1]
        found = _expect(isinstance(value, dict), "an object", value, path)
        return {key: _decode(item, entry, f"{path}.{key}") for key, entry in found.items()}
    return _decode_scalar(form, value, path)


def _decode_object(form: Any, value: Any, path: str) -> Any:
    _expect(isinstance(value, dict), "an object", value, path)
    hints = typing.get_type_hints(form)
    for key in value:
        if key not in hints:
            raise FormError(f"{path}: unknown key {shown(key)}; expected {', '.join(hints)}")
    for name in _required(form):
        if name not in value:
            raise FormError(f"{path}.{name}: missing")
    given = {key: _decode(hints[key], item, f"{path}.{key}") for key, item in value.items()}
    try:
        return form(**given)
    except ValueError as error:
        raise FormError(f"{path}: {error}") from None


def _decode_choice(form: Any, value: Any, path: str) -> Any:
    choices = typing.get_args(form)
    same = [choice for choice in choices if choice == value and type(choice) is type(value)]
    return _expect(bool(same), " or ".join(map(repr, choices)), value, path)


def _decode_union(form: Any, value: Any, path: str) -> Any:
    options = typing.get_args(form)
    known = [option for option in options if option is not type(None)]
    if value is None and len(known) < len(options):
        return None
    if len(known) == 1:
        return _decode(known[0], value, path)
    for option in known:
        try:
            return _decode(option, value, path)
        except FormError:
            continue
    raise FormError(
        f"{path}: expected {' or '.join(_name(option) for option in options)}, got {shown(value)}"
    )


def _decode_array(form: Any, value: Any, path: str) -> Any:
    _expect(isinstance(value, list), "an array", value, path)
    items = typing.get_args(form)
    if items[-1] is Ellipsis:
        items = (items[0],) * len(value)
    _expect(len(value) == len(items), f"{len(items)} items", value, path)
    pairs = enumerate(zip(items, value, strict=True))
    return tuple(_decode(item, entry, f"{path}[{index}]") for index, (item, entry) in pairs)


def _decode_scalar(form: Any, value: Any, path: str) -> Any:
    if form is not float:
        is_one = isinstance(value, form) and (form is bool or not isinstance(value, bool))
        return _expect(is_one, _NAMES[form], value, path)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    _expect(is_number, "a number", value, path)
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    _expect(math.isfinite(number), "a finite number", value, path)
    return number


def _expect(holds: bool, wanted: str, value: Any, path: str) -> Any:
    if not holds:
        raise FormError(f"{path}: expected {wanted}, got {shown(value)}")
    return value


def shown(value: Any) -> str:
    """Return *value* as an error quotes it: short, and on one line."""
    if isinstance(value, dict | list):
        return f"an {'object' if isinstance(value, dict) else 'array'} of {len(value)}"
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > 10**_SHOWN_CHARS:
        return "an integer of more than 60 digits"
    text = repr(value)
    return text if len(text) <= _SHOWN_CHARS else text[:_SHOWN_CHARS] + "..."


def _name(form: Any) -> str:
    return _NAMES.get(form) or {tuple: "an array", dict: "an object"}.get(
        typing.get_origin(form), "an object"
    )


def _required(form: Any) -> list[str]:
    absent = dataclasses.MISSING
    fields = dataclasses.fields(form)
    return [field.name for field in fields if field.default is absent and field.default_factory is absent]


def _schema(form: Any, found: dict[str, Any]) -> dict[str, Any]:
    origin, args = typing.get_origin(form), typing.get_args(form)
    if dataclasses.is_dataclass(form):
        return _object_schema(form, found)
    if origin is Literal:
        return {"enum": list(args)}
    if origin in (Union, types.UnionType):
        return {"anyOf": [_schema(option, found) for option in args]}
    if origin is tuple and args[-1] is not Ellipsis:
        return {
            "type": "array",
            "items": _schema(args[0], found),
            "minItems": len(args),
            "maxItems": len(args),
        }
    if origin is tuple:
        return {"type": "array", "items": _schema(args[0], found)}
    if origin is dict:
        return {"type": "object", "additionalProperties": _schema(args[1], found)}
    return {"type": _SCHEMAS[form]}


def _object_schema(form: Any, found: dict[str, Any]) -> dict[str, Any]:
    name = form.__name__
    if name not in found:
        found[name] = {}
        hints = typing.get_type_hints(form)
        found[name] = {
            "type": "object",
            "description": (form.__doc__ or "").partition("\n")[0],
            "properties": {key: _schema(hint, found) for key, hint in hints.items()},
            "required": _required(form),
            "additionalProperties": False,
        }
    return {"$ref": f"#/$defs/{name}"}
