"""Requests in mlc_llm's terms, and its answers in ours; what would harm the engine is refused here."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from inference.backends._mlc_schema import translate
from inference.backends._text import INCOMPLETE
from inference.errors import (
    ContextLengthExceededError,
    InternalError,
    InvalidRequestError,
    JetLLMError,
    MemoryPressureError,
    UnsupportedParameterError,
)
from inference.generation import FinishReason, GenerateRequest, Message, TokenLogprob, Usage

MAX_TOP_LOGPROBS = 5  # 6 to 20 are taken, and end the engine's thread
_TOO_LONG = re.compile(r"has (\d+) tokens in total.* limit (\d+)")
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "top_k": (None, 0),
    "min_p": (None, 0),
    "repetition_penalty": (None, 1),
    "grammar": (None,),
}


def check_request(request: GenerateRequest, vocabulary_tokens: int) -> None:
    """Refuse what mlc_llm cannot do, does wrong, or dies of.

    Raises:
        InvalidRequestError: *param* names the field.
    """
    for name, neutral in _NEUTRAL.items():
        if getattr(request, name) not in neutral:
            raise UnsupportedParameterError(
                f"{name}: not supported by the mlc backend",
                hint="leave it out, or use a llamacpp variant",
                param=name,
            )
    if request.max_tokens is not None and request.max_tokens < 1:
        _refuse("max_tokens", f"expected at least 1, got {request.max_tokens}")  # 0 would give one token
    for name in ("frequency_penalty", "presence_penalty"):
        if abs(getattr(request, name) or 0) > 2:
            _refuse(name, f"expected -2 to 2, got {getattr(request, name)}")
    for token, bias in request.logit_bias.items():
        if not 0 <= token < vocabulary_tokens:
            _refuse("logit_bias", f"expected token ids below {vocabulary_tokens}, got {token}")
        if abs(bias) > 100:
            _refuse("logit_bias", f"expected -100 to 100, got {bias}")
    if request.logprobs:
        _check_logprobs(request)


def check_roles(messages: Sequence[Message], roles: Mapping[str, Any]) -> None:
    """Refuse what mlc_llm's conversation template has no place for.

    Raises:
        InvalidRequestError: always of "messages".
    """
    for number, message in enumerate(messages):
        if message.role == "system" and number:
            _refuse("messages", "the system's message comes first in mlc_llm's template")
        if message.role != "system" and message.role not in roles:
            _refuse("messages", f"mlc_llm's template has no role {message.role!r}")


def _check_logprobs(request: GenerateRequest) -> None:
    if request.top_logprobs > MAX_TOP_LOGPROBS:
        _refuse(
            "top_logprobs", f"the mlc backend gives at most {MAX_TOP_LOGPROBS}, not {request.top_logprobs}"
        )
    for name in ("temperature", "top_p"):
        # Its figures are those of the distribution that it samples from, not the model's.
        if getattr(request, name) not in (None, 1):
            _refuse(name, f"with logprobs the mlc backend needs 1, got {getattr(request, name)}")


def check_prompt(tokens: list[int], vocabulary_tokens: int, context_tokens: int, param: str) -> None:
    """Refuse a prompt that the engine has no room or no embedding for.

    Raises:
        ContextLengthExceededError: it leaves no room for a token of an answer.
        InvalidRequestError: it is empty, or has ids that the model does not know.
    """
    if not tokens:
        _refuse(param, "expected text, got ''")
    if max(tokens) >= vocabulary_tokens or min(tokens) < 0:
        beyond = max(tokens) if max(tokens) >= vocabulary_tokens else min(tokens)
        _refuse(param, f"the tokenizer made token {beyond}; the model has {vocabulary_tokens}")
    if len(tokens) >= context_tokens:
        raise too_long(len(tokens), context_tokens, param)


def too_long(prompt_tokens: int, context_tokens: int, param: str) -> ContextLengthExceededError:
    """Return the error for a prompt that does not fit."""
    return ContextLengthExceededError(
        f"the prompt has {prompt_tokens} tokens; prompt and answer may have {context_tokens}",
        hint="shorten the prompt, or raise context_tokens",
        param=param,
        details={"prompt_tokens": prompt_tokens, "context_tokens": context_tokens},
    )


def arguments(
    request: GenerateRequest, request_id: str, max_tokens: int | None, *, chat: bool
) -> dict[str, Any]:
    """Return what completions and, with *chat*, chat.completions have in common.

    Raises:
        InvalidSchemaError: the engine cannot hold a text to the request's schema.
    """
    values: dict[str, Any] = {
        "request_id": request_id,
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": max_tokens,
        "temperature": request.temperature,
        "top_p": request.top_p,
        "frequency_penalty": request.frequency_penalty,
        "presence_penalty": request.presence_penalty,
        "seed": request.seed,
        "logit_bias": dict(request.logit_bias) or None,
        # A list of its own, because the engine adds to it.
        "stop": list(request.stop) or None,
    }
    if request.logprobs:
        values |= {"temperature": 1.0, "top_p": 1.0}
        values["logprobs"] = True if chat else request.top_logprobs
        if chat:
            values["top_logprobs"] = request.top_logprobs
    if request.json_schema is not None:
        schema = json.dumps(translate(request.json_schema))
        values["response_format"] = {"type": "json_object", "schema": schema}
    if request.ignore_eos:
        values["extra_body"] = {"debug_config": {"ignore_eos": True}}
    return values


def text_of(choice: Any) -> str:
    """Return the new text of a completion's or a chat's choice."""
    text = str((choice.delta.content if hasattr(choice, "delta") else choice.text) or "")
    # A character that the last token leaves incomplete is written as a replacement; ours are whole.
    return text if choice.finish_reason is None else text.rstrip(INCOMPLETE)


def finish_reason_of(choice: Any) -> FinishReason | None:
    """Return why the choice has ended, if it has.

    Raises:
        MemoryPressureError: the engine gave it up for others.
    """
    if choice.finish_reason is None:
        return None
    if choice.finish_reason == "preempt":
        raise _preempted()
    return FinishReason.LENGTH if choice.finish_reason == "length" else FinishReason.STOP


def logprobs_of(choice: Any) -> tuple[TokenLogprob, ...]:
    """Return the log-probabilities of the choice's new tokens."""
    given = choice.logprobs
    if given is None:
        return ()
    if hasattr(given, "content"):
        return tuple(_content(item) for item in given.content)
    return tuple(_columns(given))


