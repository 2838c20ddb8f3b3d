"""The page: what a browser gets at ``/``, and the files that it asks for, read once and held compressed."""

from __future__ import annotations

import gzip
import hashlib
from dataclasses import dataclass
from functools import cache
from importlib import resources

from flask import Blueprint, Response, request

from inference.api.errors import RouteNotFoundError

INDEX = "index.html"
ASSETS = {
    "api.js": "text/javascript",
    "app.js": "text/javascript",
    "chart.js": "text/javascript",
    "chat.js": "text/javascript",
    "device.js": "text/javascript",
    "dom.js": "text/javascript",
    "format.js": "text/javascript",
    "icon.svg": "image/svg+xml",
    "live.js": "text/javascript",
    "markdown.js": "text/javascript",
    "catalog.js": "text/javascript",
    "models.js": "text/javascript",
    "style.css": "text/css",
    "theme.js": "text/javascript",
    "work.js": "text/javascript",
}
"""Every file that is served, with its type: nothing is looked for, so nothing else can be found."""

PAGE_PATHS = frozenset({"/", *(f"/ui/{name}" for name in ASSETS)})
"""What loads without a key: the page asks for the key, and there is no secret in it."""

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": POLICY,
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    # The files have no version in their names: they are asked for each time, and 304 is the usual answer.
    "Cache-Control": "no-cache",
}


@dataclass(frozen=True)
class _File:
    """One file as it is sent; *etag* is of the plain bytes."""

    plain: bytes
    packed: bytes
    mimetype: str
    etag: str


def page_routes() -> Blueprint:
    """Return the routes of the page's files; whoever has ``/`` answers it with `page_response`."""
    routes = Blueprint("page", __name__)
    _files()

    @routes.get("/ui/<asset>")
    def asset(asset: str) -> Response:
        if asset not in ASSETS:
            raise RouteNotFoundError("there is nothing at this path", hint="the page is at /")
        return _sent(asset)

    return routes


def page_response() -> Response:
    """Return the page, as an answer to the current request."""
    return _sent(INDEX)


def wants_page(accept: str) -> bool:
    """Whether who sends this ``Accept`` header is a browser: it asks for HTML by name."""
    wanted = (part.partition(";")[0].strip().lower() for part in accept.split(","))
    return any(kind in ("text/html", "application/xhtml+xml") for kind in wanted)


@cache
def _files() -> dict[str, _File]:
    directory = resources.files(__package__) / "ui"
    types = {INDEX: "text/html", **ASSETS}
    return {name: _file((directory / name).read_bytes(), mimetype) for name, mimetype in types.items()}


def _file(plain: bytes, mimetype: str) -> _File:
    packed = gzip.compress(plain, 9, mtime=0)
    return _File(plain, packed, mimetype, hashlib.sha256(plain).hexdigest()[:16])


def _sent(name: str) -> Response:
    file = _files()[name]
    zipped = request.accept_encodings["gzip"] > 0
    response = Response(file.packed if zipped else file.plain, mimetype=file.mimetype, headers=_HEADERS)
    response.headers["Vary"] = "Accept, Accept-Encoding" if name == INDEX else "Accept-Encoding"
    if zipped:
        response.headers["Content-Encoding"] = "gzip"
    response.set_etag(file.etag + ("-gzip" if zipped else ""))
    response.make_conditional(request)
    return response
