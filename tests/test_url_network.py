"""Whom a download talks to: redirects, addresses, names and certificates."""

from __future__ import annotations

import hashlib
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from inference.artifacts.sources import web
from inference.artifacts.sources.address import is_reachable
from inference.artifacts.sources.web import Interrupted, Limits, Refused
from inference.errors import CancelledError
from inference.registry import UrlSource
from tests.lying_server import DEADLINE_S, Lie, LyingServer

PATH = "/m.gguf"


@pytest.fixture
def server() -> Iterator[LyingServer]:
    """See `LyingServer`."""
    with LyingServer({PATH: b"weights"}) as running:
        yield running


LOCAL = Limits(local=True, cancelled=lambda: False)


def got(url: str, limits: Limits = LOCAL) -> bytes:
    """The body of what *url* leads to."""
    with web.get(url, {}, limits) as answer:
        return answer.read(100)


def to(location: str) -> Lie:
    """A redirect."""
    return Lie(status=302, body=b"", headers={"Location": location})


# ---------------------------------------------------------------------------------------- addresses


@pytest.mark.parametrize(
    ("address", "public", "local"),
    [
        ("8.8.8.8", True, False),
        ("2001:4860:4860::8888", True, False),
        ("64:ff9b::808:808", True, False),
        ("127.0.0.1", False, True),
        ("192.168.1.2", False, True),
        ("10.0.0.1", False, True),
        ("100.64.0.1", False, True),
        ("::1", False, True),
        ("fd00::1", False, True),
        ("::ffff:127.0.0.1", False, True),
        ("64:ff9b::7f00:1", False, True),
        ("169.254.169.254", False, False),
        ("::ffff:169.254.169.254", False, False),
        ("fe80::1%lo", False, False),
        ("0.0.0.0", False, False),  # noqa: S104 - refused, not bound
        ("::", False, False),
        ("224.0.0.1", False, False),
        ("ff02::1", False, False),
        ("2002:7f00:1::", False, False),
    ],
)
def test_addresses_are_public_or_local_or_neither(address: str, public: bool, local: bool) -> None:
    """A source reaches public addresses, or with "local" private ones, in any spelling; none reaches both."""
    assert is_reachable(address, local=False) is public
    assert is_reachable(address, local=True) is local


def test_a_public_name_that_points_inwards_is_refused(server: LyingServer) -> None:
    """The address is checked, not the name, and the address that was checked is the one connected to."""
    limits = Limits(local=False, cancelled=lambda: False, resolve=lambda host, port: ["127.0.0.1"])
    with pytest.raises(Refused, match=r"models\.example has no public address"):
        got(server.url(PATH).replace("127.0.0.1", "models.example"), limits)
    assert server.requests == []


def test_a_local_source_never_leaves_the_network() -> None:
    """Plain http to a public address would let anybody on the way answer."""
    limits = Limits(local=True, cancelled=lambda: False, resolve=lambda host, port: ["8.8.8.8"])
    with pytest.raises(Refused, match="not in this machine's own network"):
        got("http://models.example/m", limits)


def test_the_next_address_of_a_name_is_tried(server: LyingServer) -> None:
    """A host of two addresses, one dead, answers; the Host header keeps its name."""
    limits = Limits(True, lambda: False, resolve=lambda host, port: ["127.0.0.2", "8.8.8.8", "127.0.0.1"])
    assert got(server.url(PATH).replace("127.0.0.1", "models.example"), limits) == b"weights"
    assert server.requests[0].headers["host"].startswith("models.example:")


@pytest.mark.parametrize(
    "changes",
    [
        {"url": "http://models.example/m"},
        {"url": "ftp://models.example/m"},
        {"url": "https://user:secret@models.example/m"},
        {"url": "https://models.example"},
        {"url": "https://models.example/a b"},
        {"url": "https://models.example/m#part"},
        {"sha256": None},
    ],
)
def test_only_https_or_a_local_address_can_be_declared(changes: dict[str, str | None]) -> None:
    """Plain http, passwords in addresses and files without a hash are errors of models.json."""
    declared = {"type": "url", "url": "https://models.example/m?v=1", "sha256": "0" * 64}
    assert UrlSource.model_validate(declared)
    with pytest.raises(ValueError, match="validation error"):
        UrlSource.model_validate({**declared, **changes})


# ---------------------------------------------------------------------------------------- redirects


def test_a_redirect_is_followed(server: LyingServer) -> None:
    """With the same headers, also to a relative address."""
    server.lies = [to(PATH)]
    with web.get(server.url("/old"), {"Range": "bytes=3-"}, LOCAL) as answer:
        assert (answer.status, answer.read(100)) == (206, b"ghts")
    assert [request.path for request in server.requests] == ["/old", PATH]


@pytest.mark.parametrize(
    ("local", "start", "end", "follows"),
    [
        (None, "http", "https", True),
        (None, "https", "http", False),
        (None, "http", "ftp", False),
        (True, "http", "https", False),
        (False, "https", "http", False),
    ],
)
def test_a_redirect_leaves_tls_for_nobody(local: bool | None, start: str, end: str, follows: bool) -> None:
    """Only where any host may be asked, at a mirror of one's own, may one lead into TLS; none leads out."""
    limits = Limits(local, lambda: False)
    if follows:
        assert web._redirected(f"{start}://a/b", f"{end}://a/c", limits) == f"{end}://a/c"
    else:
        with pytest.raises(Refused, match=f"a redirect from {start} to {end}"):
            web._redirected(f"{start}://a/b", f"{end}://a/c", limits)


