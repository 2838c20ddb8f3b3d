"""One HTTP request: to a host that may be reached, with every wait bounded and cancellable.

Sockets wake every 0.2 s to look at cancellation. What fails is sorted here: `Interrupted` may go
better another time, `Refused` will not.
"""

from __future__ import annotations

import errno
import http.client
import io
import os
import select
import socket
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeVar
from urllib.parse import SplitResult, urljoin, urlsplit

from inference.artifacts.sources import address
from inference.artifacts.sources.proxy import Proxy, proxy_for
from inference.errors import CancelledError

BLOCK_BYTES = 2**16
_POLL_S = 0.2
_MAX_REDIRECTS = 5
_REDIRECTS = (301, 302, 303, 307, 308)
_PORTS = {"http": 80, "https": 443}
_T = TypeVar("_T")


class Interrupted(Exception):
    """The network or the server failed in a way that passes."""

    def __init__(self, reason: str, *, retry_after_s: float = 0.0) -> None:
        super().__init__(reason)
        self.retry_after_s = retry_after_s


class Refused(Exception):
    """Asking again would not help; *hint* says what would, where there is a better one than usual.

    Args:
        status: what the server answered, where that is the reason.
    """

    def __init__(self, reason: str, hint: str | None = None, *, status: int | None = None) -> None:
        super().__init__(reason)
        self.hint = hint
        self.status = status


@dataclass(frozen=True)
class Limits:
    """What a request may do.

    Args:
        local: see `address.is_reachable`.
        cancelled: polled every 0.2 s.
        stall_s: silence after which a request is given up.
    """

    local: bool | None
    cancelled: Callable[[], bool]
    stall_s: float = 30.0
    now: Callable[[], float] = time.monotonic
    resolve: address.Resolve = address.look_up

    def look(self) -> None:
        """Raise when the caller gave up.

        Raises:
            CancelledError: it did.
        """
        if self.cancelled():
            raise CancelledError("the download was cancelled")

    def patience(self) -> Callable[[], None]:
        """Return what to call at each look: it raises on cancel, and *stall_s* from now."""
        end_s = self.now() + self.stall_s

        def look() -> None:
            self.look()
            if self.now() >= end_s:
                raise Interrupted(f"the server was silent for {self.stall_s:.0f} s")

        return look


@dataclass(frozen=True)
class Response:
    """The head of an answer; its body is read in order, once."""

    status: int
    headers: Mapping[str, str]
    _body: http.client.HTTPResponse

    def read(self, most_bytes: int) -> bytes:
        """Return the next bytes; none at the end.

        Raises:
            Interrupted: the connection failed, or was silent too long.
        """
        with _explained():
            return self._body.read1(min(most_bytes, BLOCK_BYTES))


def shown(url: str) -> str:
    """Return an address for a message: without its query, which may be a signature."""
    return url.partition("?")[0]


@contextmanager
def get(url: str, headers: Mapping[str, str], limits: Limits) -> Iterator[Response]:
    """Ask for *url*, at most five redirects away; none changes the scheme or the kind of network,
    unless any may be reached: then one may lead from a mirror's http to https.

    What authorizes the request is for its own host only: a redirect to another goes without it.

    Raises:
        Interrupted: no answer.
        Refused: the host or a redirect may not be followed, or its certificate is not accepted.
        CancelledError: between two looks.
    """
    for _ in range(_MAX_REDIRECTS + 1):
        with _asked(url, headers, limits) as answer:
            if answer.status not in _REDIRECTS:
                yield answer
                return
            target = _redirected(url, answer.headers.get("location", ""), limits)
        if urlsplit(target)[:2] != urlsplit(url)[:2]:
            headers = {name: value for name, value in headers.items() if name.lower() != "authorization"}
        url = target
    raise Refused(f"more than {_MAX_REDIRECTS} redirects")


