"""`inference.generation`: what crosses the wire comes out as it went in."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.errors import ContextLengthExceededError, InternalError, JetLLMError, from_dict
from inference.generation import Chunk, FinishReason, GenerateRequest, Message, Timings, TokenLogprob, Usage


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"temperature": 0.0, "seed": 0, "top_k": 0, "min_p": 0.0, "top_p": 0.0},
        {"json_schema": {}},
        {"prompt": "x", "echo": True, "max_tokens": 0},
        {"logprobs": True, "top_logprobs": 0, "ignore_eos": True, "cache_prompt": False},
        {"messages": (Message("system", "a"), Message("user", "b")), "prompt": None},
        {"logit_bias": {0: 0.0, 5: -100.0}, "stop": ("x", "y")},
    ],
)
def test_a_request_survives_the_wire(values: dict[str, Any]) -> None:
    """Zero is a value: a greedy temperature and a seed of 0 must reach the engine."""
    request = GenerateRequest(**values)
    assert GenerateRequest.from_dict(json.loads(json.dumps(request.to_dict()))) == request


_LOGPROBS = st.builds(
    TokenLogprob,
    st.text(),
    st.none() | st.floats(max_value=0, allow_nan=False, allow_infinity=False),
    st.none() | st.lists(st.integers(0, 255)).map(tuple),
)
_COUNT = st.integers(0, 10**6)
_CHUNKS = st.builds(
    Chunk,
    st.text(),
    st.lists(_LOGPROBS).map(tuple),
    st.none() | st.tuples(_COUNT, _COUNT),
    st.none() | st.sampled_from(FinishReason),
    st.none() | st.builds(Usage, _COUNT, _COUNT, _COUNT),
    st.none() | st.builds(Timings, st.floats(0, 1e6), st.floats(0, 1e6)),
)


@given(_CHUNKS)
def test_a_chunk_survives_the_wire(chunk: Chunk) -> None:
    """Whatever a backend yields, the caller gets."""
    assert Chunk.from_dict(json.loads(json.dumps(chunk.to_dict()))) == chunk


def test_an_error_survives_the_wire() -> None:
    """Type, text, hint and numbers come through; an unknown code is our own fault."""
    error = ContextLengthExceededError(
        "too long", hint="shorten", param="messages", details={"prompt_tokens": 9}
    )
    back = from_dict(json.loads(json.dumps(error.to_dict())))
    assert type(back) is ContextLengthExceededError
    assert (back.message, back.hint, back.param, back.details) == (
        error.message,
        error.hint,
        error.param,
        error.details,
    )
    assert isinstance(from_dict({"code": "made_up", "message": "x"}), InternalError)
    assert isinstance(from_dict({}), JetLLMError)
