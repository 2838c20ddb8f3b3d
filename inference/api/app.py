"""The Flask application: routes, guards and errors around one service."""

from __future__ import annotations

import re
import time
import uuid

from flask import Flask, Response, g, request
from werkzeug.exceptions import HTTPException

from inference.api.auth import HostGuard, KeyGuard, is_loopback, keys_of
from inference.api.context import EXTENSION, Context, Service
from inference.api.embeddings import embedding_routes
from inference.api.errors import (
    BodyTooLargeError,
    InvalidHTTPError,
    MethodNotAllowedError,
    RouteNotFoundError,
    bytes_of,
    headers_of,
    public,
    status_of,
)
from inference.api.health import OPEN_PATHS, health_routes
from inference.api.limits import Limits
from inference.api.native import native_routes
from inference.api.ollama import ollama_routes
from inference.api.ollama_shapes import error_of
from inference.api.openai import openai_routes
from inference.api.openapi import openapi_routes
from inference.api.page import PAGE_PATHS, page_routes
from inference.api.root import root_routes
from inference.api.shapes import to_bytes
from inference.api.tokens import token_routes

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


def create_app(service: Service, *, limits: Limits | None = None) -> Flask:
    """Build the WSGI application over *service*; `HttpServer` serves it."""
    app = Flask("jetllm", static_folder=None, template_folder=None)
    context = Context(service, limits or Limits())
    app.extensions[EXTENSION] = context
    app.config["PROVIDE_AUTOMATIC_OPTIONS"] = False
    app.config["MAX_CONTENT_LENGTH"] = context.limits.body_bytes
    app.url_map.strict_slashes = False
    app.url_map.merge_slashes = False
    _install_guards(app, context)
    _install_errors(app, context)
    for routes in (openai_routes(context), native_routes(context), health_routes(context)):
        app.register_blueprint(routes)
    for routes in (embedding_routes(context), token_routes(context)):
        app.register_blueprint(routes)
    for routes in (ollama_routes(context), page_routes(), root_routes(), openapi_routes()):
        app.register_blueprint(routes)
    return app


def _install_guards(app: Flask, context: Context) -> None:
    settings = context.settings
    beyond = not is_loopback(settings.host)
    hosts, keys = HostGuard(settings), KeyGuard(settings.api_key, keys_of(settings), always=beyond)

    @app.before_request
    def admit() -> None:
        g.started_s = time.monotonic()
        g.request_id = _request_id(request.headers.get("X-Request-Id"))
        g.model, g.counted_elsewhere = "", False
        protocol = request.environ.get("SERVER_PROTOCOL", "")
        hosts.check(request.headers.get("Host"), request.headers.get("Origin"), protocol)
        if request.path not in OPEN_PATHS | PAGE_PATHS:
            keys.check(request.headers.get("Authorization"), request.remote_addr or "")

    @app.after_request
    def finish(response: Response) -> Response:
        response.headers["X-Request-Id"] = g.request_id
        response.headers["X-Content-Type-Options"] = "nosniff"
        if not g.counted_elsewhere:
            route = str(request.url_rule) if request.url_rule else "unmatched"
            context.metrics.count(g.model, route, response.status_code)
        return response


def _install_errors(app: Flask, context: Context) -> None:
    @app.errorhandler(HTTPException)
    def http(error: HTTPException) -> Response:
        allowed = ", ".join(sorted(getattr(error, "valid_methods", None) or ()))
        response = _failure(_translated(error, allowed))
        if allowed:
            response.headers["Allow"] = allowed
        return response

    @app.errorhandler(Exception)
    def other(error: Exception) -> Response:
        g.counted_elsewhere = False
        return _failure(context.cause_of(error))


def _failure(error: Exception) -> Response:
    shown = public(error, g.request_id)
    is_ollama = request.path.startswith("/api/")
    body = to_bytes(error_of(shown)) if is_ollama else bytes_of(shown, g.request_id)
    return Response(body, status=status_of(shown), headers=headers_of(shown, g.request_id))


def _translated(error: HTTPException, allowed: str) -> Exception:
    """Return ours for what Flask and Werkzeug refuse by themselves."""
    if error.code == 405:
        return MethodNotAllowedError(f"{request.method} is not allowed here", hint=f"use {allowed}")
    if error.code == 413:
        return BodyTooLargeError("the request body is too large", hint="send at most 1 MiB")
    if error.code is not None and error.code >= 500:
        return error
    if error.code == 404 or (error.code or 0) < 400:
        return RouteNotFoundError("there is nothing at this path", hint="docs/api.md lists the paths")
    return InvalidHTTPError("the request cannot be read")


def _request_id(given: str | None) -> str:
    """Take the client's own id where it is harmless, to be found again in its log and in ours."""
    return given if given and _REQUEST_ID.fullmatch(given) else f"req_{uuid.uuid4().hex}"