def _redirected(url: str, location: str, limits: Limits) -> str:
    try:
        target = urljoin(url, location)
        parts, scheme = urlsplit(target), urlsplit(url).scheme
        is_sound = bool(parts.hostname) and parts.username is None and parts.port != 0
    except ValueError:
        is_sound = False
    if not location or not location.isascii() or not location.isprintable() or not is_sound:
        raise Refused("a redirect without a sound address")
    if parts.scheme != scheme and not (limits.local is None and parts.scheme == "https"):
        raise Refused(f"a redirect from {scheme} to {shown(target)}", _SIGN_IN)
    return target.partition("#")[0]


_SIGN_IN = "if this network asks for a sign-in, open any web page in a browser here first"


@contextmanager
def _asked(url: str, headers: Mapping[str, str], limits: Limits) -> Iterator[Response]:
    parts = urlsplit(url)
    with _connected(parts, limits) as connection:
        with _explained():
            client = http.client.HTTPConnection(parts.hostname or "")
            client.auto_open = 0
            client.sock = _Line(connection, limits)
            target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
            own = {"host": parts.netloc, "user-agent": "jetllm", "accept-encoding": "identity"}
            client.request("GET", target, headers={**own, **headers})
            answer = client.getresponse()
        with answer:
            names = {name.lower(): value for name, value in answer.getheaders()}
            yield Response(answer.status, names, answer)


@contextmanager
def _connected(parts: SplitResult, limits: Limits) -> Iterator[socket.socket]:
    """Connect to the first address that may be reached and answers, or through the proxy that is set."""
    host = parts.hostname or ""
    port = _port(parts)
    proxy = _proxy(parts.scheme, host, port, limits)
    if proxy is None:
        connection = _first(_allowed(host, port, limits), port, limits)
    else:
        anywhere = replace(limits, local=None)  # a proxy is the operator's choice, and mostly inside
        connection = _first(_allowed(proxy.host, proxy.port, anywhere), proxy.port, limits)
    try:
        if proxy is not None:
            _tunnel(connection, proxy, host, port, limits)
        if parts.scheme == "https":
            connection = _secured(connection, host, limits)
        yield connection
    finally:
        connection.close()


def _port(parts: SplitResult) -> int:
    try:
        return parts.port or _PORTS[parts.scheme]
    except ValueError as error:
        raise Refused("a port beyond 65535") from error


def _proxy(scheme: str, host: str, port: int, limits: Limits) -> Proxy | None:
    """Return the proxy to go through: for https only, and never into this machine's own network.

    It resolves the name and could lead anywhere; but TLS says that who answers is who was meant.
    """
    if scheme != "https" or limits.local is True:
        return None
    try:
        proxy = proxy_for(scheme, host, port)
    except ValueError as error:
        raise Refused(f"{error} is set, and only http:// ones are spoken to", "correct HTTPS_PROXY") from None
    if proxy is not None and address.is_literal(host):
        _allowed(host, port, limits)
    return proxy


def _tunnel(connection: socket.socket, proxy: Proxy, host: str, port: int, limits: Limits) -> None:
    """Let the proxy connect to the host; what is sent then goes through it unread."""
    target = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    lines = [f"CONNECT {target} HTTP/1.1", f"Host: {target}"]
    lines += [f"{name}: {value}" for name, value in proxy.headers.items()]
    with _explained():
        connection.sendall("\r\n".join([*lines, "", ""]).encode("latin-1"))
        # Of a socket it only wants makefile, which a _Line has.
        answer = http.client.HTTPResponse(_Line(connection, limits), method="CONNECT")  # type: ignore[arg-type]
        answer.begin()
    if answer.status in (502, 503, 504):
        raise Interrupted(f"the proxy {proxy.host} does not reach {host} (HTTP {answer.status})")
    if answer.status != 200:
        raise Refused(f"the proxy {proxy.host} refuses {host} (HTTP {answer.status})", "check HTTPS_PROXY")


