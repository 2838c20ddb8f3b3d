"""Tokens of a model: of a text, back to text, and how many a prompt has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

from flask import Blueprint, Response, g
from pydantic import Field

from inference.api.body import answer, client_left, read_object
from inference.api.context import Context
from inference.api.fields import MAX_TOKENS, Name, Prompt, Strict, read
from inference.api.turns import ChatMessage, Tools, request_tools
from inference.errors import InvalidRequestError
from inference.generation import GenerateRequest

_Id = Annotated[int, Field(ge=0, lt=2**31)]


class TokenizeBody(Strict):
    """The body of ``POST /jetllm/v1/tokenize``."""

    text: str
    model: Name | None = None


class DetokenizeBody(Strict):
    """The body of ``POST /jetllm/v1/detokenize``."""

    tokens: Annotated[list[_Id], Field(max_length=MAX_TOKENS)]
    model: Name | None = None


class CountBody(Strict):
    """The body of ``POST /jetllm/v1/count_tokens``: a prompt, or a chat as its template writes it."""

    model: Name | None = None
    variant: Name | None = None
    prompt: Prompt | None = None
    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=4096)] | None = None
    tools: Tools | None = None

    def to_request(self) -> GenerateRequest:
        """Return the request whose tokens are to be counted.

        Raises:
            InvalidRequestError: it has not exactly one of a prompt and messages, or tools without them.
        """
        if (self.prompt is None) == (self.messages is None):
            found = "neither" if self.prompt is None else "both"
            raise InvalidRequestError(f"expected a prompt or messages, found {found}", param="messages")
        if self.tools and self.messages is None:
            raise InvalidRequestError("tools: they go with messages only", param="tools")
        tools, choice = request_tools(self.tools, None)
        return GenerateRequest(
            model=_named(self.model),
            variant=self.variant,
            prompt=self.prompt,
            messages=None if self.messages is None else tuple(turn.to_message() for turn in self.messages),
            tools=tools,
            tool_choice=choice,
        )


def token_routes(context: Context) -> Blueprint:
    """Return the routes about tokens under ``/jetllm/v1``."""
    routes = Blueprint("tokens", __name__, url_prefix="/jetllm/v1")
    service = context.service

    @routes.post("/tokenize")
    def tokenize() -> Response:
        body = read(TokenizeBody, read_object())
        g.model = context.model_label(body.model)
        with context.permit():
            return answer(service.tokenize(_named(body.model), body.text, _cancelled(context)))

    @routes.post("/detokenize")
    def detokenize() -> Response:
        body = read(DetokenizeBody, read_object())
        g.model = context.model_label(body.model)
        with context.permit():
            return answer(service.detokenize(_named(body.model), body.tokens, _cancelled(context)))

    @routes.post("/count_tokens")
    def count_tokens() -> Response:
        body = read(CountBody, read_object())
        g.model = context.model_label(body.model)
        with context.permit():
            return answer(service.count_tokens(body.to_request(), _cancelled(context)))

    return routes


def _named(model: str | None) -> str | None:
    return None if model == "auto" else model


def _cancelled(context: Context) -> Callable[[], bool]:
    left = client_left()
    return lambda: left() or context.stopping.is_set()
