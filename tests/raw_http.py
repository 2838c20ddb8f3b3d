"""A raw HTTP client over one socket, for what well-behaved clients never do."""

from __future__ import annotations

import json
import select
import socket
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

TIMEOUT_S = 10.0


def wait_until(condition: Callable[[], bool], timeout_s: float = TIMEOUT_S) -> bool:
    """Poll *condition* until it holds or the time is up."""
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline_s:
            return False
        select.select([], [], [], 0.005)
    return True


class RawClient:
    """One connection; every read has a deadline."""

    def __init__(self, address: tuple[str, int], *, receive_buffer_bytes: int | None = None) -> None:
        self.sock = socket.socket()
        if receive_buffer_bytes is not None:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
        self.sock.settimeout(TIMEOUT_S)
        self.sock.connect(address)
        self.received = b""

    def __enter__(self) -> RawClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.sock.close()

    def send(self, data: bytes) -> None:
        """Send bytes as they are."""
        self.sock.sendall(data)

    def post(self, path: str, body: Any, *headers: str) -> None:
        """Send a JSON request without waiting for its answer."""
        self.send(request_bytes(path, json.dumps(body).encode(), *headers))

    def get(self, path: str) -> tuple[int, dict[str, str], bytes]:
        """Send a GET and return its answer."""
        self.send(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        return self.answer()

    def read_until(self, mark: bytes) -> bytes:
        """Read until *mark* has come; return everything up to and with it."""
        while mark not in self.received:
            data = self.sock.recv(65536)
            if not data:
                raise AssertionError(f"closed after {self.received[-300:]!r}, before {mark!r}")
            self.received += data
        found, _, self.received = self.received.partition(mark)
        return found + mark

    def read_all(self) -> bytes:
        """Read to the end of the connection."""
        while data := self.sock.recv(65536):
            self.received += data
        return self.received

    def is_silent(self, for_s: float) -> bool:
        """Whether nothing comes for that long."""
        return not select.select([self.sock], [], [], for_s)[0]

    def is_closed(self, within_s: float = TIMEOUT_S) -> bool:
        """Whether the server closes the connection in time, whatever it says before."""
        self.sock.settimeout(within_s)
        try:
            while self.sock.recv(65536):
                pass
        except TimeoutError:
            return False
        except ConnectionError:
            return True
        return True

    def answer(self) -> tuple[int, dict[str, str], bytes]:
        """Read one response that has a Content-Length."""
        head = self.read_until(b"\r\n\r\n").decode("latin-1").split("\r\n")
        headers = {k.lower(): v for k, _, v in (line.partition(": ") for line in head[1:] if line)}
        size = int(headers["content-length"])
        while len(self.received) < size:
            data = self.sock.recv(65536)
            assert data, "closed inside a body"
            self.received += data
        body, self.received = self.received[:size], self.received[size:]
        return int(head[0].split()[1]), headers, body


def request_bytes(path: str, body: bytes, *headers: str) -> bytes:
    """Return a POST of JSON."""
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", "Content-Type: application/json"]
    lines += [f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body
