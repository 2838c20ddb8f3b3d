"""Token ids that a caller gives: whether a model has them."""

from __future__ import annotations

from collections.abc import Sequence

from inference.errors import InvalidRequestError


def check_ids(ids: Sequence[int], vocabulary_tokens: int, param: str) -> list[int]:
    """Return *ids*, each of which the vocabulary has.

    Raises:
        InvalidRequestError: one of them it has not; it is *param* that holds them.
    """
    beyond = next((token for token in ids if not 0 <= token < vocabulary_tokens), None)
    if beyond is not None:
        raise InvalidRequestError(
            f"{param}: expected token ids from 0 to {vocabulary_tokens - 1}, got {beyond}",
            hint="tokens are of one model only: POST /jetllm/v1/tokenize gives this one's",
            param=param,
        )
    return list(ids)


def check_prompt_ids(ids: Sequence[int] | None, vocabulary_tokens: int) -> None:
    """Refuse a prompt of tokens that are none of the model's, or of no tokens.

    Raises:
        InvalidRequestError: so it is.
    """
    if ids is None:
        return
    if not ids:
        raise InvalidRequestError("prompt: expected at least one token, got none", param="prompt")
    check_ids(ids, vocabulary_tokens, "prompt")


def frame_of(own: Sequence[int], whole: Sequence[int]) -> tuple[list[int], list[int]]:
    """Return what a model puts before and behind a text: *own* are its tokens, *whole* all of them."""
    size = len(own)
    first = next((n for n in range(len(whole)) if list(whole[n : n + size]) == list(own)), 0)
    return list(whole[:first]), list(whole[first + size :])


def framed(ids: Sequence[int], frame: tuple[list[int], list[int]]) -> list[int]:
    """Return *ids* within the frame that a text has; what they have of it already is not doubled."""
    before, behind = frame
    has_before = list(ids[: len(before)]) == before
    has_behind = bool(behind) and list(ids[-len(behind) :]) == behind
    return [*([] if has_before else before), *ids, *([] if has_behind else behind)]
