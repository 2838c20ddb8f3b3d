"""The room that a context has for a prompt."""

from __future__ import annotations

from inference.errors import ContextLengthExceededError


def check_room(prompt_tokens: int, context_tokens: int, param: str) -> None:
    """Refuse a prompt that leaves no room for a token of an answer.

    Raises:
        ContextLengthExceededError: it names both numbers, and *param*.
    """
    if prompt_tokens < context_tokens:
        return
    raise ContextLengthExceededError(
        f"the prompt has {prompt_tokens} tokens; prompt and answer may have {context_tokens}",
        hint="shorten the prompt, or serve the model with a larger context",
        param=param,
        details={"prompt_tokens": prompt_tokens, "context_tokens": context_tokens},
    )
