"""Strict JSON: what a parser would let pass silently is an error with a path."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from typing import Any

Loc = tuple[str | int, ...]

_MAX_DEPTH = 32
_SURROGATE = re.compile("[\ud800-\udfff]")


def parse(text: str) -> tuple[Any, dict[Loc, str]]:
    """Parse *text*; return the tree and what is wrong with it by its place.

    A repeated key, NaN, an infinity and half a surrogate pair are replaced by null, so that the rest
    can be checked too.

    Raises:
        ValueError: it is not JSON at all.
    """
    try:
        tree = json.loads(text, object_pairs_hook=_pairs, parse_constant=_constant, parse_float=_finite)
    except RecursionError:
        raise ValueError(f"nested deeper than {_MAX_DEPTH}") from None
    return tree, dict(_refusals(tree, ()))


class _Refused:
    """Stands in the parsed tree for a value that strict JSON does not have."""

    def __init__(self, problem: str) -> None:
        self.problem = problem


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        result[key] = _Refused("expected this key once, found it again") if key in result else value
    return result


def _constant(text: str) -> _Refused:
    return _Refused(f"expected a finite number, got {text}")


def _finite(text: str) -> float | _Refused:
    number = float(text)
    return number if math.isfinite(number) else _constant(text[:40])


def _refusals(tree: Any, loc: Loc) -> Iterator[tuple[Loc, str]]:
    if len(loc) > _MAX_DEPTH:
        raise ValueError(f"nested deeper than {_MAX_DEPTH}")
    items: Any = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in list(items):
        if isinstance(key, str) and not _is_text(key):
            yield (*loc, key), "expected a key of valid Unicode text"
            del tree[key]
        elif isinstance(value, _Refused):
            yield (*loc, key), value.problem
            tree[key] = None
        elif isinstance(value, str) and not _is_text(value):
            yield (*loc, key), f"expected valid Unicode text, got {ascii(value)[:60]}"
            tree[key] = None
        else:
            yield from _refusals(value, (*loc, key))


def _is_text(text: str) -> bool:
    """Tell whether *text* is without lone surrogates, which JSON can escape and UTF-8 cannot hold."""
    return text.isascii() or not _SURROGATE.search(text)
