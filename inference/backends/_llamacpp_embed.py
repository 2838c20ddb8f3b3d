"""Embeddings by llama.cpp: a model that was loaded to make vectors of texts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from inference.backends._llamacpp_tokens import Ask, Tokens
from inference.backends._room import check_input
from inference.backends._tokens import check_ids, frame_of, framed
from inference.errors import CancelledError, InternalError, InvalidRequestError

_AT_ONCE = 32  # inputs between two looks at whether the caller has left


def is_pooled(ask: Ask) -> bool:
    """Make a first vector, and tell whether it is one for the text, not one for each of its tokens."""
    rows = ask("/embedding", {"content": "a b"})[0]["embedding"]
    return len(rows) == 1


def embed(
    server: Any,
    tokens: Tokens,
    context_tokens: int,
    inputs: Sequence[str | Sequence[int]],
    cancelled: Callable[[], bool],
) -> tuple[list[list[float]], int]:
    """Return a vector of unit length for each of *inputs*, and how many tokens were read.

    Raises:
        ContextLengthExceededError: an input is too long; nothing was computed.
        CancelledError: the caller has left.
    """
    frame = frame_of(tokens.of("a"), tokens.of("a", framed=True))
    prompts = []
    for number, item in enumerate(inputs):
        if cancelled():
            raise CancelledError("the caller left")
        ids = _ids(tokens, item, frame)
        check_input(number, len(ids), context_tokens)
        prompts.append(ids)
    vectors: list[list[float]] = []
    for start in range(0, len(prompts), _AT_ONCE):
        if cancelled():
            raise CancelledError("the caller left")
        answer = server.handle_embeddings({"input": prompts[start : start + _AT_ONCE]})
        vectors += _vectors(answer)
    return vectors, sum(map(len, prompts))


def _ids(tokens: Tokens, item: str | Sequence[int], frame: tuple[list[int], list[int]]) -> list[int]:
    if isinstance(item, str):
        ids = tokens.of(item, framed=True)
    else:
        ids = framed(check_ids(item, tokens.size, "input"), frame)
    if not ids:
        raise InvalidRequestError("input: expected text, got ''", param="input")
    return ids


def _vectors(answer: Mapping[str, Any]) -> list[list[float]]:
    if "error" in answer:
        raise InternalError(f"llama.cpp: {answer['error'].get('message')}")
    return [each["embedding"] for each in sorted(answer["data"], key=lambda each: int(each["index"]))]
