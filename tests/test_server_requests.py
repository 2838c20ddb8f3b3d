"""The HTTP server against requests that lie about their length, are malformed, or are too large."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.http_server import COMPLETION, FAST, Start, code_of, servers
from tests.raw_http import request_bytes


@pytest.fixture
def start() -> Iterator[Start]:
    """Start servers that are stopped, with every thread of theirs, at the end of the test."""
    with servers() as go:
        yield go


@pytest.mark.parametrize(
    "head",
    [
        "Content-Length: 3\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nContent-Length: 3",
        "Content-Length: 3\r\nTransfer-Encoding: ",
        "Content-Length: 3\r\nContent-Length: 4",
        "Content-Length: 3\r\nContent-Length: 3",
        "Content-Length: 3, 4",
        "Content-Length: -3",
        "Content-Length: +3",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: xchunked",
        "Transfer-Encoding:\r\n chunked",
        "Transfer-Encoding : chunked",
        "Bare: a\nContent-Length: 3",
    ],
)
def test_ambiguous_length_is_refused(start: Start, head: str) -> None:
    """A request whose end two readers could see differently is a JSON 400, then the end."""
    running = start()
    with running.connect() as client:
        client.send(f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n{head}\r\n\r\n0\r\n\r\n".encode())
        status, headers, body = client.answer()
        assert (status, code_of(body)) == (400, "invalid_http")
        assert headers["content-type"] == "application/json" and headers["x-request-id"].startswith("req_")
        assert client.is_closed()
    assert running.service.requests == []


def test_transfer_encoding_in_http_1_0_is_refused(start: Start) -> None:
    """HTTP/1.0 has no chunks."""
    running = start()
    with running.connect() as client:
        client.send(b"POST /v1/completions HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n")
        assert client.answer()[0] == 400


@pytest.mark.parametrize("junk", [b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", b"get / HTTP/1.1\r\n\r\n"])
def test_bytes_that_are_not_http_get_a_json_400(start: Start, junk: bytes) -> None:
    """TLS hellos and malformed request lines are answered in JSON."""
    running = start()
    with running.connect() as client:
        client.send(junk)
        status, _, body = client.answer()
        assert (status, code_of(body)) == (400, "invalid_http")


def test_chunked_body_is_accepted(start: Start) -> None:
    """A chunked request, well formed, is as good as one with a length."""
    running = start()
    body = json.dumps(COMPLETION).encode()
    with running.connect() as client:
        client.send(
            b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n" + b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
        )
        assert client.answer()[0] == 200


def test_huge_header_is_refused(start: Start) -> None:
    """More than 32 KiB of header is a JSON 431."""
    running = start()
    with running.connect() as client:
        client.send(b"GET /livez HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 40_000)
        status, _, body = client.answer()
        assert (status, code_of(body)) == (431, "headers_too_large")


@pytest.mark.parametrize("expect", [(), ("Expect: 100-continue",)])
def test_huge_body_is_refused_where_the_client_can_read_it(start: Start, expect: tuple[str, ...]) -> None:
    """A client that is still sending gets the 413, not a reset, and is never told to go on."""
    running = start()
    body = b'"' + b"x" * 5_000_000
    with running.connect() as client:
        client.send(request_bytes("/v1/completions", body, *expect))
        head = client.read_until(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 413 ")
        assert code_of(client.read_all()) == "body_too_large"


def test_body_of_exactly_the_limit_is_read(start: Start) -> None:
    """1 MiB is allowed; one byte more is not."""
    limit = FAST.body_bytes
    for size, status in ((limit, 200), (limit + 1, 413)):
        running = start()
        body = json.dumps({**COMPLETION, "pad": ""}).encode()
        body = body[:-2] + b"x" * (size - len(body)) + b'"}'
        assert len(body) == size
        with running.connect() as client:
            client.send(request_bytes("/v1/completions", body))
            assert client.answer()[0] == status


def test_expected_body_is_asked_for(start: Start) -> None:
    """Expect: 100-continue is answered when the header is acceptable."""
    running = start()
    body = json.dumps(COMPLETION).encode()
    with running.connect() as client:
        client.send(request_bytes("/v1/completions", body, "Expect: 100-continue")[: -len(body)])
        client.read_until(b"HTTP/1.1 100 Continue\r\n\r\n")
        client.send(body)
        assert client.answer()[0] == 200
