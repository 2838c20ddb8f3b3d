"""HTTP failures: the status, the headers and the JSON body that each error becomes."""

from __future__ import annotations

import json
import logging
import math
import re
import traceback
from pathlib import Path
from typing import Any

from inference.errors import DrainingError, InternalError, InvalidRequestError, JetLLMError

logger = logging.getLogger(__name__)

STATUS_BY_CODE = {
    "invalid_http": 400,
    "invalid_json": 400,
    "invalid_value": 400,
    "invalid_schema": 400,
    "unsupported_parameter": 400,
    "context_length_exceeded": 400,
    "invalid_api_key": 401,
    "origin_not_allowed": 403,
    "not_found": 404,
    "model_not_found": 404,
    "job_not_found": 404,
    "model_not_pulled": 404,
    "model_not_built": 404,
    "method_not_allowed": 405,
    "request_timeout": 408,
    "model_in_use": 409,
    "body_too_large": 413,
    "unsupported_media_type": 415,
    "host_not_allowed": 421,
    # What can never work must not be a 5xx: clients repeat those on their own.
    "does_not_fit": 422,
    "backend_not_available": 422,
    "unsafe_artifact": 422,
    "load_failed": 422,
    "offline": 422,
    "build_failed": 422,
    "foreign_library": 422,
    "missing_dependency": 422,
    "queue_full": 429,
    "rate_limited": 429,
    "headers_too_large": 431,
    "cancelled": 499,
    "internal_error": 500,
    "backend_crashed": 502,
    "download_failed": 502,
    "loading": 503,
    "draining": 503,
    "shutting_down": 503,
    "memory_pressure": 503,
    "backend_timeout": 504,
    "insufficient_storage": 507,
}

# A directory in front of a file name, but neither a URL nor one of our own routes.
_DIRECTORY = re.compile(r"(?<![\w:/.])~?/(?!v1/|jetllm/|api/)(?:[^\s/'\":,;()]+/)*(?=[^\s/'\":,;()])")


class InvalidJSONError(InvalidRequestError):
    """The body is not JSON, or JSON of a kind that is refused."""

    code = "invalid_json"


class InvalidHTTPError(JetLLMError):
    """The bytes are not a request that HTTP/1.1 allows."""

    code = "invalid_http"


class InvalidApiKeyError(JetLLMError):
    """The bearer token is missing or wrong."""

    code = "invalid_api_key"


class OriginNotAllowedError(JetLLMError):
    """A web page of another origin sent the request."""

    code = "origin_not_allowed"


class HostNotAllowedError(JetLLMError):
    """The Host header names something that this daemon is not."""

    code = "host_not_allowed"


class RouteNotFoundError(JetLLMError):
    """No such path."""

    code = "not_found"


class MethodNotAllowedError(JetLLMError):
    """The path exists, with other methods."""

    code = "method_not_allowed"


class RequestTimeoutError(JetLLMError):
    """The request did not arrive whole in time."""

    code = "request_timeout"
    retryable = True


class BodyTooLargeError(JetLLMError):
    """The body is larger than what is read."""

    code = "body_too_large"


class HeadersTooLargeError(JetLLMError):
    """The header is larger than what is read."""

    code = "headers_too_large"


class UnsupportedMediaTypeError(JetLLMError):
    """The body is not declared as JSON."""

    code = "unsupported_media_type"


class RateLimitedError(JetLLMError):
    """Too many failures from one address."""

    code = "rate_limited"
    retryable = True


class ShuttingDownError(DrainingError):
    """The daemon stopped before the work was done."""

    code = "shutting_down"


def public(error: BaseException, request_id: str) -> JetLLMError:
    """Return what a client may see of *error*; a defect is logged and becomes "internal error"."""
    if isinstance(error, JetLLMError) and STATUS_BY_CODE.get(error.code, 500) != 500:
        return error
    logger.error("request %s: internal error: %s", request_id, _where(error))
    return InternalError("internal error", hint="report it with the request_id and the daemon's log")


def status_of(error: JetLLMError) -> int:
    """Return the HTTP status of an error's code."""
    return STATUS_BY_CODE.get(error.code, 500)


def body_of(error: JetLLMError, request_id: str) -> dict[str, Any]:
    """Return OpenAI's error object, with our hint and details inside and the request's id beside it."""
    shown: dict[str, Any] = {
        "message": without_directories(error.message),
        "type": _type(status_of(error)),
        "param": error.param,
        "code": error.code,
        "hint": None if error.hint is None else without_directories(error.hint),
    }
    if error.details:
        shown["details"] = error.details
    return {"error": shown, "request_id": request_id}


def bytes_of(error: JetLLMError, request_id: str) -> bytes:
    """Return `body_of` as UTF-8 JSON."""
    return json.dumps(body_of(error, request_id)).encode()


def headers_of(error: JetLLMError, request_id: str) -> dict[str, str]:
    """Return the headers that belong to an error's response."""
    status = status_of(error)
    headers = {"Content-Type": "application/json", "X-Request-Id": request_id}
    if error.retry_after_s is not None or status in (429, 503):
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after_s or 1)))
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if status >= 500 and not error.retryable:
        headers["X-Should-Retry"] = "false"  # the openai clients obey it
    return headers


def without_directories(text: str) -> str:
    """Reduce absolute paths to file names: where things lie is nobody's business."""
    return _DIRECTORY.sub("", text)


def _type(status: int) -> str:
    if status == 429:
        return "rate_limit_error"
    return "invalid_request_error" if status < 500 else "server_error"


def _where(error: BaseException) -> str:
    """Say what was raised where, without its message: that may quote a prompt or a key."""
    if isinstance(error, JetLLMError):
        return f"{error.code}: {error.message}"
    frames = traceback.extract_tb(error.__traceback__)[-6:]
    places = " < ".join(f"{Path(f.filename).name}:{f.lineno} {f.name}" for f in reversed(frames))
    return f"{type(error).__name__} at {places or 'unknown place'}"
