"""A web server on the loopback that serves files and lies about them, request by request, as told."""

from __future__ import annotations

import http.server
import re
import ssl
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import TypeVar

DEADLINE_S = 20.0
_Server = TypeVar("_Server", bound="LyingServer")
_RANGE = re.compile(r"bytes=(\d+)-")


@dataclass(frozen=True)
class Lie:
    """How one answer differs from the truth; nothing given is the truth.

    Args:
        cut_at: the connection ends after so many bytes of the body.
        stall_at: after so many, nothing comes until the server's *release*.
        flip_at: the byte of the file that is sent wrong.
        headers: replace the true ones; ``None`` leaves one out.
        body: sent instead of the file.
        heeds_if_range: a server that does not sends the range though the file has changed.
    """

    status: int | None = None
    cut_at: int | None = None
    stall_at: int | None = None
    flip_at: int | None = None
    ignores_range: bool = False
    heeds_if_range: bool = True
    headers: Mapping[str, str | None] = field(default_factory=dict)
    body: bytes | None = None


TRUTH = Lie()


@dataclass(frozen=True)
class Request:
    """One request as it came."""

    path: str
    headers: Mapping[str, str]


class LyingServer(http.server.ThreadingHTTPServer):
    """Serves *files* by path; *lies* are told one per request, then the truth; a context manager.

    Only requests for a path that ends in *lies_about* are lied to. *redirects* leads a path elsewhere;
    with *token* only who has it gets what is on *guarded* paths.

    Args:
        certificate: a file with key and certificate, to speak TLS.
    """

    daemon_threads = False

    def __init__(self, files: Mapping[str, bytes], certificate: str | None = None) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.files = dict(files)
        self.lies: list[Lie] = []
        self.lies_about = ""
        self.etag = '"one"'
        self.types: dict[str, str] = {}
        self.redirects: dict[str, str] = {}
        self.token: str | None = None
        self.guarded = "/"
        self.requests: list[Request] = []
        self.stalled = threading.Event()
        self.release = threading.Event()
        self._scheme = "http"
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01})
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self.socket = context.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)
            self._scheme = "https"

    def url(self, path: str) -> str:
        """The address of a file."""
        return f"{self._scheme}://127.0.0.1:{self.server_address[1]}{path}"

    def ranges(self) -> list[str | None]:
        """The Range header of each request."""
        return [request.headers.get("range") for request in self.requests]

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing: clients that leave are what these tests are about."""

    def __enter__(self: _Server) -> _Server:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release.set()
        self.shutdown()
        self.server_close()
        self._thread.join()


class _Answer(http.server.BaseHTTPRequestHandler):
    server: LyingServer

    def do_GET(self) -> None:
        """Tell the next lie."""
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.server.requests.append(Request(self.path, headers))
        is_lied_to = self.server.lies and self.path.endswith(self.server.lies_about)
        lie = self.server.lies.pop(0) if is_lied_to else TRUTH
        content = self.server.files.get(self.path)
        if lie is TRUTH:
            lie = self._answer(content, headers)
        status, start, true_headers = self._head(lie, content or b"", headers)
        self.send_response(lie.status or status)
        for name, value in {**true_headers, **lie.headers}.items():
            if value is not None:
                self.send_header(name, value)
        self.end_headers()
        body = (content or b"")[start:] if lie.body is None else lie.body
        if lie.flip_at is not None and lie.flip_at >= start:
            at = lie.flip_at - start
            body = body[:at] + bytes([body[at] ^ 1]) + body[at + 1 :]
        self._send(body, lie)

    def _answer(self, content: bytes | None, headers: Mapping[str, str]) -> Lie:
        """Return the truth, or what a true server says instead of the file."""
        token = self.server.token
        if token and self.server.guarded in self.path and headers.get("authorization") != f"Bearer {token}":
            return Lie(status=403 if "authorization" in headers else 401, body=b"not for you")
        if location := self.server.redirects.get(self.path):
            return Lie(status=302, body=b"", headers={"Location": location})
        return TRUTH if content is not None else Lie(status=404, body=b"no such file")

    def _head(
        self, lie: Lie, content: bytes, asked: Mapping[str, str]
    ) -> tuple[int, int, dict[str, str | None]]:
        if lie.body is not None:
            return 200, 0, {"Content-Length": str(len(lie.body))}
        wanted = _RANGE.fullmatch(asked.get("range", ""))
        is_same = not lie.heeds_if_range or asked.get("if-range") in (None, self.server.etag)
        kind = self.server.types.get(self.path, "application/octet-stream")
        common: dict[str, str | None] = {"ETag": self.server.etag, "Content-Type": kind}
        if wanted is None or lie.ignores_range or not is_same:
            return 200, 0, {**common, "Content-Length": str(len(content))}
        start, end = int(wanted[1]), len(content)
        about = {"Content-Range": f"bytes {start}-{end - 1}/{end}", "Content-Length": str(end - start)}
        return 206, start, {**common, **about}

    def _send(self, body: bytes, lie: Lie) -> None:
        ends = [end for end in (lie.cut_at, lie.stall_at) if end is not None]
        self.wfile.write(body[: min(ends, default=len(body))])
        self.wfile.flush()
        if lie.stall_at is not None:
            self.server.stalled.set()
            self.server.release.wait(DEADLINE_S)
            self.wfile.write(body[lie.stall_at :])

    def log_message(self, *args: object) -> None:
        """Say nothing."""
