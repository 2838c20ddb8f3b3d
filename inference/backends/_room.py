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


def check_input(number: int, tokens: int, context_tokens: int) -> None:
    """Refuse an input that is longer than the context; the first has the number 0.

    Raises:
        ContextLengthExceededError: it names both counts.
    """
    if tokens <= context_tokens:
        return
    raise ContextLengthExceededError(
        f"input {number} has {tokens} tokens; an input may have {context_tokens}",
        hint="cut it into shorter texts, and send them as a list",
        param="input",
        details={"prompt_tokens": tokens, "context_tokens": context_tokens},
    )
