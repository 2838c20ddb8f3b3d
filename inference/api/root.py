"""The root: the page for browsers, and for other clients the words that they know Ollama by."""

from __future__ import annotations

from flask import Blueprint, Response, request

from inference.api.page import page_response, wants_page

RUNNING = "Ollama is running"


def root_routes() -> Blueprint:
    """Return the route ``/``."""
    routes = Blueprint("root", __name__)

    @routes.get("/")
    def root() -> Response:
        if wants_page(request.headers.get("Accept", "")):
            return page_response()
        return Response(RUNNING, mimetype="text/plain", headers={"Vary": "Accept"})

    return routes