def test_redirects_end(server: LyingServer) -> None:
    """The sixth is not followed."""
    server.lies = [to("/old")] * 20
    with pytest.raises(Refused, match="more than 5 redirects"):
        got(server.url("/old"))
    assert len(server.requests) == 6


@pytest.mark.parametrize(
    ("location", "reason"),
    [
        ("https://127.0.0.1/m", "a redirect from http to https://127.0.0.1/m"),
        ("file:///etc/passwd", "a redirect"),
        ("ftp://127.0.0.1/m", "a redirect from http to ftp"),
        ("http://user@127.0.0.1/m", "without a sound address"),
        ("http://127.0.0.1:99999/m", "without a sound address"),
        ("http://[/", "without a sound address"),
        ("", "without a sound address"),
        ("http://8.8.8.8/m", "not in this machine's own network"),
        ("http://169.254.169.254/latest/meta-data", "not in this machine's own network"),
    ],
)
def test_a_redirect_changes_neither_scheme_nor_network(
    server: LyingServer, location: str, reason: str
) -> None:
    """A server cannot send the appliance elsewhere than a source may point to."""
    server.lies = [to(location)]
    with pytest.raises(Refused, match=reason.replace("[", "\\[")):
        got(server.url("/old"))


# ------------------------------------------------------------------------------- what does not answer


def test_a_name_that_is_not_known_is_named() -> None:
    """It may be known later: a try is worth it."""

    def unknown(host: str, port: int) -> list[str]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    with pytest.raises(Interrupted, match=r"models\.example cannot be resolved \(Name or service"):
        got("http://models.example/m", Limits(True, lambda: False, resolve=unknown))


def test_a_resolver_that_hangs_is_left_within_a_second() -> None:
    """The system's resolver cannot be interrupted, but who asked it can go."""
    release, asked = threading.Event(), threading.Event()

    def hangs(host: str, port: int) -> list[str]:
        asked.set()
        release.wait(DEADLINE_S)
        return []

    start_s = time.monotonic()
    try:
        with pytest.raises(CancelledError):
            got("http://models.example/m", Limits(True, asked.is_set, resolve=hangs))
        assert time.monotonic() - start_s < 1.0
    finally:
        release.set()


def test_a_closed_port_is_named() -> None:
    """The kernel's words say why."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        with pytest.raises(Interrupted, match="no connection: Connection refused"):
            got(f"http://127.0.0.1:{port}/m")


@pytest.mark.parametrize(
    "head", [b"", b"HTTP/1.1\r\n", b"SSH-2.0\r\n", b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 200]
)
def test_what_is_no_http_is_no_answer(head: bytes) -> None:
    """Whatever listens there, the error is one of ours."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(head)

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(Interrupted):
            got(f"http://127.0.0.1:{listener.getsockname()[1]}/m")
        thread.join()


# ---------------------------------------------------------------------------------------------- TLS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A key and a certificate for 127.0.0.1 that nobody has signed."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl is not installed, and makes the certificate")
    path = tmp_path_factory.mktemp("tls") / "server.pem"
    subject = ["-subj", "/CN=test", "-addext", "subjectAltName=IP:127.0.0.1", "-days", "2"]
    new = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    subprocess.run(
        [openssl, *new, *subject, "-keyout", path, "-out", f"{path}.crt"], check=True, capture_output=True
    )
    path.write_bytes(path.read_bytes() + Path(f"{path}.crt").read_bytes())
    return str(path)


def test_an_unknown_certificate_is_refused(certificate: str) -> None:
    """The error says what to check; nothing is sent to that server."""
    with LyingServer({PATH: b"weights"}, certificate) as server:
        with pytest.raises(Refused, match=r"certificate is not accepted: self.signed") as caught:
            got(server.url(PATH))
        assert "SSL_CERT_FILE" in (caught.value.hint or "")
        assert server.requests == []


def test_an_authority_of_ones_own_is_accepted(certificate: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenSSL's own variable names it; reading through TLS wakes for cancellation, too."""
    content = hashlib.sha256(b"x").digest() * 10_000
    monkeypatch.setenv("SSL_CERT_FILE", certificate)
    with LyingServer({PATH: content}, certificate) as server:
        server.lies = [Lie(stall_at=100_000)]
        limits = Limits(True, server.stalled.is_set)
        received = b""
        with web.get(server.url(PATH), {}, limits) as answer, pytest.raises(CancelledError):
            while True:
                received += answer.read(10**6)
        assert content.startswith(received)
        assert len(received) == 100_000


def test_a_server_without_tls_is_named(server: LyingServer) -> None:
    """https to a port that speaks http is a failure of TLS."""
    with pytest.raises(Interrupted, match="TLS failed"):
        got(server.url(PATH).replace("http:", "https:"))