def _content(item: Any, top: bool = True) -> TokenLogprob:
    others = tuple(_content(other, top=False) for other in item.top_logprobs) if top else ()
    raw = None if item.bytes is None else tuple(item.bytes)
    return TokenLogprob(item.token, float(item.logprob), raw, others)


def _columns(given: Any) -> Iterator[TokenLogprob]:
    for token, value, top in zip(given.tokens, given.token_logprobs, given.top_logprobs, strict=True):
        others = tuple(_token(text, other) for text, other in top.items())
        yield dataclasses.replace(_token(token, value), top=others)


def _token(text: str, value: float) -> TokenLogprob:
    # Bytes are known only where the token is whole characters.
    return TokenLogprob(text, float(value), None if INCOMPLETE in text else tuple(text.encode()))


def usage_of(raw: Any) -> Usage:
    """Return the counts; those of *extra* that are 0 are not there at all."""
    extra = raw.extra or {}
    cached = max(0, raw.prompt_tokens - extra.get("prefill_tokens", 0)) if extra else 0
    return Usage(raw.prompt_tokens, raw.completion_tokens, cached)


def refusal(error: BaseException, param: str) -> JetLLMError:
    """Return the engine's error as ours; its BadRequestError and pydantic's are ValueErrors."""
    if isinstance(error, JetLLMError):
        return error
    text = _said(error)
    if found := _TOO_LONG.search(str(error)):
        return too_long(int(found[1]), int(found[2]), param)
    if "preempt" in str(error):  # a reason that the protocol of its chats does not have
        return _preempted()
    if isinstance(error, ValueError):
        return InvalidRequestError(f"mlc_llm refuses the request: {text}", param=param)
    return InternalError(f"mlc_llm: {type(error).__name__}: {text}")


def _said(error: BaseException) -> str:
    """Return what *error* says in a line; pydantic says on the third one what is wrong with which field."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or ["no reason given"]
    if len(lines) > 2 and "validation error" in lines[0]:
        return f"{lines[1]}: {lines[2].partition(' [type=')[0]}"
    return lines[0]


def _preempted() -> MemoryPressureError:
    return MemoryPressureError("mlc_llm gave the request up: its KV cache is full", retry_after_s=1.0)


def _refuse(param: str, problem: str) -> None:
    raise InvalidRequestError(f"{param}: {problem}", param=param)
