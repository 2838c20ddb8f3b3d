"""llama.cpp's tokens: of a text, of a prompt, and back; the server's own tokenizer makes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from inference.backends._tokens import check_ids, check_prompt_ids
from inference.generation import GenerateRequest

Ask = Callable[..., Any]
_OF_A_TEMPLATE = ("messages", "tools", "tool_choice")


class Tokens:
    """Asks the server by *ask*; *size* is how many tokens its vocabulary has."""

    def __init__(self, ask: Ask) -> None:
        self._ask = ask
        self.size = int(ask("/v1/models")["data"][0]["meta"]["n_vocab"])

    def of(self, text: str, *, framed: bool = False) -> list[int]:
        """Return the ids of *text*; *framed*: with what the model puts around it."""
        tokens = self._ask("/tokenize", {"content": text, "add_special": framed})["tokens"]
        return [int(token) for token in tokens]

    def text(self, ids: Sequence[int]) -> str:
        """Return the text of *ids*; what is no whole character becomes U+FFFD."""
        return str(self._ask("/detokenize", {"tokens": check_ids(ids, self.size, "tokens")})["content"])

    def of_request(self, request: GenerateRequest, body: Mapping[str, Any]) -> list[int]:
        """Return the ids that the model reads of *request*, which *body* says in the engine's words.

        Raises:
            InvalidRequestError: there is nothing to read.
        """
        if request.messages is not None:
            rendered = self._ask("/apply-template", {key: body[key] for key in _OF_A_TEMPLATE if key in body})
            return self.of(rendered["prompt"], framed=True)
        if request.prompt_ids is None:
            return self.of(request.prompt or "", framed=True)
        check_prompt_ids(request.prompt_ids, self.size)
        return list(request.prompt_ids)
