"""The request parser: waitress' own, and what it lets through that could smuggle a request."""

from __future__ import annotations

import re
from typing import Any

from waitress.adjustments import Adjustments
from waitress.parser import HTTPRequestParser, ParsingError
from waitress.utilities import BadRequest

from inference.api.errors import (
    BodyTooLargeError,
    HeadersTooLargeError,
    InvalidHTTPError,
    RequestTimeoutError,
)
from inference.errors import InternalError, JetLLMError

_FOLDED_LINE = re.compile(rb"\r\n[ \t]")
_TRANSFER_ENCODING = re.compile(rb"\r\ntransfer-encoding[ \t]*:", re.IGNORECASE)
_CONTENT_LENGTH = re.compile(rb"\r\ncontent-length[ \t]*:", re.IGNORECASE)


class RequestTimeout(BadRequest):  # type: ignore[misc] # waitress is untyped
    """The client did not finish its request in time."""

    code = 408
    reason = "Request Timeout"


class RequestParser(HTTPRequestParser):  # type: ignore[misc] # waitress is untyped
    """Reads one request, and refuses every one whose length two readers could see differently."""

    def __init__(self, adjustments: Adjustments) -> None:
        super().__init__(adjustments)

    def received(self, data: bytes) -> int:
        """Take bytes, return how many belong to this request."""
        consumed: int = super().received(data)
        if self.error:
            self.expect_continue = False  # else upstream asks for the body that it just refused
        return consumed

    def parse_header(self, header_plus: bytes) -> None:
        """Parse the header once it is known to be unambiguous.

        Raises:
            ParsingError: answered with 400.
        """
        encodings = len(_TRANSFER_ENCODING.findall(header_plus))
        lengths = len(_CONTENT_LENGTH.findall(header_plus))
        if encodings + lengths > 1:
            raise ParsingError("more than one of Content-Length and Transfer-Encoding")
        if _FOLDED_LINE.search(header_plus):
            raise ParsingError("a header line that continues the one before")
        super().parse_header(header_plus)
        if "TRANSFER_ENCODING" in self.headers:
            raise ParsingError("Transfer-Encoding needs HTTP/1.1")

    def expire(self) -> None:
        """End the wait for the rest: the request becomes a refusal."""
        if not self.headers_finished:
            super().parse_header(b"GET / HTTP/1.0\r\n")
        self.error = RequestTimeout("")
        self.completed = True


def refusal_of(error: Any, max_body_bytes: int, request_s: float) -> JetLLMError:
    """Translate what the parser, or waitress itself, refused; its texts may quote secrets."""
    if error.code == 408:
        return RequestTimeoutError(f"the request was not complete within {request_s:g} s")
    if error.code == 413:
        return BodyTooLargeError("the request body is too large", hint=f"send at most {max_body_bytes} bytes")
    if error.code == 431:
        return HeadersTooLargeError("the request header is too large")
    if error.code in (400, 501):
        reason = str(error.body).partition('"')[0].strip().rstrip(".")
        return InvalidHTTPError(f"not a valid HTTP request: {reason}")
    return InternalError("internal error")
