"""The request's body and the answer's: JSON in, JSON out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flask import Response, request

from inference.api.errors import UnsupportedMediaTypeError
from inference.api.shapes import to_bytes
from inference.api.strict_json import parse_object


def read_object() -> dict[str, Any]:
    """Return the current request's body.

    Raises:
        UnsupportedMediaTypeError: it is not declared as plain UTF-8 JSON. A web page cannot send this
            type to another origin without asking first, and it never gets that permission.
        InvalidJSONError: it is not the JSON that is accepted.
    """
    charset = request.mimetype_params.get("charset", "utf-8").lower()
    encoding = request.headers.get("Content-Encoding", "identity").lower()
    if request.mimetype != "application/json" or charset not in ("utf-8", "utf8") or encoding != "identity":
        raise UnsupportedMediaTypeError(
            "the request body must be uncompressed UTF-8 JSON",
            hint="send the header Content-Type: application/json",
        )
    return parse_object(request.get_data(cache=False))


def read_any_object() -> dict[str, Any]:
    """Return the current request's body, whatever type it is declared as.

    Ollama looks at no type, and its own examples send curl's default. A web page, which could send that
    to another origin without asking, gives itself away by headers that browsers let no page leave out.

    Raises:
        UnsupportedMediaTypeError, InvalidJSONError: as `read_object`.
    """
    browser = any(name in request.headers for name in ("Origin", "Sec-Fetch-Site"))
    if browser or request.mimetype == "application/json" or "Content-Encoding" in request.headers:
        return read_object()
    return parse_object(request.get_data(cache=False))


def answer(value: Any, status: int = 200) -> Response:
    """Return a JSON response."""
    return Response(to_bytes(value), status=status, mimetype="application/json")


def client_left() -> Callable[[], bool]:
    """Return a question, for the current request: is its client gone?"""
    probe: Callable[[], bool] | None = request.environ.get("waitress.client_disconnected")
    return probe if probe is not None else lambda: False
