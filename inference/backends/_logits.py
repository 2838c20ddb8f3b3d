"""Logits: what they say of tokens, as tensors that somebody else has made."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from inference.backends._echo import Cut, Echo, to_bytes
from inference.backends._text import INCOMPLETE
from inference.generation import Chunk, GenerateRequest, TokenLogprob

_STEP_TOKENS = 64  # of 262144 alternatives each, that is 64 MiB of logits


def adjustments(request: GenerateRequest, prompt_tokens: int, vocabulary_tokens: int) -> list[Any]:
    """Return what takes tokens and logits and gives other logits: penalties, then the bias."""
    frequency, presence = request.frequency_penalty or 0.0, request.presence_penalty or 0.0

    def penalize(tokens: Any, scores: Any) -> Any:
        counts = tokens[0, prompt_tokens:].bincount(minlength=vocabulary_tokens)
        return scores - frequency * counts - presence * (counts > 0)

    def bias(_tokens: Any, scores: Any) -> Any:
        scores = scores.clone()
        for token, value in request.logit_bias.items():
            scores[0, token] += value
        return scores

    wanted = {penalize: bool(frequency or presence), bias: bool(request.logit_bias)}
    return [adjust for adjust, is_wanted in wanted.items() if is_wanted]


def token_logprob(tokenizer: Any, logprobs: Any, token: int, top: int) -> TokenLogprob:
    """Return *token* out of the log-probabilities of the whole vocabulary, with the *top* likeliest."""

    def one(index: int) -> TokenLogprob:
        text = tokenizer.decode([index])
        # Bytes are known only where the token is whole characters.
        raw = None if INCOMPLETE in text else tuple(text.encode())
        return TokenLogprob(text, float(logprobs[index]), raw)

    likeliest = logprobs.topk(min(top, logprobs.shape[0])).indices.tolist()
    return dataclasses.replace(one(token), top=tuple(one(index) for index in likeliest))


def echoed(
    model: Any, tokenizer: Any, request: GenerateRequest, inputs: Any, halted: Callable[[], bool]
) -> Iterator[Chunk]:
    """Yield the request's prompt and, if asked for, what *model* thinks of each of its tokens.

    It is read in steps; between two of them a look is taken at *halted*, which ends this early.
    """
    ids = inputs[0].tolist()
    prompt = (request.prompt or "") if request.prompt_ids is None else tokenizer.decode(ids)
    if not request.logprobs:
        yield Chunk(prompt)
        return
    echo = Echo(Cut(tuple(ids), _pieces(tokenizer, ids, prompt)))
    yield echo.tell(None)
    cache = None
    for start in range(0, len(ids) - 1, _STEP_TOKENS):
        if halted():
            return
        end = min(start + _STEP_TOKENS, len(ids) - 1)
        output = model(inputs[:, start:end], past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        logprobs = output.logits[0].float().log_softmax(-1)
        for row, token in zip(logprobs, ids[start + 1 : end + 1], strict=True):
            found = token_logprob(tokenizer, row, token, request.top_logprobs)
            assert found.logprob is not None  # noqa: S101 - only the first token has none
            yield echo.tell(found.logprob, found.top)


def _pieces(tokenizer: Any, ids: Sequence[int], text: str) -> tuple[bytes, ...]:
    names = tokenizer.convert_ids_to_tokens(list(ids))
    # What the model puts before a text, such as a begin-of-text token, is no part of it.
    for added in range(len(ids)):
        found = to_bytes(names[added:], text)
        if found is not None:
            return (b"",) * added + found
    return tuple(tokenizer.decode([token]).encode() for token in ids)
