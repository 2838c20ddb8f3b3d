"""What the reference backend reads of a request: its prompt, by the checkpoint's tokenizer and template."""

from __future__ import annotations

from typing import Any, cast

import jinja2

from inference.backends._tokens import check_prompt_ids
from inference.errors import InvalidRequestError, UnsupportedParameterError
from inference.generation import GenerateRequest


class Prompts:
    """Makes tokens of requests with *tokenizer*, for a model that has *vocabulary_tokens*."""

    def __init__(self, tokenizer: Any, vocabulary_tokens: int) -> None:
        self._tokenizer = tokenizer
        self._vocabulary_tokens = vocabulary_tokens

    def of(self, request: GenerateRequest) -> list[int]:
        """Return the ids that the model reads.

        Raises:
            InvalidRequestError: there is nothing to read, or the request asks for what is not done here.
        """
        self._check_supported(request)
        if request.messages is not None:
            tokens = self._tokenizer(self._render(request), add_special_tokens=False)["input_ids"]
        elif request.prompt_ids is not None:
            tokens = list(request.prompt_ids)
        else:
            tokens = self._tokenizer(request.prompt)["input_ids"]
        if not tokens and self._tokenizer.bos_token_id is not None:
            tokens = [self._tokenizer.bos_token_id]
        if not tokens:
            raise InvalidRequestError("prompt: expected text, got ''", param="prompt")
        return cast("list[int]", tokens)

    def stop_strings(self, request: GenerateRequest) -> tuple[str, ...]:
        """Return what ends the text: of a transcript the next line of the user, too."""
        is_transcript = request.messages is not None and not self._tokenizer.chat_template
        return (*request.stop, "\nuser:") if is_transcript else request.stop

    def _check_supported(self, request: GenerateRequest) -> None:
        for field in ("json_schema", "grammar"):
            if getattr(request, field) is not None:
                raise UnsupportedParameterError(
                    f"{field}: not supported by the transformers backend",
                    hint="use a llamacpp variant of the model",
                    param=field,
                )
        beyond = [token for token in request.logit_bias if not 0 <= token < self._vocabulary_tokens]
        if beyond:
            wanted = f"expected token ids below {self._vocabulary_tokens}"
            raise InvalidRequestError(f"logit_bias: {wanted}, got {beyond[0]}", param="logit_bias")
        check_prompt_ids(request.prompt_ids, self._vocabulary_tokens)

    def _render(self, request: GenerateRequest) -> str:
        turns = [{"role": message.role, "content": message.content} for message in request.messages or ()]
        if not self._tokenizer.chat_template:
            return "".join(f"{turn['role']}: {turn['content']}\n" for turn in turns) + "assistant:"
        try:
            rendered = self._tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        except jinja2.TemplateError as error:
            reason = f"messages: the model's chat template refuses them: {error}"
            raise InvalidRequestError(reason, param="messages") from error
        return cast("str", rendered)
