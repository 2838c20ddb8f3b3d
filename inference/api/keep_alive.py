"""keep_alive: how long a model stays after a request, as clients of Ollama write it."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BeforeValidator

FOR_EVER_S = -1.0
MAX_S = 31_536_000.0  # a year, as the setting keep_alive_s; what is longer is for ever

_UNIT_S = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_NUMBER = r"(?:[0-9]{1,18}(?:\.[0-9]{0,18})?|\.[0-9]{1,18})"
_PART = re.compile(rf"({_NUMBER})({'|'.join(sorted(_UNIT_S, key=len, reverse=True))})")
_DURATION = re.compile(rf"[+-]?(?:{_PART.pattern})+")
_BARE = re.compile(rf"[+-]?{_NUMBER}")


def seconds_of(value: Any) -> Any:
    """Return the seconds that *value* says: a number of them, or text such as "5m", "1h30m" or "-1".

    What is negative, or longer than a year, is -1: for ever. ``None`` stays what it is.

    Raises:
        ValueError: it is neither.
    """
    if value is None:
        return None
    if isinstance(value, str) and len(value) <= 64:
        value = _seconds(value.strip())
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError('expected seconds, or a duration such as "5m", "1h30m", 0 or -1')
    return float(value) if 0 <= value <= MAX_S else FOR_EVER_S


def _seconds(text: str) -> float | None:
    if _BARE.fullmatch(text):
        return float(text)
    if not _DURATION.fullmatch(text):
        return None
    whole = sum(float(number) * _UNIT_S[unit] for number, unit in _PART.findall(text))
    return -whole if text.startswith("-") else whole


KeepAlive = Annotated[float | None, BeforeValidator(seconds_of, json_schema_input_type=float | str | None)]
"""A request's field: `GenerateRequest.keep_alive_s`."""
