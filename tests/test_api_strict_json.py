"""Strict JSON: what is refused, and that refusing costs little."""

from __future__ import annotations

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.api.errors import InvalidJSONError
from inference.api.strict_json import depth_exceeds, parse_object


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "empty"),
        (b" ", "not JSON"),
        (b"{", "not JSON"),
        (b'{"a":1}x', "not JSON"),
        (b"{'a':1}", "not JSON"),
        (b'{"a":1,}', "not JSON"),
        (b'{"a":\x01"b"}', "not JSON"),
        (b'{"a":"\n"}', "not JSON"),
        (b"[1]", "is a JSON array"),
        (b"null", "is a JSON null"),
        (b"true", "is a JSON boolean"),
        (b"1", "is a JSON number"),
        (b'{"a":NaN}', "NaN"),
        (b'{"a":Infinity}', "Infinity"),
        (b'{"a":-Infinity}', "Infinity"),
        (b'{"a":1e400}', "too large"),
        (b'{"a":-1e400}', "too large"),
        (b'{"a":' + b"9" * 5000 + b"}", "5000 digits"),
        (b'{"a":1,"a":2}', "'a' twice"),
        (b'{"b":{"a":1,"c":2,"a":2}}', "'a' twice"),
        (b'{"a":"\\ud800"}', "surrogate"),
        (b'{"a":["x\\uDFFFy"]}', "surrogate"),
        (b'{"\\udc00":1}', "surrogate"),
        (b'{"a":"x\\u0000"}', "NUL"),
        ('{"a":1}'.encode("utf-16"), "not UTF-8"),
        (b"\xef\xbb\xbf{}", "not JSON"),
        (b'{"a":"\xff"}', "not UTF-8 at byte 6"),
        (b'{"a":"\xed\xa0\x80"}', "not UTF-8"),
    ],
)
def test_refuses(body: bytes, reason: str) -> None:
    """What is not one well-formed object of harmless values is refused with its reason."""
    with pytest.raises(InvalidJSONError) as caught:
        parse_object(body)
    assert reason in caught.value.message and caught.value.code == "invalid_json"


@pytest.mark.parametrize(
    "value",
    [
        {},
        {"a": [1, -1, 2**63, 1.5, 1e300, True, None, "ü安😀\t\\u0000", {"a": 1}]},
        {"text": '[[[["' * 100 + "{" * 100},
    ],
)
def test_accepts_what_json_allows(value: object) -> None:
    """Everything else comes out as it went in, brackets and escapes inside texts included."""
    for ascii_only in (True, False):
        assert parse_object(json.dumps(value, ensure_ascii=ascii_only).encode()) == value


def test_depth_limit_is_64() -> None:
    """64 levels are read, the object around them included; 65 are not."""
    assert parse_object(b'{"a":' + b"[" * 63 + b"]" * 63 + b"}")
    with pytest.raises(InvalidJSONError, match="64 levels"):
        parse_object(b'{"a":' + b"[" * 64 + b"]" * 64 + b"}")


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 1_000_000,
        b'{"a":' * 200_000,
        b"[" * 65 + b'"' + b'\\"' * 500_000,
        b"[]" * 65 + b'"' + b'\\"' * 500_000 + b"\\",
        b'{"a":"' + b"\\" * 999_990,
        b'""' * 500_000,
        b"[]" * 500_000,
        b'{"a":"' + b"\\ud83d" * 160_000 + b'"}',
    ],
)
def test_hostile_bodies_are_refused_quickly(body: bytes) -> None:
    """A mebibyte made to be slow is refused in well under a second."""
    started_s = time.monotonic()
    with pytest.raises(InvalidJSONError):
        parse_object(body)
    assert time.monotonic() - started_s < 1


def test_error_does_not_quote_the_body() -> None:
    """A prompt must not come back, or reach a log, through an error."""
    with pytest.raises(InvalidJSONError) as caught:
        parse_object(b'{"prompt":"my secret" oops}')
    assert "secret" not in str(caught.value)


def _depth(value: object) -> int:
    if isinstance(value, dict):
        return 1 + max([0, *map(_depth, value.values())])
    if isinstance(value, list):
        return 1 + max([0, *map(_depth, value)])
    return 0


@given(
    st.recursive(
        st.one_of(st.integers(), st.text(st.sampled_from('[]{}"\\a,:')), st.none()),
        lambda inner: st.one_of(st.lists(inner), st.dictionaries(st.text(st.sampled_from('[{"\\')), inner)),
    )
)
def test_depth_is_counted_outside_strings_only(value: object) -> None:
    """The scan agrees with the depth of the parsed value, whatever the strings hold."""
    depth = _depth(value)
    assert not depth_exceeds(json.dumps(value), depth)
    assert depth == 0 or depth_exceeds(json.dumps(value), depth - 1)
