"""Embeddings in OpenAI's dialect: texts or tokens in, vectors out."""

from __future__ import annotations

import base64
import struct
from typing import Annotated, Any, Literal

from flask import Blueprint, Response, g
from pydantic import BeforeValidator, Field

from inference.api.body import answer, client_left, read_object
from inference.api.context import Context
from inference.api.fields import MAX_TOKENS, Name, Strict, read
from inference.api.keep_alive import KeepAlive
from inference.errors import InvalidRequestError
from inference.generation import Embeddings, EmbedRequest

MAX_INPUTS = 2048
MAX_DIMENSIONS = 65_536
_MAX_TOKEN_ID = 2**31 - 1


def _inputs(value: Any) -> Any:
    """Return the inputs, each a text or a list of token ids."""
    inputs = value if isinstance(value, list) and not (value and _is_token(value[0])) else [value]
    if not 1 <= len(inputs) <= MAX_INPUTS:
        raise ValueError(f"expected 1 to {MAX_INPUTS} inputs")
    for one in inputs:
        if not one or not (isinstance(one, str) or (isinstance(one, list) and all(map(_is_token, one)))):
            raise ValueError("expected a text or token ids, or a list of such, none of them empty")
        if len(one) > MAX_TOKENS:
            raise ValueError(f"expected at most {MAX_TOKENS} characters or token ids")
    return inputs


def _is_token(value: Any) -> bool:
    return type(value) is int and 0 <= value <= _MAX_TOKEN_ID


_TokenIds = list[Annotated[int, Field(ge=0, le=_MAX_TOKEN_ID)]]
_Input = str | _TokenIds | list[str] | list[_TokenIds]
Inputs = Annotated[list[Any], BeforeValidator(_inputs, json_schema_input_type=_Input)]


class EmbeddingBody(Strict):
    """The body of ``POST /v1/embeddings``."""

    input: Inputs
    model: Name | None = None
    variant: Name | None = None
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Field(ge=1, le=MAX_DIMENSIONS)] | None = None
    keep_alive: KeepAlive = None

    def to_request(self) -> EmbedRequest:
        """Return what is to be embedded."""
        return EmbedRequest(
            inputs=tuple(one if isinstance(one, str) else tuple(one) for one in self.input),
            model=None if self.model == "auto" else self.model,
            variant=self.variant,
            keep_alive_s=self.keep_alive,
        )


def embedding_routes(context: Context) -> Blueprint:
    """Return the route ``/v1/embeddings``."""
    routes = Blueprint("embeddings", __name__, url_prefix="/v1")

    @routes.post("/embeddings")
    def embeddings() -> Response:
        body = read(EmbeddingBody, read_object())
        g.model = context.model_label(body.model)
        left = client_left()
        with context.permit():
            found = context.service.embed(body.to_request(), lambda: left() or context.stopping.is_set())
        g.model = found.model
        _check_dimensions(body, found)
        return answer(_shaped(body, found))

    return routes


def _check_dimensions(body: EmbeddingBody, found: Embeddings) -> None:
    """Refuse vectors of another length than the model's: not every model can be cut."""
    has = len(found.vectors[0])
    if body.dimensions not in (None, has):
        raise InvalidRequestError(
            f"dimensions: {found.model} makes vectors of {has}, not of {body.dimensions}",
            hint="leave out dimensions",
            param="dimensions",
        )


def _shaped(body: EmbeddingBody, found: Embeddings) -> dict[str, Any]:
    as_text = body.encoding_format == "base64"
    return {
        "object": "list",
        "data": [
            {"object": "embedding", "index": index, "embedding": _base64(vector) if as_text else vector}
            for index, vector in enumerate(found.vectors)
        ],
        "model": found.model,
        "usage": {"prompt_tokens": found.prompt_tokens, "total_tokens": found.prompt_tokens},
    }


def _base64(vector: tuple[float, ...]) -> str:
    """Return the numbers as little-endian float32."""
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode("ascii")
