"""Downloads through a proxy: the one that the environment names, and only where it should be."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from inference.artifacts.sources import web
from inference.artifacts.sources.proxy import proxy_for
from inference.artifacts.sources.web import Interrupted, Limits, Refused
from tests.lying_server import LyingServer

PATH = "/m.gguf"
HOST = "models.example"
PUBLIC = Limits(local=False, cancelled=lambda: False)


class TunnelProxy:
    """Connects whoever asks to one server, whatever host they name; a context manager.

    Args:
        status: what it answers to CONNECT.
    """

    def __init__(self, port: int, status: str = "200 OK") -> None:
        self._port = port
        self._status = status
        self.heads: list[str] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._threads = [threading.Thread(target=self._serve)]

    @property
    def address(self) -> str:
        """Where it listens."""
        return f"127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> TunnelProxy:
        self._threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._tunnel, args=(client,))
            self._threads.append(thread)
            thread.start()

    def _tunnel(self, client: socket.socket) -> None:
        with client:
            head = client.recv(65536).decode()
            self.heads.append(head)
            client.sendall(f"HTTP/1.1 {self._status}\r\nVia: test\r\n\r\n".encode())
            if not self._status.startswith("200"):
                return
            with socket.create_connection(("127.0.0.1", self._port)) as server:
                back = threading.Thread(target=pump, args=(server, client))
                back.start()
                pump(client, server)
                back.join()


def pump(source: socket.socket, target: socket.socket) -> None:
    """Pass on what comes until the end."""
    try:
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
    except OSError:
        pass


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The developer's own proxy is none of the test's."""
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LyingServer]:
    """A server that TLS takes for `HOST`."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl is not installed, and makes the certificate")
    key, certificate = tmp_path / "key", tmp_path / "certificate"
    new = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    subject = ["-subj", "/CN=test", "-addext", f"subjectAltName=DNS:{HOST}", "-days", "2"]
    subprocess.run(
        [openssl, *new, *subject, "-keyout", key, "-out", certificate], check=True, capture_output=True
    )
    key.write_bytes(key.read_bytes() + certificate.read_bytes())
    monkeypatch.setenv("SSL_CERT_FILE", str(key))
    with LyingServer({PATH: b"weights"}, str(key)) as running:
        yield running


def got(url: str, limits: Limits = PUBLIC) -> bytes:
    """The body of what *url* leads to."""
    with web.get(url, {}, limits) as answer:
        return answer.read(100)


def test_https_goes_through_the_proxy(server: LyingServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The proxy gets the name and its own password, nothing else; TLS is with the host."""
    with TunnelProxy(server.server_address[1]) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", f"http://user:p%40ss@{proxy.address}")
        assert got(f"https://{HOST}{PATH}") == b"weights"
    assert proxy.heads[0].split("\r\n")[:3] == [
        f"CONNECT {HOST}:443 HTTP/1.1",
        f"Host: {HOST}:443",
        "Proxy-Authorization: Basic dXNlcjpwQHNz",
    ]
    assert "proxy-authorization" not in server.requests[0].headers


@pytest.mark.parametrize(
    ("status", "kind"), [("407 Proxy Authentication Required", Refused), ("502 Bad Gateway", Interrupted)]
)
def test_a_proxy_that_refuses_is_named(
    server: LyingServer, monkeypatch: pytest.MonkeyPatch, status: str, kind: type[Exception]
) -> None:
    """What may pass is tried again, what will not is said at once."""
    with TunnelProxy(server.server_address[1], status) as proxy:
        monkeypatch.setenv("https_proxy", proxy.address)
        with pytest.raises(kind, match=rf"the proxy 127\.0\.0\.1 .* {HOST} \(HTTP {status[:3]}\)"):
            got(f"https://{HOST}{PATH}")


def test_a_proxy_leads_to_no_private_address(server: LyingServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """An address is checked although somebody else connects to it; a local source asks no proxy."""
    with TunnelProxy(server.server_address[1]) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", proxy.address)
        with pytest.raises(Refused, match="no public address"):
            got(f"https://10.0.0.1{PATH}")
        local = Limits(True, lambda: False, resolve=lambda host, port: ["127.0.0.1"])
        assert got(server.url(PATH).replace("127.0.0.1", HOST), local) == b"weights"
    assert proxy.heads == []


def test_exceptions_and_kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    """NO_PROXY is heeded, ALL_PROXY is the last resort, and a SOCKS proxy is refused by its name."""
    assert proxy_for("https", HOST, 443) is None
    monkeypatch.setenv("ALL_PROXY", "proxy.example:3128")
    monkeypatch.setenv("NO_PROXY", ".inside.example,localhost")
    found = proxy_for("https", HOST, 443)
    assert found is not None
    assert (found.host, found.port, found.headers) == ("proxy.example", 3128, {})
    assert proxy_for("https", "a.inside.example", 443) is None
    monkeypatch.setenv("HTTPS_PROXY", "socks5://proxy.example")
    with pytest.raises(Refused, match="socks5"):
        got(f"https://{HOST}{PATH}")