def _allowed(host: str, port: int, limits: Limits) -> list[str]:
    try:
        found = address.resolved(host, port, limits.resolve, poll_s=_POLL_S, waiting=limits.patience())
    except OSError as error:
        raise Interrupted(f"the name {host} cannot be resolved ({error.strerror or error})") from error
    allowed = [each for each in found if address.is_reachable(each, local=limits.local)]
    if allowed:
        return allowed
    if limits.local:
        raise Refused(
            f"{host} is not in this machine's own network, as the source's 'local' says",
            "use https:// and remove 'local' from the source in models.json",
        )
    raise Refused(
        f"{host} has no public address",
        'if the server is yours, give the source "local": true in models.json; '
        "if this network asks for a sign-in, open any web page in a browser here first",
    )


def _first(addresses: list[str], port: int, limits: Limits) -> socket.socket:
    failure: OSError | None = None
    for each in addresses:
        try:
            return _dialled(each, port, limits)
        except OSError as error:
            failure = error
    reason = failure.strerror if failure else "no address"
    raise Interrupted(f"no connection: {reason}") from failure


def _dialled(host: str, port: int, limits: Limits) -> socket.socket:
    look = limits.patience()
    connection = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        connection.setblocking(False)
        code = connection.connect_ex((host, port))
        poller = select.poll()
        poller.register(connection, select.POLLOUT)
        while code == errno.EINPROGRESS:
            if poller.poll(_POLL_S * 1000):
                code = connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            else:
                look()
        if code:
            raise OSError(code, os.strerror(code))
        connection.settimeout(_POLL_S)
    except BaseException:
        connection.close()
        raise
    return connection


def _secured(connection: socket.socket, host: str, limits: Limits) -> ssl.SSLSocket:
    """Speak TLS, with the system's authorities; OpenSSL itself reads SSL_CERT_FILE and SSL_CERT_DIR."""
    secured = ssl.create_default_context().wrap_socket(
        connection, server_hostname=host, do_handshake_on_connect=False
    )
    try:
        with _explained():
            _polled(secured.do_handshake, limits)
    except BaseException:
        secured.close()
        raise
    return secured


def _polled(operation: Callable[[], _T], limits: Limits) -> _T:
    """Repeat a socket's operation that times out every 0.2 s, until it is done or its time is up."""
    look = limits.patience()
    while True:
        try:
            return operation()
        except TimeoutError:
            look()


@contextmanager
def _explained() -> Iterator[None]:
    """Turn what a connection raises into `Interrupted`, or `Refused` where it is the certificate."""
    try:
        yield
    except ssl.SSLCertVerificationError as error:
        raise Refused(
            f"the server's certificate is not accepted: {error.verify_message}",
            f"check the clock (date); {_SIGN_IN}; for an authority of your own: SSL_CERT_FILE=/path",
        ) from error
    except ssl.SSLError as error:
        raise Interrupted(f"TLS failed: {error.reason or error}") from error
    except OSError as error:
        raise Interrupted(f"the connection failed: {error.strerror or error}") from error
    except (http.client.HTTPException, ValueError) as error:
        raise Interrupted(f"no sound HTTP answer: {type(error).__name__}") from error


class _Line:
    """A connection as http.client wants it, whose reads and writes are polled."""

    def __init__(self, connection: socket.socket, limits: Limits) -> None:
        self._connection = connection
        self._limits = limits

    def sendall(self, data: bytes) -> None:
        """Send a request, which is short and fits the kernel's buffer."""
        self._connection.sendall(data)

    def makefile(self, *_: Any) -> io.BufferedReader:
        """Return the answer as a file."""
        return io.BufferedReader(_Incoming(self._connection, self._limits), BLOCK_BYTES)

    def close(self) -> None:
        """Do nothing: `_connected` closes."""


class _Incoming(io.RawIOBase):
    def __init__(self, connection: socket.socket, limits: Limits) -> None:
        self._connection = connection
        self._limits = limits

    def readable(self) -> bool:
        """Reading is all it can do."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read what has come, waiting for the first byte."""
        return _polled(lambda: self._connection.recv_into(buffer), self._limits)
